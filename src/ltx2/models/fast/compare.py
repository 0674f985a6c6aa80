"""Compares an implementation of the fused operations with the plain one, on shapes that have every branch.

`python -m ltx2.models.fast.compare` prints a line for every case: on CUDA in bfloat16, or, with TRITON_INTERPRET=1, on
the CPU in float32. It exits with 1 when a case differs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ltx2.models.fast.ops import PLAIN, Affine, Heads, Ops, Reads, Rows, Table, norm_scales

# Largest differences, relative to the value itself and to the largest one: sums in another order, and in bfloat16 the one
# step by which a value then rounds to the other side. For quantised rows it is a step of e4m3.
TOLERANCES = {torch.float32: (0.0, 2e-6), torch.bfloat16: (2**-7, 2**-9)}
E4M3_STEP = 2**-3
# Operations whose plain form rounds in between, so that one rounding can be expected of its float32 form only.
ROUNDED_ONCE = ("linear_gelu",)

Verdict = tuple[str, bool]


def compare(
    ops: Ops, device: torch.device, dtype: torch.dtype, tokens: int = 6, heads: int = 3, half: int = 10
) -> list[Verdict]:
    """A line and a verdict for every case of every operation, at `heads` of 2 * `half` channels."""
    verdicts: list[Verdict] = []
    draw = torch.Generator(device).manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=device).to(dtype)

    for quantised in (False, True):
        for name, arguments in _cases(randn, tokens, heads, half, quantised):
            ours = getattr(ops, name.split()[0])(*_copy(arguments))
            wide = name.split()[0] in ROUNDED_ONCE
            theirs = getattr(PLAIN, name.split()[0])(*(one.float() if wide else one for one in _copy(arguments)))
            worst = max(_distance(a, b) for a, b in zip(_flat(ours), _flat(theirs), strict=True))
            good = worst <= 1
            verdicts.append((f"{name}{' fp8' if quantised else ''}: {worst:.3f} of the tolerance", good))
    return verdicts


def _cases(randn: Any, tokens: int, heads: int, half: int, quantised: bool) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Name of an operation, what is special about the case, and the arguments; sizes that are no powers of two."""
    rows, width = 2, 2 * half * heads
    h, y = randn(rows, tokens, width), randn(rows, tokens, width)
    index = torch.arange(tokens, device=h.device, dtype=torch.int32) % 3
    # Modulations are slices of one tensor of all blocks and kinds.
    one, many = randn(rows, 1, 6, width).unbind(2), randn(1, 3, 6, width).unbind(2)
    eps = 1e-6
    yield "residual_norm gate", (h, (y, one[0]), [Affine(one[1], one[2])], None, eps, quantised)
    yield "residual_norm levels", (h, (y, many[0]), [Affine(many[1], many[2])], index, eps, quantised)
    two = [Affine(many[1], many[2]), Affine(many[3], many[4])]
    yield "residual_norm two", (h, (y, one[0]), two, index, eps, quantised)
    if quantised:
        each = (Reads.BOTH, Reads.TENSOR)
        yield "residual_norm both", (h, (y, one[0]), two, index, eps, each)
        yield "residual_norm rows", (h, (y, one[0]), two, index, eps, each[::-1])
    yield "residual_norm bare", (h, (y, None), [None], None, eps, quantised)
    yield "residual_norm enter", (h, None, [Affine(one[1], one[2])], None, eps, quantised)
    yield "gelu", (randn(rows, tokens, width) * 3, quantised)
    packed = randn(rows, tokens, 3 * width + heads)
    yield "gate_heads", (randn(rows, tokens, width), packed[..., 3 * width :], quantised)
    if quantised:
        yield "quantise", (randn(rows, tokens, width),)
        return
    picture = randn(2, 3, 4, 5, width)
    yield "pad norm", (picture, 1e-8, 2, 0, True)
    yield "pad zeros", (picture, 1e-8, 1, 1, False)
    yield "pad bare", (picture, None, 1, 1, True)
    yield "pad later", (picture, 1e-8, 0, 1, True, randn(2, 2, 4, 5, width))
    yield "residual_norm last", (h, (y, one[0]), [], None, eps, False)
    angles = torch.rand(tokens, heads, half, device=h.device) * 6
    weight, table = 1 + randn(width) / 8, Table(angles.cos(), angles.sin())
    yield "normalise_heads turn", (packed[..., width : 2 * width], weight, table, heads, eps)
    yield "normalise_heads bare", (packed[..., :width], weight, None, heads, eps)
    parts, weights = packed[..., : 3 * width].split(width, -1), (weight, weight.flip(0))
    yield "normalise_pair", (*parts[:2], weights, table, heads, eps)
    scales = (norm_scales(weights[0], heads), norm_scales(weights[1], heads))
    # More tokens than one program looks at for the largest value.
    many = tokens + 16
    parts, angles = randn(rows, many, 3 * width).split(width, -1), torch.rand(many, heads, half, device=h.device) * 6
    yield "quantise_heads", (parts, weights, scales, Table(angles.cos(), angles.sin()), heads, eps)
    layer = randn(5, width) / width**0.5
    yield "linear_gelu", (h, layer, randn(5))


def _distance(ours: Tensor | Rows, theirs: Tensor | Rows) -> float:
    """Largest difference as a part of what is allowed; infinite when something is not finite."""
    if isinstance(ours, Rows) and isinstance(theirs, Rows):
        spread = theirs.values.float().abs() * theirs.scales * E4M3_STEP + theirs.scales * 2**-9
        difference = (ours.values.float() * ours.scales - theirs.values.float() * theirs.scales).abs() / spread
        if theirs.values.device.type == "cpu":
            # Triton's interpreter (3.6) forgets the carry where rounding reaches the next power of two; GPUs do not.
            difference = difference[theirs.values.float().frexp().mantissa.abs() != 0.5]
        # Values at the border of two e4m3 numbers may fall to either side, but few do.
        flipped = float((difference > 0.01).float().mean())
        worst = max(float(difference.max()), flipped / 0.02)
    else:
        assert isinstance(ours, Tensor) and isinstance(theirs, Tensor)
        (own, largest), size = TOLERANCES[ours.dtype], theirs.float().abs()
        worst = float(((ours.float() - theirs.float()).abs() / (own * size + largest * size.max())).max())
    return worst if worst == worst else float("inf")


def _flat(result: Any) -> list[Tensor | Rows]:
    if isinstance(result, Rows) and result.plain is not None:
        return [result._replace(plain=None), result.plain]
    if isinstance(result, Tensor | Rows):
        return [result]
    if isinstance(result, Heads):
        heads = result.scales[0].shape[1]
        return [
            Rows(part.unflatten(-1, (heads, -1)), scale[:, None, :, None])
            for part, scale in zip(result[:3], result.scales, strict=True)
        ]
    return [part for item in result for part in _flat(item)]


def _copy(value: Any) -> Any:
    """Arguments with the storage of every tensor its own, strides kept: one operation works in place."""
    if isinstance(value, Tensor):
        room = value.new_empty(value.untyped_storage().nbytes() // value.element_size())
        room.copy_(torch.as_strided(value, (len(room),), (1,), 0))
        return torch.as_strided(room, value.shape, value.stride(), value.storage_offset())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_copy(item) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(_copy(item) for item in value)
    return value


def main() -> int:
    from ltx2.models.fast.kernels import TRITON

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    verdicts = compare(TRITON, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    for line, good in verdicts:
        print(line, "ok" if good else "WRONG")
    return 0 if all(good for _, good in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
