"""Loads components from an official single file: prefixes, rename table, fp8 scales; every tensor accounted for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ltx2.models.describe import Config, bare_component, singlefile_configs
from ltx2.models.header import Entry, read_header
from ltx2.models.rename import component_of, diffusers_name
from ltx2.models.weights import Prepared, fill, prepare
from ltx2.spec.errors import CheckpointError

# The duration head of 2.5 is known and not offered yet; its tensors may lie in the file.
_SET_ASIDE = ("duration_head.",)
_FP8 = ("F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class SingleFile:
    """An official file taken apart: for each component its Diffusers config and its tensors under Diffusers names.

    `scales` holds the fp8 weight scales, under the name of the weight they belong to.
    """

    file: Path
    configs: dict[str, Config]
    tensors: dict[str, dict[str, Entry]]
    scales: dict[str, dict[str, Entry]]


def open_singlefile(file: Path) -> SingleFile:
    """Read an official file's header and sort its tensors.

    Raises CheckpointError for a file without config, keys of no known component, rotated int8 and nvfp4 tensors,
    scales without their weight and fp8 weights without their scale: all before any weight is read.
    """
    header = read_header(file)
    _refuse_formats(file, header.entries.values())
    configs, bare = singlefile_configs(header), bare_component(header)
    levels = len(configs["vae"]["block_out_channels"]) if "vae" in configs else 0
    tensors: dict[str, dict[str, Entry]] = {name: {} for name in configs}
    unknown: list[str] = []
    for key, entry in header.entries.items():
        place = component_of(key, bare)
        if place is None:
            if not key.startswith(_SET_ASIDE):
                unknown.append(key)
            continue
        component, name = place
        tensors[component][diffusers_name(component, name, levels)] = entry
    if unknown:
        raise CheckpointError(f"{file.name} has {len(unknown)} tensors of no known component: {', '.join(unknown[:4])}")
    scales = {component: _take_scales(file, held) for component, held in tensors.items()}
    return SingleFile(file, configs, tensors, scales)


def prepare_component(
    source: SingleFile, component: str, *, dtype: torch.dtype, without: tuple[str, ...] = ()
) -> Prepared:
    """Prepare one component; `without` names submodules that this file does not have.

    Raises CheckpointError when the file lacks the component or does not fit it exactly.
    """
    if component not in source.configs:
        raise CheckpointError(f"{source.file.name} holds no {component}, only {', '.join(source.configs) or 'nothing'}")
    config, entries = source.configs[component], source.tensors[component]
    name = f"{source.file.name} ({component})"
    prepared = prepare(component, config, entries, dtype=dtype, source=name, without=without)
    return replace(prepared, scales=source.scales[component])


def load_component(
    source: SingleFile,
    component: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    without: tuple[str, ...] = (),
) -> nn.Module:
    """Prepare and fill one component; fp8 weights become bfloat16(float32(weight) * scale), then `dtype`."""
    return fill(prepare_component(source, component, dtype=dtype, without=without), device)


def _refuse_formats(file: Path, entries: Iterable[Entry]) -> None:
    for entry in entries:
        if entry.key.endswith(".comfy_quant"):
            raise CheckpointError(f"{file.name} holds rotated int8 weights ({entry.key}), which are not supported")
        if entry.key.endswith(".weight_scale_2"):
            raise CheckpointError(f"{file.name} holds nvfp4 weights ({entry.key}), which are not supported yet")


def _take_scales(file: Path, held: dict[str, Entry]) -> dict[str, Entry]:
    """Move fp8 scales out of a component's tensors. An `input_scale` is calibration for fp8 compute, unused here."""
    scales: dict[str, Entry] = {}
    for name in [name for name in held if name.rpartition(".")[2].endswith("_scale")]:
        layer, _, leaf = name.rpartition(".")
        weight = held.get(f"{layer}.weight")
        if leaf not in ("weight_scale", "input_scale"):
            raise CheckpointError(f"{file.name} has a scale of unknown meaning: {held[name].key}")
        if weight is None or weight.dtype not in _FP8:
            raise CheckpointError(f"{file.name} has {held[name].key}, but no fp8 weight that it belongs to")
        entry = held.pop(name)
        if leaf == "weight_scale":
            if entry.shape not in ((), (1,), (weight.shape[0], 1)):
                raise CheckpointError(f"{file.name}: {entry.key} has the shape {list(entry.shape)}")
            scales[f"{layer}.weight"] = entry
    for name, entry in held.items():
        if entry.dtype in _FP8 and name not in scales:
            raise CheckpointError(f"{file.name}: {entry.key} is fp8 without its weight_scale")
    return scales
