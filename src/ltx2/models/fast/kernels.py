"""Triton kernels of the operations in `ops`: one program for every token, its whole row in registers.

Imported only where Triton is. With TRITON_INTERPRET=1 set before the import they run on a CPU, for tests.
"""
# Triton comes with torch for CUDA only, and its launch syntax is beyond the type checker.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ltx2.models.fast.ops import Affine, Ops, Rows, Table, Update
from ltx2.models.precision import E4M3_MAX, SMALLEST

FP8 = torch.float8_e4m3fn
_LARGEST, _SMALLEST = tl.constexpr(E4M3_MAX), tl.constexpr(SMALLEST)


@triton.jit
def _store(value, out, scales, row, offsets, mask, QUANTISE: tl.constexpr):
    """Store a row as it is, or in e4m3 with its scale."""
    if QUANTISE:
        scale = tl.maximum(tl.max(tl.abs(value)), _SMALLEST) / _LARGEST
        tl.store(scales + row, scale)
        value = value / scale
    tl.store(out + offsets, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _residual_norm(
    h, y, gate, index, out,
    scale_0, shift_0, normal_0, rows_0, scale_1, shift_1, normal_1, rows_1,
    tokens, gate_row, gate_level, row_0, level_0, row_1, level_1, eps,
    DIM: tl.constexpr, BLOCK: tl.constexpr, ADDS: tl.constexpr, GATED: tl.constexpr, INDEXED: tl.constexpr,
    TARGETS: tl.constexpr, AFFINE_0: tl.constexpr, AFFINE_1: tl.constexpr, QUANTISE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    batch = row // tokens
    if INDEXED:
        level = tl.load(index + row % tokens)
    else:
        level = 0
    column = tl.arange(0, BLOCK)
    mask = column < DIM
    place = row * DIM + column
    value = tl.load(h + place, mask=mask, other=0.0).to(tl.float32)
    if ADDS:
        add = tl.load(y + place, mask=mask, other=0.0).to(tl.float32)
        if GATED:
            add *= tl.load(gate + batch * gate_row + level * gate_level + column, mask=mask, other=0.0).to(tl.float32)
        stored = (value + add).to(out.dtype.element_ty)
        tl.store(out + place, stored, mask=mask)
        # What follows sees the rounded sum, as the next reader of it will.
        value = stored.to(tl.float32)
    if TARGETS > 0:
        normal = value * tl.rsqrt(tl.sum(value * value) / DIM + eps)
        result = normal
        if AFFINE_0:
            at = batch * row_0 + level * level_0 + column
            result = normal * (1.0 + tl.load(scale_0 + at, mask=mask, other=0.0).to(tl.float32))
            result += tl.load(shift_0 + at, mask=mask, other=0.0).to(tl.float32)
        _store(result, normal_0, rows_0, row, place, mask, QUANTISE)
        if TARGETS > 1:
            result = normal
            if AFFINE_1:
                at = batch * row_1 + level * level_1 + column
                result = normal * (1.0 + tl.load(scale_1 + at, mask=mask, other=0.0).to(tl.float32))
                result += tl.load(shift_1 + at, mask=mask, other=0.0).to(tl.float32)
            _store(result, normal_1, rows_1, row, place, mask, QUANTISE)


@triton.jit
def _normalise_heads(
    x, weight, cos, sin, batches, stride_batch, stride_token, eps,
    DIM: tl.constexpr, HALF: tl.constexpr, ROTATES: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    # Rows of one token in all batches run side by side, so that they share the token's table in the cache.
    token = (tl.program_id(0) // batches).to(tl.int64)
    batch = (tl.program_id(0) % batches).to(tl.int64)
    head = tl.arange(0, BLOCK_HEADS)[:, None]
    column = tl.arange(0, BLOCK_HALF)[None, :]
    mask = (head < DIM // (2 * HALF)) & (column < HALF)
    offset = head * (2 * HALF) + column
    start = x + batch * stride_batch + token * stride_token
    first = tl.load(start + offset, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(start + offset + HALF, mask=mask, other=0.0).to(tl.float32)
    factor = tl.rsqrt((tl.sum(first * first) + tl.sum(second * second)) / DIM + eps)
    first *= factor * tl.load(weight + offset, mask=mask, other=0.0).to(tl.float32)
    second *= factor * tl.load(weight + offset + HALF, mask=mask, other=0.0).to(tl.float32)
    if ROTATES:
        at = token * (DIM // 2) + head * HALF + column
        c = tl.load(cos + at, mask=mask, other=0.0)
        s = tl.load(sin + at, mask=mask, other=0.0)
        turned = first * c - second * s
        second = second * c + first * s
        first = turned
    tl.store(start + offset, first.to(x.dtype.element_ty), mask=mask)
    tl.store(start + offset + HALF, second.to(x.dtype.element_ty), mask=mask)


@triton.jit
def _gate_heads(
    x, logits, out, scales, logits_row,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    QUANTISE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, BLOCK_HEADS)[:, None]
    column = tl.arange(0, BLOCK_WIDTH)[None, :]
    mask = (head < HEADS) & (column < WIDTH)
    place = row * HEADS * WIDTH + head * WIDTH + column
    gate = 2.0 * tl.sigmoid(tl.load(logits + row * logits_row + head, mask=head < HEADS, other=0.0).to(tl.float32))
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) * gate
    _store(value, out, scales, row, place, mask, QUANTISE)


@triton.jit
def _pointwise(
    x, out, scales, DIM: tl.constexpr, BLOCK: tl.constexpr, GELU: tl.constexpr, QUANTISE: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < DIM
    place = row * DIM + column
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    if GELU:
        # 0.5 (1 + tanh u) = sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3)
        value *= tl.sigmoid(1.5957691216057308 * (value + 0.044715 * value * value * value))
    _store(value, out, scales, row, place, mask, QUANTISE)


@triton.jit
def _pad(
    x, out, positions, frames, height, width, front, eps,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, NORMALISES: tl.constexpr, REFLECTS: tl.constexpr,
    FRAMES_OUT: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (place < positions) & (column < CHANNELS)
    x_out = place % (width + 2)
    y_out = (place // (width + 2)) % (height + 2)
    frame = (place // (width + 2) // (height + 2)) % FRAMES_OUT
    batch = place // (width + 2) // (height + 2) // FRAMES_OUT
    frame = tl.minimum(tl.maximum(frame - front, 0), frames - 1)
    from_x = x_out - 1
    from_y = y_out - 1
    mask = inside
    if REFLECTS:
        from_x = tl.where(from_x < 0, -from_x, from_x)
        from_y = tl.where(from_y < 0, -from_y, from_y)
        from_x = tl.where(from_x >= width, 2 * width - 2 - from_x, from_x)
        from_y = tl.where(from_y >= height, 2 * height - 2 - from_y, from_y)
    else:
        mask = mask & (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    source = ((batch * frames + frame) * height + from_y) * width + from_x
    value = tl.load(x + source * CHANNELS + column, mask=mask, other=0.0).to(tl.float32)
    if NORMALISES:
        value *= tl.rsqrt(tl.sum(value * value, axis=1)[:, None] / CHANNELS + eps)
        value *= tl.sigmoid(value)
    tl.store(out + place * CHANNELS + column, value.to(out.dtype.element_ty), mask=inside)


def residual_norm(
    h: Tensor,
    update: Update | None,
    targets: Sequence[Affine | None],
    index: Tensor | None,
    eps: float,
    quantise: bool = False,
) -> tuple[Tensor, tuple[Tensor | Rows, ...]]:
    """As `ops.residual_norm`, in one kernel."""
    batches, tokens, width = h.shape
    h = h.contiguous()
    y, gate = (update[0].contiguous(), update[1]) if update else (h, None)
    out = torch.empty_like(h) if update else h
    results = [_empty(h, quantise) for _ in targets]
    arguments: list[Any] = []
    strides = [*_strides(gate)]
    for place in range(2):
        affine = targets[place] if place < len(targets) else None
        values, rows = results[place] if place < len(results) else (h, None)
        scale, shift = affine or (h, h)
        assert scale.stride() == shift.stride()
        arguments += [scale, shift, values, h if rows is None else rows]
        strides += _strides(affine.scale if affine else None)
    indexed = index is not None
    _residual_norm[(batches * tokens,)](
        h, y, h if gate is None else gate, index if indexed else h, out, *arguments, tokens, *strides, eps,
        DIM=width, **_shape(width), ADDS=update is not None, GATED=gate is not None, INDEXED=indexed,
        TARGETS=len(targets), AFFINE_0=bool(targets) and targets[0] is not None,
        AFFINE_1=len(targets) > 1 and targets[1] is not None, QUANTISE=quantise,
    )  # fmt: skip
    return out, tuple(_result(*result) for result in results)


def normalise_heads(x: Tensor, weight: Tensor, table: Table | None, heads: int, eps: float) -> Tensor:
    """As `ops.normalise_heads`, in one kernel; in place."""
    batches, tokens, width = x.shape
    half = width // heads // 2
    assert x.stride(-1) == 1
    cos, sin = table or (x, x)
    _normalise_heads[(batches * tokens,)](
        x, weight, cos, sin, batches, x.stride(0), x.stride(1), eps,
        DIM=width, HALF=half, ROTATES=table is not None, BLOCK_HEADS=triton.next_power_of_2(heads),
        BLOCK_HALF=triton.next_power_of_2(half), num_warps=_warps(width),
    )  # fmt: skip
    return x


def gate_heads(x: Tensor, logits: Tensor, quantise: bool = False) -> Tensor | Rows:
    """As `ops.gate_heads`, in one kernel."""
    x = x.contiguous()
    heads, width = logits.shape[-1], x.shape[-1] // logits.shape[-1]
    # The logits are the last columns of a wider projection, whose rows lie at equal distances over all batches.
    assert logits.stride(0) == logits.stride(1) * logits.shape[1] or len(logits) == 1
    values, rows = _empty(x, quantise)
    _gate_heads[(x.shape[0] * x.shape[1],)](
        x, logits, values, x if rows is None else rows, logits.stride(1), HEADS=heads, WIDTH=width,
        BLOCK_HEADS=triton.next_power_of_2(heads), BLOCK_WIDTH=triton.next_power_of_2(width), QUANTISE=quantise,
        num_warps=_warps(x.shape[-1]),
    )  # fmt: skip
    return _result(values, rows)


def gelu(x: Tensor, quantise: bool = False) -> Tensor | Rows:
    """As `ops.gelu`, in one kernel."""
    return _each_row(x, True, quantise)


def quantise(x: Tensor) -> Rows:
    """As `ops.quantise`, in one kernel."""
    result = _each_row(x, False, True)
    assert isinstance(result, Rows)
    return result


def pad(x: Tensor, eps: float | None, front: int, back: int, reflect: bool) -> Tensor:
    """As `ops.pad`, in one kernel."""
    x = x.contiguous()
    batch, frames, height, width, channels = x.shape
    out = x.new_empty(batch, frames + front + back, height + 2, width + 2, channels)
    positions, block = out.numel() // channels, triton.next_power_of_2(channels)
    rows = max(2048 // block, 1)
    _pad[(triton.cdiv(positions, rows),)](
        x, out, positions, frames, height, width, front, eps or 0.0, CHANNELS=channels, BLOCK=block, ROWS=rows,
        NORMALISES=eps is not None, REFLECTS=reflect, FRAMES_OUT=frames + front + back,
    )  # fmt: skip
    return out


TRITON = Ops("triton", residual_norm, normalise_heads, gate_heads, gelu, quantise, pad)


def _each_row(x: Tensor, gelu: bool, quantise: bool) -> Tensor | Rows:
    x = x.contiguous()
    width = x.shape[-1]
    values, rows = _empty(x, quantise)
    _pointwise[(x.numel() // width,)](
        x, values, x if rows is None else rows, DIM=width, **_shape(width), GELU=gelu, QUANTISE=quantise
    )
    return _result(values, rows)


def _empty(like: Tensor, quantise: bool) -> tuple[Tensor, Tensor | None]:
    if not quantise:
        return torch.empty_like(like), None
    return torch.empty_like(like, dtype=FP8), like.new_empty(*like.shape[:-1], 1, dtype=torch.float32)


def _result(values: Tensor, rows: Tensor | None) -> Tensor | Rows:
    return values if rows is None else Rows(values, rows)


def _strides(modulation: Tensor | None) -> tuple[int, int]:
    """Distances between rows and between levels of [R, U, D]; 0 where there is only one."""
    if modulation is None:
        return 0, 0
    assert modulation.stride(-1) == 1
    rows, levels, _ = modulation.shape
    return (modulation.stride(0) if rows > 1 else 0, modulation.stride(1) if levels > 1 else 0)


def _shape(width: int) -> dict[str, int]:
    return {"BLOCK": triton.next_power_of_2(width), "num_warps": _warps(width)}


def _warps(width: int) -> int:
    """Sixteen values a thread, so that a row of 4096 is 8 warps."""
    return min(max(triton.next_power_of_2(width) // 512, 1), 16)
