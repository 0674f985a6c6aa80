"""The elementwise work between the matrix products, fused into six operations: plain PyTorch here, Triton in `kernels`.

Both compute in float32 and round once, where eager Diffusers rounds after every step. `h`, `x`, `y` are [B, T, D];
modulations are [R, U, D] with R = 1 or B rows and U distinct timesteps; `index` [T] int32 says which of them each
token has (None: all have the first). With `quantise` a result is `Rows`, ready for a row-wise FP8 product.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ltx2.models.precision import quantise_rows

log = logging.getLogger(__name__)


class Affine(NamedTuple):
    """A modulation n * (1 + scale) + shift, both [R, U, D]."""

    scale: Tensor
    shift: Tensor


class Rows(NamedTuple):
    """A tensor in e4m3 with one scale a row: value = values * scales; values [..., D], scales [..., 1] float32."""

    values: Tensor
    scales: Tensor


class Table(NamedTuple):
    """Split RoPE for a sequence: cosines and sines [T, H, d/2] float32 for H heads of d channels."""

    cos: Tensor
    sin: Tensor


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
        quantise: bool = False,
    ) -> tuple[Tensor, tuple[Tensor | Rows, ...]]: ...


class NormaliseHeads(Protocol):
    def __call__(self, x: Tensor, weight: Tensor, table: Table | None, heads: int, eps: float) -> Tensor: ...


class GateHeads(Protocol):
    def __call__(self, x: Tensor, logits: Tensor, quantise: bool = False) -> Tensor | Rows: ...


class Pointwise(Protocol):
    def __call__(self, x: Tensor, quantise: bool = False) -> Tensor | Rows: ...


class Quantise(Protocol):
    def __call__(self, x: Tensor) -> Rows: ...


class Pad(Protocol):
    def __call__(self, x: Tensor, eps: float | None, front: int, back: int, reflect: bool) -> Tensor: ...


@dataclass(frozen=True)
class Ops:
    """One implementation of all six."""

    name: str
    residual_norm: ResidualNorm
    normalise_heads: NormaliseHeads
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
    quantise: bool = False,
) -> tuple[Tensor, tuple[Tensor | Rows, ...]]:
    """h + gate * y, and its RMS norm under each of up to two modulations (None: the bare norm).

    Returns the new h (h itself without an update) and a normalised tensor for every target.
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
    return h, tuple(_finish(result, h.dtype, quantise) for result in results)


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


def pad(x: Tensor, eps: float | None, front: int, back: int, reflect: bool) -> Tensor:
    """[B, F, H, W, C] with `front` and `back` more frames, and a border of one pixel, zeros or mirrored.

    First and last frame are repeated. With `eps`, RMS norm over the channels and SiLU come before.
    """
    if eps is not None:
        wide = x.float()
        x = functional.silu(wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    frames = torch.arange(-front, x.shape[1] + back, device=x.device).clamp(0, x.shape[1] - 1)
    x = x[:, frames]
    if not reflect:
        return functional.pad(x, (0, 0, 1, 1, 1, 1))
    rows, columns = (_mirror(size, x.device) for size in x.shape[2:4])
    return x[:, :, rows][:, :, :, columns]


PLAIN = Ops("plain", residual_norm, normalise_heads, gate_heads, gelu, quantise, pad)


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


@cache
def _warn_once(message: str) -> None:
    log.warning(message)


def spread(values: Tensor, index: Tensor | None) -> Tensor:
    """A modulation [R, U, D] as what broadcasts over [B, T, D], in float32."""
    values = values.float()
    return values if index is None or values.shape[1] == 1 else values[:, index.long()]


def _finish(result: Tensor, dtype: torch.dtype, quantised: bool) -> Tensor | Rows:
    return quantise(result) if quantised else result.to(dtype)


def _mirror(size: int, device: torch.device) -> Tensor:
    place = torch.arange(-1, size + 1, device=device).abs()
    return torch.where(place >= size, 2 * size - 2 - place, place)
