"""Loads components from official files: prefixes and rename table; every tensor accounted for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from ltx2.models.describe import Config, singlefile_configs
from ltx2.models.gemma import own_names
from ltx2.models.header import Entry
from ltx2.models.holding import Hold
from ltx2.models.reading import read
from ltx2.models.rename import ASSET, TOKENIZER, component_of, diffusers_name
from ltx2.models.split import bare_component, read_official
from ltx2.models.weights import Prepared, build, fill, prepare
from ltx2.spec.errors import CheckpointError

# The duration head of 2.5 is known and not offered yet; its tensors may lie in the file.
_SET_ASIDE = ("duration_head.",)


@dataclass(frozen=True)
class SingleFile:
    """An official file, or 2.5's several ones, taken apart: for each component its Diffusers config and its tensors
    under Diffusers names. `assets` are the files of the tokenizer, as tensors of bytes, where a file has them.
    """

    file: Path
    configs: dict[str, Config]
    tensors: dict[str, dict[str, Entry]]
    assets: dict[str, Entry] = field(default_factory=dict[str, Entry])


def open_singlefile(file: Path, text_encoder: Path | None = None) -> SingleFile:
    """Read the headers of an official file and of the parts that belong to it, and sort their tensors.

    Raises CheckpointError for a file without config, for keys of no known component, and as `read_official` does.
    """
    header = read_official(file, text_encoder)
    configs, bare = singlefile_configs(header), bare_component(header)
    levels = len(configs["vae"]["block_out_channels"]) if "vae" in configs else 0
    tensors: dict[str, dict[str, Entry]] = {name: {} for name in configs}
    assets: dict[str, Entry] = {}
    unknown: list[str] = []
    for key, entry in header.entries.items():
        place = component_of(key, bare)
        if place is None:
            if not key.startswith(_SET_ASIDE):
                unknown.append(key)
            continue
        component, name = place
        if component == "tokenizer":
            assets["tokenizer.json" if name == TOKENIZER else name.removeprefix(ASSET)] = entry
            continue
        tensors[component][diffusers_name(component, name, levels)] = entry
    if unknown:
        raise CheckpointError(f"{file.name} has {len(unknown)} tensors of no known component: {', '.join(unknown[:4])}")
    return SingleFile(file, configs, tensors, assets)


def prepare_component(
    source: SingleFile, component: str, *, dtype: torch.dtype, without: tuple[str, ...] = ()
) -> Prepared:
    """Prepare one component; `without` names submodules that this file does not have.

    Raises CheckpointError when the file lacks the component or does not fit it exactly.
    """
    if component not in source.configs:
        raise CheckpointError(f"{source.file.name} holds no {component}, only {', '.join(source.configs) or 'nothing'}")
    config, entries = source.configs[component], source.tensors[component]
    if component == "text_encoder":
        names = own_names(build(component, config).state_dict(), entries)
        entries = {names[key]: entry for key, entry in entries.items()}
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


@contextmanager
def tokenizer_folder(source: SingleFile) -> Iterator[Path]:
    """A folder with the tokenizer's files for as long as the block lasts. Raises CheckpointError when there are none."""
    if "tokenizer.json" not in source.assets:
        raise CheckpointError(f"{source.file.name} came without a tokenizer ({TOKENIZER})", knob="text_encoder")
    for name in source.assets:
        if Path(name).name != name:
            raise CheckpointError(f"{source.file.name} would write its {name!r} outside of its folder")
    with tempfile.TemporaryDirectory(prefix="ltx2-tokenizer-") as folder:
        for name, tensor in read(source.assets, torch.device("cpu")):
            (Path(folder) / name).write_bytes(tensor.numpy().tobytes())
        yield Path(folder)
