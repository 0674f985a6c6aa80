"""Loads components from an official single file: prefixes and rename table; every tensor accounted for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ltx2.models.describe import Config, bare_component, singlefile_configs
from ltx2.models.header import Entry, read_header
from ltx2.models.holding import Hold
from ltx2.models.rename import component_of, diffusers_name
from ltx2.models.weights import Prepared, fill, prepare
from ltx2.spec.errors import CheckpointError

# The duration head of 2.5 is known and not offered yet; its tensors may lie in the file.
_SET_ASIDE = ("duration_head.",)


@dataclass(frozen=True)
class SingleFile:
    """An official file taken apart: for each component its Diffusers config and its tensors under Diffusers names."""

    file: Path
    configs: dict[str, Config]
    tensors: dict[str, dict[str, Entry]]


def open_singlefile(file: Path) -> SingleFile:
    """Read an official file's header and sort its tensors.

    Raises CheckpointError for a file without config and for keys of no known component.
    """
    header = read_header(file)
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
    return SingleFile(file, configs, tensors)


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
    return prepare(component, config, entries, dtype=dtype, source=name, without=without)


def load_component(
    source: SingleFile,
    component: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    without: tuple[str, ...] = (),
    hold: Hold = "plain",
) -> nn.Module:
    """Prepare and fill one component; see `fill` for quantised weights."""
    return fill(prepare_component(source, component, dtype=dtype, without=without), device, hold)
