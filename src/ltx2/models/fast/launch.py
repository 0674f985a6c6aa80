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
    """Sixteen values a thread, so that a row of 4096 is 8 warps."""
    return min(max(triton.next_power_of_2(width) // 512, 1), 16)
