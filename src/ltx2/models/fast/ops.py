"""The work between the matrix products, fused into few operations: plain PyTorch here, Triton in `kernels`.

Both compute in float32 and round once, where eager Diffusers rounds after every step. `h`, `x`, `y` are [B, T, D];
modulations are [R, U, D] with R = 1 or B rows and U distinct timesteps; `index` [T] int32 says which of them each
token has (None: all have the first). With `quantise` a result is `Rows`, ready for a row-wise FP8 product; where its
readers differ, `Reads` says what each wants.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ltx2.models.precision import E4M3_MAX, FP8, SMALLEST, quantise_rows

log = logging.getLogger(__name__)


class Affine(NamedTuple):
    """A modulation n * (1 + scale) + shift, both [R, U, D]."""

    scale: Tensor
    shift: Tensor


class Rows(NamedTuple):
    """A tensor in e4m3 with one scale a row: value = values * scales; values [..., D], scales [..., 1] float32.

    `plain` is the tensor itself [..., D], where some reader wants it.
    """

    values: Tensor
    scales: Tensor
    plain: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Rows:
        """The same of every part."""
        return Rows(change(self.values), change(self.scales), None if self.plain is None else change(self.plain))


class Reads(IntEnum):
    """What a reader wants: a tensor, `Rows`, or `Rows` with the tensor."""

    TENSOR = 0
    ROWS = 1
    BOTH = 2


class Table(NamedTuple):
    """Split RoPE for a sequence: cosines and sines [T, H, d/2] float32 for H heads of d channels."""

    cos: Tensor
    sin: Tensor


class Heads(NamedTuple):
    """Queries, keys and values [B, T, H*d] in e4m3, and the scale of every head of each: [B, H] float32."""

    q: Tensor
    k: Tensor
    v: Tensor
    scales: tuple[Tensor, Tensor, Tensor]


_HOPPER = 9
Pair = tuple[Tensor, Tensor]
"""Of queries and of keys."""
Update = tuple[Tensor, Tensor | None]
"""What is added to the residual stream: y and its gate [R, U, D] (None: 1)."""


class ResidualNorm(Protocol):
    def __call__(
        self,
        h: Tensor,
        update: Update | None,
        targets: Sequence[Affine | None],
        index: Tensor | None,
        eps: float,
        reads: Reads | bool | Sequence[Reads] = False,
    ) -> tuple[Tensor, tuple[Tensor | Rows, ...]]: ...


class NormaliseHeads(Protocol):
    def __call__(self, x: Tensor, weight: Tensor, table: Table | None, heads: int, eps: float) -> Tensor: ...


class NormalisePair(Protocol):
    def __call__(
        self, q: Tensor, k: Tensor, weights: Pair, table: Table, heads: int, eps: float
    ) -> tuple[Tensor, Tensor]: ...


class QuantiseHeads(Protocol):
    def __call__(
        self, qkv: tuple[Tensor, Tensor, Tensor], weights: Pair, scales: Pair, table: Table, heads: int, eps: float
    ) -> Heads: ...


class LinearGelu(Protocol):
    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor: ...


class GateHeads(Protocol):
    def __call__(self, x: Tensor, logits: Tensor, quantise: bool = False) -> Tensor | Rows: ...


class Pointwise(Protocol):
    def __call__(self, x: Tensor, quantise: bool = False) -> Tensor | Rows: ...


class Quantise(Protocol):
    def __call__(self, x: Tensor) -> Rows: ...


class Pad(Protocol):
    def __call__(
        self, x: Tensor, eps: float | None, front: int, back: int, reflect: bool, before: Tensor | None = None
    ) -> Tensor: ...


@dataclass(frozen=True)
class Ops:
    """One implementation of all; without `linear_gelu` a linear layer and its GELU are two steps."""

    name: str
    residual_norm: ResidualNorm
    normalise_heads: NormaliseHeads
    normalise_pair: NormalisePair
    quantise_heads: QuantiseHeads
    linear_gelu: LinearGelu | None
    gate_heads: GateHeads
    gelu: Pointwise
    quantise: Quantise
    pad: Pad


def residual_norm(
    h: Tensor,
    update: Update | None,
    targets: Sequence[Affine | None],
    index: Tensor | None,
    eps: float,
    reads: Reads | bool | Sequence[Reads] = False,
) -> tuple[Tensor, tuple[Tensor | Rows, ...]]:
    """h + gate * y, and its RMS norm under each of up to two modulations (None: the bare norm).

    Returns the new h (h itself without an update) and for every target what its reader `reads`, one word for all or one
    for each.
    """
    if update:
        y, gate = update
        wide = h.float() + y.float() if gate is None else torch.addcmul(h.float(), y.float(), spread(gate, index))
        h = wide.to(h.dtype)
    if not targets:
        return h, ()
    normal = functional.rms_norm(h.float(), h.shape[-1:], eps=eps)
    results = (
        normal
        if affine is None
        else torch.addcmul(spread(affine.shift, index), normal, 1 + spread(affine.scale, index))
        for affine in targets
    )
    wanted = each_reads(reads, len(targets))
    return h, tuple(_finish(result, h.dtype, one) for result, one in zip(results, wanted, strict=True))


def normalise_heads(x: Tensor, weight: Tensor, table: Table | None, heads: int, eps: float) -> Tensor:
    """RMS norm over all heads' channels with `weight` [D], then split RoPE, written over `x`, which is returned.

    `x` may be a part of a wider projection: its last dimension is dense, its rows need not be.
    """
    result = functional.rms_norm(x.float(), (x.shape[-1],), weight.float(), eps)
    if table is None:
        return x.copy_(result)
    first, second = result.unflatten(-1, (heads, 2, -1)).unbind(-2)
    into = x.unflatten(-1, (heads, 2, -1))
    into[..., 0, :] = torch.addcmul(first * table.cos, second, table.sin, value=-1)
    into[..., 1, :] = torch.addcmul(second * table.cos, first, table.sin)
    return x


def normalise_pair(q: Tensor, k: Tensor, weights: Pair, table: Table, heads: int, eps: float) -> tuple[Tensor, Tensor]:
    """Queries and keys of one sequence, both as `normalise_heads`; in place."""
    return normalise_heads(q, weights[0], table, heads, eps), normalise_heads(k, weights[1], table, heads, eps)


def quantise_heads(
    qkv: tuple[Tensor, Tensor, Tensor], weights: Pair, scales: Pair, table: Table, heads: int, eps: float
) -> Heads:
    """As `normalise_pair`, then e4m3: queries and keys by the `scales` [H] of `norm_scales`, values by the largest of a
    head. All [B, T, H*d] in, which a caller may find changed."""
    q, k = (
        normalise_heads(part.float(), weight, table, heads, eps) for part, weight in zip(qkv[:2], weights, strict=True)
    )
    v = qkv[2].float()
    largest = v.unflatten(-1, (heads, -1)).abs().amax((1, 3)).clamp(min=SMALLEST) / E4M3_MAX
    all_scales = (*(scale.expand(len(q), -1) for scale in scales), largest)
    parts = [
        (part.unflatten(-1, (heads, -1)) / scale[:, None, :, None]).flatten(-2).to(FP8)
        for part, scale in zip((q, k, v), all_scales, strict=True)
    ]
    return Heads(parts[0], parts[1], parts[2], (all_scales[0], all_scales[1], all_scales[2]))


def norm_scales(weight: Tensor, heads: int) -> Tensor:
    """Scales [H] with which no normalised head leaves e4m3, whatever it is: an RMS norm over D channels ends at
    sqrt(D) times its weight [D], and RoPE only turns."""
    bound = weight.float().abs().unflatten(0, (heads, -1)).amax(1) * weight.numel() ** 0.5
    return bound.clamp(min=SMALLEST) / E4M3_MAX


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU, by its tanh approximation, of a linear layer [N, K] of x [..., K]."""
    result = gelu(functional.linear(x, weight, bias))
    assert isinstance(result, Tensor)
    return result


def gate_heads(x: Tensor, logits: Tensor, quantise: bool = False) -> Tensor | Rows:
    """Every head of `x` times 2 * sigmoid of its logit [B, T, H]."""
    gates = 2 * torch.sigmoid(logits.float())
    result = x.float().unflatten(-1, (logits.shape[-1], -1)) * gates.unsqueeze(-1)
    return _finish(result.flatten(-2), x.dtype, quantise)


def gelu(x: Tensor, quantise: bool = False) -> Tensor | Rows:
    """GELU by its tanh approximation."""
    return _finish(functional.gelu(x.float(), approximate="tanh"), x.dtype, quantise)


def quantise(x: Tensor) -> Rows:
    """e4m3 with the largest magnitude of every row at the largest e4m3 value; a value that is not finite stays one."""
    return Rows(*quantise_rows(x))


def pad(x: Tensor, eps: float | None, front: int, back: int, reflect: bool, before: Tensor | None = None) -> Tensor:
    """[B, F, H, W, C] with `front` and `back` more frames, and a border of one pixel, zeros or mirrored.

    First and last frame are repeated; with `before` [B, f, H, W, C] those frames are in front, and `front` is 0. With
    `eps`, RMS norm over the channels and SiLU come first.
    """
    if before is not None:
        x = torch.cat([before, x], 1)
    if eps is not None:
        wide = x.float()
        x = functional.silu(wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    frames = torch.arange(-front, x.shape[1] + back, device=x.device).clamp(0, x.shape[1] - 1)
    x = x[:, frames]
    if not reflect:
        return functional.pad(x, (0, 0, 1, 1, 1, 1))
    rows, columns = (_mirror(size, x.device) for size in x.shape[2:4])
    return x[:, :, rows][:, :, :, columns]


PLAIN = Ops(
    "plain",
    residual_norm,
    normalise_heads,
    normalise_pair,
    quantise_heads,
    linear_gelu,
    gate_heads,
    gelu,
    quantise,
    pad,
)


def choose(device: torch.device) -> Ops:
    """Triton on CUDA from compute capability 8.0 on, else plain PyTorch; says so when a GPU goes without Triton."""
    if device.type != "cuda":
        return PLAIN
    if reason := no_kernels(device):
        _warn_once(f"no Triton kernels: {reason}; plain PyTorch operations are slower")
        return PLAIN
    from ltx2.models.fast.kernels import TRITON

    return TRITON


def no_kernels(device: torch.device) -> str | None:
    """Why a GPU goes without Triton's kernels; None where it does not, and for a CPU, which has no use for them."""
    if device.type != "cuda":
        return None
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    return None


def hopper(device: torch.device) -> bool:
    """Whether a device is a Hopper GPU (compute capability 9)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == _HOPPER


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a GPU the current one of this thread: Triton launches there, wherever its arguments lie."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@cache
def _warn_once(message: str) -> None:
    log.warning(message)


def spread(values: Tensor, index: Tensor | None) -> Tensor:
    """A modulation [R, U, D] as what broadcasts over [B, T, D], in float32."""
    values = values.float()
    return values if index is None or values.shape[1] == 1 else values[:, index.long()]


def each_reads(reads: Reads | bool | Sequence[Reads], count: int) -> tuple[Reads, ...]:
    """A word for each of so many targets."""
    return (Reads(reads),) * count if isinstance(reads, int) else tuple(reads)


def _finish(result: Tensor, dtype: torch.dtype, reads: int) -> Tensor | Rows:
    if reads == Reads.BOTH:
        return quantise(result)._replace(plain=result.to(dtype))
    return quantise(result) if reads else result.to(dtype)


def _mirror(size: int, device: torch.device) -> Tensor:
    place = torch.arange(-1, size + 1, device=device).abs()
    return torch.where(place >= size, 2 * size - 2 - place, place)
