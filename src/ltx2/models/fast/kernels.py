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

from ltx2.models.fast import cublas, ops
from ltx2.models.fast import head_kernels as heads
from ltx2.models.fast.launch import empty, store, warps, written
from ltx2.models.fast.ops import Affine, Ops, Reads, Rows, Update, each_reads


@triton.jit
def _residual_norm(
    h, y, gate, index, out,
    scale_0, shift_0, normal_0, rows_0, plain_0, scale_1, shift_1, normal_1, rows_1, plain_1,
    tokens, gate_row, gate_level, row_0, level_0, row_1, level_1, eps,
    DIM: tl.constexpr, BLOCK: tl.constexpr, ADDS: tl.constexpr, GATED: tl.constexpr, INDEXED: tl.constexpr,
    TARGETS: tl.constexpr, AFFINE_0: tl.constexpr, AFFINE_1: tl.constexpr, READS_0: tl.constexpr, READS_1: tl.constexpr,
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
        if READS_0 > 1:
            tl.store(plain_0 + place, result.to(plain_0.dtype.element_ty), mask=mask)
        store(result, normal_0, rows_0, row, place, mask, READS_0 > 0)
        if TARGETS > 1:
            result = normal
            if AFFINE_1:
                at = batch * row_1 + level * level_1 + column
                result = normal * (1.0 + tl.load(scale_1 + at, mask=mask, other=0.0).to(tl.float32))
                result += tl.load(shift_1 + at, mask=mask, other=0.0).to(tl.float32)
            if READS_1 > 1:
                tl.store(plain_1 + place, result.to(plain_1.dtype.element_ty), mask=mask)
            store(result, normal_1, rows_1, row, place, mask, READS_1 > 0)


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
    store(value, out, scales, row, place, mask, QUANTISE)


@triton.jit
def _pad(
    x, before, out, positions, frames, frames_out, height, width, front, eps,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, NORMALISES: tl.constexpr, REFLECTS: tl.constexpr,
    CONTINUES: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (place < positions) & (column < CHANNELS)
    x_out = place % (width + 2)
    y_out = (place // (width + 2)) % (height + 2)
    frame_out = (place // (width + 2) // (height + 2)) % frames_out
    batch = place // (width + 2) // (height + 2) // frames_out
    frame = tl.minimum(tl.maximum(frame_out - front, 0), frames - 1)
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
    if CONTINUES:
        # The first `front` frames come from elsewhere.
        earlier = frame_out < front
        value = tl.load(x + source * CHANNELS + column, mask=mask & (frame_out >= front), other=0.0).to(tl.float32)
        source = ((batch * front + frame_out) * height + from_y) * width + from_x
        value += tl.load(before + source * CHANNELS + column, mask=mask & earlier, other=0.0).to(tl.float32)
    else:
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
    reads: Reads | bool | Sequence[Reads] = False,
) -> tuple[Tensor, tuple[Tensor | Rows, ...]]:
    """As `ops.residual_norm`, in one kernel."""
    batches, tokens, width = h.shape
    h = h.contiguous()
    y, gate = (update[0].contiguous(), update[1]) if update else (h, None)
    out = torch.empty_like(h) if update else h
    wanted = each_reads(reads, len(targets))
    results = [(*empty(h, one > 0), torch.empty_like(h) if one == Reads.BOTH else None) for one in wanted]
    arguments: list[Any] = []
    strides = [*_strides(gate)]
    for place in range(2):
        affine = targets[place] if place < len(targets) else None
        values, rows, plain = results[place] if place < len(results) else (h, None, None)
        scale, shift = affine or (h, h)
        assert scale.stride() == shift.stride()
        arguments += [scale, shift, values, h if rows is None else rows, h if plain is None else plain]
        strides += _strides(affine.scale if affine else None)
    indexed = index is not None
    _residual_norm[(batches * tokens,)](
        h, y, h if gate is None else gate, index if indexed else h, out, *arguments, tokens, *strides, eps,
        DIM=width, **_shape(width), ADDS=update is not None, GATED=gate is not None, INDEXED=indexed,
        TARGETS=len(targets), AFFINE_0=bool(targets) and targets[0] is not None,
        AFFINE_1=len(targets) > 1 and targets[1] is not None, READS_0=int(wanted[0]) if wanted else 0,
        READS_1=int(wanted[1]) if len(wanted) > 1 else 0,
    )  # fmt: skip
    return out, tuple(written(*result) for result in results)


def gelu(x: Tensor, quantise: bool = False) -> Tensor | Rows:
    """As `ops.gelu`, in one kernel."""
    return _each_row(x, True, quantise)


def quantise(x: Tensor) -> Rows:
    """As `ops.quantise`, in one kernel."""
    result = _each_row(x, False, True)
    assert isinstance(result, Rows)
    return result


def pad(x: Tensor, eps: float | None, front: int, back: int, reflect: bool, before: Tensor | None = None) -> Tensor:
    """As `ops.pad`, in one kernel."""
    x = x.contiguous()
    batch, frames, height, width, channels = x.shape
    if before is not None:
        before, front = before.contiguous(), before.shape[1]
    out = x.new_empty(batch, frames + front + back, height + 2, width + 2, channels)
    positions, block = out.numel() // channels, triton.next_power_of_2(channels)
    rows = max(2048 // block, 1)
    _pad[(triton.cdiv(positions, rows),)](
        x, x if before is None else before, out, positions, frames, out.shape[1], height, width, front, eps or 0.0,
        CHANNELS=channels, BLOCK=block, ROWS=rows, NORMALISES=eps is not None, REFLECTS=reflect,
        CONTINUES=before is not None,
    )  # fmt: skip
    return out


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As `ops.linear_gelu`; in bf16 on CUDA the product's own last step (cuBLASLt's GELU, the tanh form) in float32."""
    if x.device.type != "cuda" or x.dtype != torch.bfloat16:
        return ops.linear_gelu(x, weight, bias)
    if (chosen := cublas.linear(x, weight, bias, gelu=True)) is not None:
        return chosen
    return torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True).unflatten(0, x.shape[:-1])


TRITON = Ops(
    "triton", residual_norm, heads.normalise_heads, heads.normalise_pair, heads.quantise_heads, linear_gelu,
    heads.gate_heads, gelu, quantise, pad,
)  # fmt: skip


def _each_row(x: Tensor, gelu: bool, quantise: bool) -> Tensor | Rows:
    x = x.contiguous()
    width = x.shape[-1]
    values, rows = empty(x, quantise)
    _pointwise[(x.numel() // width,)](
        x, values, x if rows is None else rows, DIM=width, **_shape(width), GELU=gelu, QUANTISE=quantise
    )
    return written(values, rows)


def _strides(modulation: Tensor | None) -> tuple[int, int]:
    """Distances between rows and between levels of [R, U, D]; 0 where there is only one."""
    if modulation is None:
        return 0, 0
    assert modulation.stride(-1) == 1
    rows, levels, _ = modulation.shape
    return (modulation.stride(0) if rows > 1 else 0, modulation.stride(1) if levels > 1 else 0)


def _shape(width: int) -> dict[str, int]:
    return {"BLOCK": triton.next_power_of_2(width), "num_warps": warps(width)}
