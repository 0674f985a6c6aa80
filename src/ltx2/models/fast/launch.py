"""What all Triton kernels share: storing a row, plainly or in e4m3, and how many threads a row gets."""
# Triton comes with torch for CUDA only, and its launch syntax is beyond the type checker.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ltx2.models.fast.ops import Rows
from ltx2.models.precision import E4M3_MAX, FP8, SMALLEST

LARGEST, LEAST = tl.constexpr(E4M3_MAX), tl.constexpr(SMALLEST)
# Values a thread has of a row: one of 4,096 is eight warps. `speed.py ops` measures others; on two H200s none is faster.
VALUES = 16


@triton.jit
def store(value, out, scales, row, offsets, mask, QUANTISE: tl.constexpr):
    """Store a row as it is, or in e4m3 with its scale."""
    if QUANTISE:
        scale = tl.maximum(tl.max(tl.abs(value)), LEAST) / LARGEST
        tl.store(scales + row, scale)
        value = value / scale
    tl.store(out + offsets, value.to(out.dtype.element_ty), mask=mask)


def empty(like: Tensor, quantise: bool) -> tuple[Tensor, Tensor | None]:
    """Where a kernel writes what is shaped as `like`: values and, quantised, the scales of the rows."""
    if not quantise:
        return torch.empty_like(like), None
    return torch.empty_like(like, dtype=FP8), like.new_empty(*like.shape[:-1], 1, dtype=torch.float32)


def written(values: Tensor, rows: Tensor | None, plain: Tensor | None = None) -> Tensor | Rows:
    """What was written into `empty`, and into a tensor beside it."""
    return values if rows is None else Rows(values, rows, plain)


def warps(width: int) -> int:
    """How many warps a row gets."""
    return min(max(triton.next_power_of_2(width) // (32 * VALUES), 1), 16)
