"""Writes the trained networks as a Diffusers folder, checks such a folder by loading it, packs a run for a journey."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, Gemma3ForConditionalGeneration

from training import networks, tokenizer

LORA = "distilled_lora.safetensors"
LIMIT = 40 * 2**20
PIECE = 15 * 10**6
# what a generation loads, as the published checkpoints list it
INDEX = {
    "_class_name": "LTX2Pipeline",
    "_diffusers_version": "0.42.1",
    "audio_vae": ["diffusers", "AutoencoderKLLTX2Audio"],
    "connectors": ["ltx2", "LTX2TextConnectors"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Gemma3ForConditionalGeneration"],
    "tokenizer": ["transformers", "GemmaTokenizer"],
    "transformer": ["diffusers", "LTX2VideoTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLLTX2Video"],
    "vocoder": ["ltx2", "LTX2Vocoder"],
}
SCHEDULER = {
    "base_image_seq_len": 1024,
    "base_shift": 0.95,
    "max_image_seq_len": 4096,
    "max_shift": 2.05,
    "shift_terminal": 0.1,
    "use_dynamic_shifting": True,
}


def export(run: Path, out: Path) -> int:
    """Write the networks of `run` to the Diffusers folder `out`; returns the bytes, raises ValueError beyond 40 MiB."""
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = len(tokenizer.load())
    for name in (*networks.BUILDERS, "text_encoder"):
        network = networks.load(name, run / f"{name}.safetensors", vocabulary).bfloat16()
        network.save_pretrained(out / name, safe_serialization=True)
    FlowMatchEulerDiscreteScheduler(**SCHEDULER).save_pretrained(out / "scheduler")
    if out / "tokenizer" != tokenizer.FOLDER:
        tokenizer.load().save_pretrained(out / "tokenizer")
    if (run / LORA).exists():
        shutil.copyfile(run / LORA, out / LORA)
    (out / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if size > LIMIT:
        raise ValueError(f"{out} holds {size / 2**20:.1f} MiB, more than 40")
    return size


def reopen(folder: Path, run: Path) -> None:
    """Make a run of an exported folder, so that training goes on from its weights; the reverse of `export`."""
    run.mkdir(parents=True, exist_ok=True)
    for name in networks.BUILDERS:
        networks.save(type(networks.build(name)).from_pretrained(folder / name), run / f"{name}.safetensors")
    text_encoder = Gemma3ForConditionalGeneration.from_pretrained(folder / "text_encoder")
    networks.save(text_encoder, run / "text_encoder.safetensors")
    if (folder / LORA).exists():
        shutil.copyfile(folder / LORA, run / LORA)


def check(folder: Path) -> dict[str, int]:
    """Load every part of a Diffusers folder as a user would; returns the parameters of each.

    Raises ValueError for weights that are not finite and for a LoRA that names no linear of the transformer.
    """
    counts = {}
    for name in networks.BUILDERS:
        counts[name] = _count(type(networks.build(name)).from_pretrained(folder / name), name)
    counts["text_encoder"] = _count(Gemma3ForConditionalGeneration.from_pretrained(folder / "text_encoder"), "text")
    ids = AutoTokenizer.from_pretrained(folder / "tokenizer")("A red ball.", padding="max_length").input_ids
    if len(ids) != networks.TEXT_POSITIONS or ids[0] != 0 or max(ids) >= len(tokenizer.load(folder / "tokenizer")):
        raise ValueError(f"the tokenizer pads oddly: {ids}")
    FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    if (folder / LORA).exists():
        counts["lora"] = _count_lora(folder)
    return counts


def _count(network: nn.Module, name: str) -> int:
    tensors = network.state_dict().values()
    if not all(torch.isfinite(tensor).all() for tensor in tensors if tensor.is_floating_point()):
        raise ValueError(f"the {name} holds weights that are not finite")
    return sum(parameter.numel() for parameter in network.parameters())


def _count_lora(folder: Path) -> int:
    tensors = load_file(folder / LORA)
    linears = dict(networks.build("transformer").named_modules())
    for key in tensors:
        name = key.removeprefix("diffusion_model.").rsplit(".", 2)[0]
        if not isinstance(linears.get(name), nn.Linear):
            raise ValueError(f"{key} names no linear of the transformer")
    return sum(tensor.numel() for tensor in tensors.values())


def pack(run: Path, out: Path) -> list[Path]:
    """Put weights, logs and sheets of `run` (not its dataset) into one archive, cut into pieces of 15 MB in `out`."""
    archive = run / "local" / "run.tar"
    archive.parent.mkdir(exist_ok=True)
    with tarfile.open(archive, "w") as tar:
        for path in sorted(run.iterdir()):
            if path.is_file() and path.suffix in (".safetensors", ".json", ".jsonl", ".png"):
                tar.add(path, path.name)
    out.mkdir(parents=True, exist_ok=True)
    pieces, data = [], archive.read_bytes()
    for index in range(0, len(data), PIECE):
        pieces.append(out / f"run.tar.{index // PIECE}")
        pieces[-1].write_bytes(data[index : index + PIECE])
    return pieces


def unpack(pieces: Path, run: Path) -> None:
    """Put the pieces in folder `pieces` back together and lay the files into `run`.

    Raises FileNotFoundError when there is no piece.
    """
    found = sorted(pieces.glob("run.tar.*"))
    if not found:
        raise FileNotFoundError(f"no run.tar.* in {pieces}")
    run.mkdir(parents=True, exist_ok=True)
    archive = run / "joined.tar"
    archive.write_bytes(b"".join(piece.read_bytes() for piece in found))
    with tarfile.open(archive) as tar:
        # Pythons before 3.11.4 have no filters.
        tar.extractall(run, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    archive.unlink()
