"""Triton kernels of the operations on attention heads in `ops`: norm and RoPE of queries and keys, gates, and e4m3.

One program for every token, its whole row in registers; only the largest value of a head is sought over many tokens.
"""
# Triton comes with torch for CUDA only, and its launch syntax is beyond the type checker.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ltx2.models.fast.launch import LARGEST, LEAST, empty, store, warps, written
from ltx2.models.fast.ops import Heads, Pair, Rows, Table
from ltx2.models.precision import FP8

# Tokens that one program looks at for the largest value of every head.
TOKENS = 16


@triton.jit
def _halves(x, offset, mask, HALF: tl.constexpr):
    """The first and the second half of every head of one token, whose row begins at `x`, in float32."""
    first = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
    return first, tl.load(x + offset + HALF, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _normalise(
    first, second, weight, out, scales, offset, head, mask, c, s, eps,
    DIM: tl.constexpr, HALF: tl.constexpr, ROTATES: tl.constexpr, QUANTISE: tl.constexpr,
):  # fmt: skip
    """One token's halves into the row that begins at `out`."""
    factor = tl.rsqrt(tl.sum(first * first + second * second) / DIM + eps)
    first *= factor * tl.load(weight + offset, mask=mask, other=0.0).to(tl.float32)
    second *= factor * tl.load(weight + offset + HALF, mask=mask, other=0.0).to(tl.float32)
    if ROTATES:
        turned = first * c - second * s
        second = second * c + first * s
        first = turned
    if QUANTISE:
        scale = tl.load(scales + head, mask=head < DIM // (2 * HALF), other=1.0)
        first /= scale
        second /= scale
    tl.store(out + offset, first.to(out.dtype.element_ty), mask=mask)
    tl.store(out + offset + HALF, second.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _normalise_heads(
    x_0, weight_0, out_0, scales_0, x_1, weight_1, out_1, scales_1, cos, sin, batches,
    batch_0, token_0, batch_1, token_1, out_batch_0, out_token_0, out_batch_1, out_token_1, eps,
    DIM: tl.constexpr, HALF: tl.constexpr, ROTATES: tl.constexpr, PAIR: tl.constexpr, QUANTISE: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    # Rows of one token in all batches run side by side, so that they share the token's table in the cache.
    token = (tl.program_id(0) // batches).to(tl.int64)
    batch = (tl.program_id(0) % batches).to(tl.int64)
    head = tl.arange(0, BLOCK_HEADS)[:, None]
    column = tl.arange(0, BLOCK_HALF)[None, :]
    mask = (head < DIM // (2 * HALF)) & (column < HALF)
    offset = head * (2 * HALF) + column
    # All that is read is asked for before the first sum is waited for.
    first_0, second_0 = _halves(x_0 + batch * batch_0 + token * token_0, offset, mask, HALF)
    if PAIR:
        first_1, second_1 = _halves(x_1 + batch * batch_1 + token * token_1, offset, mask, HALF)
    if ROTATES:
        at = token * (DIM // 2) + head * HALF + column
        c = tl.load(cos + at, mask=mask, other=0.0)
        s = tl.load(sin + at, mask=mask, other=0.0)
    else:
        c = 1.0
        s = 0.0
    _normalise(
        first_0, second_0, weight_0, out_0 + batch * out_batch_0 + token * out_token_0, scales_0,
        offset, head, mask, c, s, eps, DIM, HALF, ROTATES, QUANTISE,
    )  # fmt: skip
    if PAIR:
        _normalise(
            first_1, second_1, weight_1, out_1 + batch * out_batch_1 + token * out_token_1, scales_1,
            offset, head, mask, c, s, eps, DIM, HALF, ROTATES, QUANTISE,
        )  # fmt: skip


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
    store(value, out, scales, row, place, mask, QUANTISE)


@triton.jit
def _largest(
    x, out, tokens, batch_stride, token_stride,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    head = tl.arange(0, BLOCK_HEADS)[:, None]
    column = tl.arange(0, BLOCK_WIDTH)[None, :]
    mask = (head < HEADS) & (column < WIDTH)
    most = tl.zeros((BLOCK_HEADS, BLOCK_WIDTH), tl.float32)
    for number in range(TOKENS):
        token = tl.program_id(0) * TOKENS + number
        start = x + batch * batch_stride + token.to(tl.int64) * token_stride
        # As a block: Triton's interpreter (3.6) knows no `&` of a block and a single value.
        inside = mask & (column + token < column + tokens)
        value = tl.load(start + head * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
        most = tl.maximum(most, tl.abs(value))
    heads = tl.arange(0, BLOCK_HEADS)
    # Bits of floats that are not negative are in the order of the floats; whoever comes last, the largest stays.
    bits = tl.max(most, axis=1).to(tl.int32, bitcast=True)
    tl.atomic_max(out + batch * HEADS + heads, bits, mask=heads < HEADS)


@triton.jit
def _quantise_heads(
    x, out, largest, scales, batches, batch_stride, token_stride, out_batch,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    token = (tl.program_id(0) // batches).to(tl.int64)
    batch = (tl.program_id(0) % batches).to(tl.int64)
    head = tl.arange(0, BLOCK_HEADS)[:, None]
    column = tl.arange(0, BLOCK_WIDTH)[None, :]
    mask = (head < HEADS) & (column < WIDTH)
    most = tl.load(largest + batch * HEADS + head, mask=head < HEADS, other=1.0)
    scale = tl.maximum(most, LEAST) / LARGEST
    if token == 0:
        tl.store(scales + batch * HEADS + head, scale, mask=head < HEADS)
    place = head * WIDTH + column
    value = tl.load(x + batch * batch_stride + token * token_stride + place, mask=mask, other=0.0).to(tl.float32)
    value = value / scale
    tl.store(out + batch * out_batch + token * (HEADS * WIDTH) + place, value.to(out.dtype.element_ty), mask=mask)


def normalise_heads(x: Tensor, weight: Tensor, table: Table | None, heads: int, eps: float) -> Tensor:
    """As `ops.normalise_heads`, in one kernel; in place."""
    _normalised([(x, weight, x, weight)], table, heads, eps)
    return x


def normalise_pair(q: Tensor, k: Tensor, weights: Pair, table: Table, heads: int, eps: float) -> tuple[Tensor, Tensor]:
    """As `ops.normalise_pair`, in one kernel, which reads the table once; in place."""
    _normalised([(q, weights[0], q, weights[0]), (k, weights[1], k, weights[1])], table, heads, eps)
    return q, k


def quantise_heads(
    qkv: tuple[Tensor, Tensor, Tensor], weights: Pair, scales: Pair, table: Table, heads: int, eps: float
) -> Heads:
    """As `ops.quantise_heads`: queries and keys in one kernel, and values in two."""
    q, k, v = (torch.empty(part.shape, dtype=FP8, device=part.device) for part in qkv)
    _normalised(
        [(qkv[0], weights[0], q, scales[0]), (qkv[1], weights[1], k, scales[1])], table, heads, eps, quantise=True
    )
    return Heads(q, k, v, (*(scale.expand(len(q), -1) for scale in scales), _quantised(qkv[2], v, heads)))


def _quantised(x: Tensor, out: Tensor, heads: int) -> Tensor:
    """The values in e4m3 into `out`; their scales [B, H]."""
    batches, tokens, dim = x.shape
    assert x.stride(-1) == 1
    width = dim // heads
    shape = {
        "HEADS": heads, "WIDTH": width, "BLOCK_HEADS": triton.next_power_of_2(heads),
        "BLOCK_WIDTH": triton.next_power_of_2(width), "num_warps": warps(dim),
    }  # fmt: skip
    largest = torch.zeros(batches, heads, dtype=torch.int32, device=x.device)
    scales = torch.empty(batches, heads, dtype=torch.float32, device=x.device)
    _largest[(triton.cdiv(tokens, TOKENS), batches)](
        x, largest, tokens, x.stride(0), x.stride(1), TOKENS=TOKENS, **shape
    )
    _quantise_heads[(batches * tokens,)](
        x, out, largest.view(torch.float32), scales, batches, x.stride(0), x.stride(1), tokens * dim, **shape
    )
    return scales


def gate_heads(x: Tensor, logits: Tensor, quantise: bool = False) -> Tensor | Rows:
    """As `ops.gate_heads`, in one kernel."""
    x = x.contiguous()
    heads, width = logits.shape[-1], x.shape[-1] // logits.shape[-1]
    # The logits are the last columns of a wider projection, whose rows lie at equal distances over all batches.
    assert logits.stride(0) == logits.stride(1) * logits.shape[1] or len(logits) == 1
    values, rows = empty(x, quantise)
    _gate_heads[(x.shape[0] * x.shape[1],)](
        x, logits, values, x if rows is None else rows, logits.stride(1), HEADS=heads, WIDTH=width,
        BLOCK_HEADS=triton.next_power_of_2(heads), BLOCK_WIDTH=triton.next_power_of_2(width), QUANTISE=quantise,
        num_warps=warps(x.shape[-1]),
    )  # fmt: skip
    return written(values, rows)


def _normalised(
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]],
    table: Table | None,
    heads: int,
    eps: float,
    quantise: bool = False,
) -> None:
    """One or two of (x [B, T, D], weight [D], where it goes, scales [H])."""
    batches, tokens, width = parts[0][0].shape
    half = width // heads // 2
    assert all(part.stride(-1) == 1 for x, _, out, _ in parts for part in (x, out))
    both = [parts[0], parts[-1]]
    cos, sin = table or (parts[0][0], parts[0][0])
    inputs: list[Any] = [pointer for part in both for pointer in part]
    strides = [tensor.stride(n) for place in (0, 2) for part in both for tensor in [part[place]] for n in (0, 1)]
    _normalise_heads[(batches * tokens,)](
        *inputs, cos, sin, batches, *strides, eps, DIM=width, HALF=half, ROTATES=table is not None,
        PAIR=len(parts) > 1, QUANTISE=quantise, BLOCK_HEADS=triton.next_power_of_2(heads),
        BLOCK_HALF=triton.next_power_of_2(half), num_warps=warps(width),
    )  # fmt: skip
