"""Which tensors of a file belong together as one quantised weight: fp8 and nvfp4, told from headers alone, without torch.

fp8: `.weight` e4m3 (or e5m2) [out, in] and `.weight_scale` float32, one or one for each row. nvfp4: `.weight` uint8 with
two values a byte, `.weight_scale` e4m3 for blocks of 16, `.weight_scale_2` float32. Both may have an `.input_scale`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ltx2.models.header import Entry
from ltx2.spec.errors import CheckpointError

FP8_DTYPES = ("F8_E4M3", "F8_E5M2")
_SCALES = ("weight_scale", "weight_scale_2", "input_scale")
_BLOCK, _TILE = 16, (128, 4)


@dataclass(frozen=True)
class Packing:
    """One quantised weight as it is stored: the weight, its scale and what else belongs to it."""

    format: Literal["fp8", "nvfp4"]
    weight: Entry
    scale: Entry
    second: Entry | None = None
    input_scale: Entry | None = None


def sort_out(entries: Mapping[str, Entry], source: str) -> tuple[dict[str, Entry], dict[str, Packing]]:
    """Split tensors into those that a network has, and how its quantised weights are packed, by the weight's name.

    nvfp4 weights are listed with the shape that they stand for. Raises CheckpointError for rotated int8, a scale of
    unknown meaning or shape, a scale without its weight, and a weight without its scale.
    """
    scales: dict[str, dict[str, Entry]] = {}
    plain: dict[str, Entry] = {}
    for name, entry in entries.items():
        layer, _, leaf = name.rpartition(".")
        if leaf == "comfy_quant":
            raise CheckpointError(
                f"{source} holds rotated int8 weights ({entry.key}), which are not supported",
                hint="take the bf16, fp8 or nvfp4 file",
            )
        if leaf in _SCALES:
            scales.setdefault(f"{layer}.weight", {})[leaf] = entry
        elif leaf.endswith("_scale"):
            raise CheckpointError(f"{source} has a scale of unknown meaning: {entry.key}")
        else:
            plain[name] = entry
    packings = {name: _packing(source, plain.get(name), held) for name, held in scales.items()}
    for name, entry in plain.items():
        if entry.dtype in FP8_DTYPES and name not in packings:
            raise CheckpointError(f"{source}: {entry.key} is fp8 without its weight_scale")
        if entry.dtype == "U8" and name.endswith(".weight") and name not in packings:
            raise CheckpointError(
                f"{source}: {entry.key} is packed (uint8) without its weight_scale and weight_scale_2"
            )
    for name, packing in packings.items():
        if packing.format == "nvfp4":
            rows, half = packing.weight.shape
            plain[name] = replace(packing.weight, shape=(rows, 2 * half), dtype="F4")
    return plain, packings


def block_scale_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Shape of the nvfp4 block scales of a packed weight [out, in / 2]: whole tiles of 128 rows and 4 blocks."""
    rows, blocks = shape[0], -(-shape[1] * 2 // _BLOCK)
    return -(-rows // _TILE[0]) * _TILE[0], -(-blocks // _TILE[1]) * _TILE[1]


def _packing(source: str, weight: Entry | None, held: Mapping[str, Entry]) -> Packing:
    any_scale = next(iter(held.values()))
    scale, second, input_scale = (held.get(leaf) for leaf in _SCALES)
    if weight is None or weight.dtype not in (*FP8_DTYPES, "U8"):
        raise CheckpointError(f"{source} has {any_scale.key}, but no fp8 or nvfp4 weight that it belongs to")
    if scale is None or (weight.dtype == "U8" and second is None):
        missing = "weight_scale" if scale is None else "weight_scale_2"
        raise CheckpointError(f"{source}: {weight.key} is quantised without its {missing}")
    for entry in (second, input_scale):
        if entry is not None and entry.shape not in ((), (1,)):
            raise CheckpointError(f"{source}: {entry.key} has the shape {list(entry.shape)} instead of one number")
    if len(weight.shape) != 2:
        raise CheckpointError(f"{source}: {weight.key} is quantised with the shape {list(weight.shape)}, no matrix")
    if weight.dtype == "U8":
        return _nvfp4(source, weight, scale, second, input_scale)
    if second is not None:
        raise CheckpointError(f"{source}: {second.key} belongs to nvfp4, but {weight.key} is {weight.dtype}")
    if scale.shape not in ((), (1,), (weight.shape[0],), (weight.shape[0], 1)):
        raise CheckpointError(f"{source}: {scale.key} has the shape {list(scale.shape)}")
    return Packing("fp8", weight, scale, None, input_scale)


def _nvfp4(source: str, weight: Entry, scale: Entry, second: Entry | None, input_scale: Entry | None) -> Packing:
    expected = block_scale_shape(weight.shape)
    if scale.dtype != "F8_E4M3" or scale.shape != expected:
        raise CheckpointError(
            f"{source}: {scale.key} is {scale.dtype} {list(scale.shape)} instead of F8_E4M3 {list(expected)}"
        )
    return Packing("nvfp4", weight, scale, second, input_scale)
