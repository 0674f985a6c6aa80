"""One component of a Diffusers-format folder: its config, its shards, and Gemma's names of every transformers release."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ltx2.models.gemma import own_names
from ltx2.models.header import read_headers
from ltx2.models.weights import FOLDERS, Config, Prepared, build, prepare
from ltx2.spec.errors import CheckpointError


def read_config(folder: Path, file: str = "config.json") -> Config:
    """Read a JSON config. Raises CheckpointError when it is missing or not JSON."""
    try:
        return json.loads((folder / file).read_text())
    except OSError as error:
        raise CheckpointError(f"{folder} has no readable {file}") from error
    except ValueError as error:
        raise CheckpointError(f"{folder / file} is not JSON: {error}") from error


def prepare_folder(root: Path, component: str, *, dtype: torch.dtype, name: str = "") -> Prepared:
    """Prepare one component of a Diffusers-format folder (shards with or without an index), which may be called `name`.

    Raises CheckpointError for missing files or shards, foreign classes, and anything `prepare` refuses.
    """
    folder = root / (name or FOLDERS[component])
    config = read_config(folder)
    entries = read_headers(shards(folder, component))
    if component == "text_encoder":
        names = own_names(build(component, config).state_dict(), entries)
        entries = {names[key]: entry for key, entry in entries.items()}
    return prepare(component, config, entries, dtype=dtype, source=str(folder))


def shards(folder: Path, component: str) -> list[Path]:
    """The safetensors files of one component.

    A folder may hold two sets (Lightricks' text encoder does): the one with the component's own stem is taken,
    `model*` for the text encoder and `diffusion_pytorch_model*` for the rest.
    """
    stems = ("model", "diffusion_pytorch_model")
    for stem in stems if component == "text_encoder" else reversed(stems):
        index = folder / f"{stem}.safetensors.index.json"
        if index.exists():
            names = sorted(set(read_config(folder, index.name)["weight_map"].values()))
            absent = [name for name in names if not (folder / name).exists()]
            if absent:
                raise CheckpointError(f"{folder} is incomplete: {', '.join(absent)} missing")
            return [folder / name for name in names]
        if (folder / f"{stem}.safetensors").exists():
            return [folder / f"{stem}.safetensors"]
        if list(folder.glob(f"{stem}-*-of-*.safetensors")):
            raise CheckpointError(f"{folder} has shards but no {index.name}")
    raise CheckpointError(f"{folder} holds no safetensors weights")
