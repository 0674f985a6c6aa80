"""Several linear layers of the same input as one product: queries, keys, values and gate logits in one go.

The weights are joined once and the layers' parameters become views of the joined tensor: nothing is held twice, the
state dict and the slow path see the same values, and a LoRA merged in place shows in both. Layers that cannot be joined
(of mixed kinds, or wrapped by something) are simply called one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from ltx2.models.fast import cublas
from ltx2.models.fast.ops import Ops, Reads, Rows
from ltx2.models.lora import LowRank
from ltx2.models.precision import Fp8Linear, runs_on_units
from ltx2.models.precision import product as multiply

Additions = tuple[tuple[Tensor, Tensor, float], ...]


class Projection(Protocol):
    """One input [..., K] to the outputs of several layers, as views of one tensor where that is possible."""

    @property
    def reads(self) -> Reads:
        """What it reads at best; a tensor will always do."""
        ...

    def __call__(self, x: Tensor | Rows, ops: Ops, first: int = 0) -> tuple[Tensor, ...]:
        """Outputs of the layers from number `first` on."""
        ...


@dataclass(frozen=True)
class Joined:
    """bf16 or float32 layers: weight [N, K], bias [N] or None, sizes of the layers in order."""

    weight: Tensor
    bias: Tensor | None
    sizes: tuple[int, ...]
    reads: Reads = Reads.TENSOR

    def __call__(self, x: Tensor | Rows, ops: Ops, first: int = 0) -> tuple[Tensor, ...]:
        skip = sum(self.sizes[:first])
        bias = self.bias if self.bias is None else self.bias[skip:]
        return linear(_plain(x), self.weight[skip:], bias).split(self.sizes[first:], dim=-1)


@dataclass(frozen=True)
class JoinedRows:
    """Row-wise FP8 layers: weight [N, K] e4m3 with scale [N] float32; the input is quantised a row at a time."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    sizes: tuple[int, ...]
    dtype: torch.dtype
    reads: Reads = Reads.ROWS

    def __call__(self, x: Tensor | Rows, ops: Ops, first: int = 0) -> tuple[Tensor, ...]:
        rows = x if isinstance(x, Rows) else ops.quantise(x)
        skip = sum(self.sizes[:first])
        bias = self.bias if self.bias is None else self.bias[skip:]
        weight, scale = self.weight[skip:], self.scale[skip:]
        product = None
        if self.dtype == torch.bfloat16:
            product = cublas.linear(rows.values, weight, bias, scales=(rows.scales, scale))
        if product is None:
            product = multiply(rows.values, rows.scales, weight, scale, bias, self.dtype)
        return product.split(self.sizes[first:], dim=-1)


@dataclass(frozen=True)
class Loose:
    """Layers called one by one, whatever they are."""

    layers: tuple[nn.Module, ...]
    reads: Reads = Reads.TENSOR

    def __call__(self, x: Tensor | Rows, ops: Ops, first: int = 0) -> tuple[Tensor, ...]:
        return tuple(layer(_plain(x)) for layer in self.layers[first:])


@dataclass(frozen=True)
class Grouped:
    """Groups of layers of different kinds, as gate logits in bf16 beside queries, keys and values in FP8."""

    groups: tuple[Projection, ...]
    counts: tuple[int, ...]

    @property
    def reads(self) -> Reads:
        return _all([group.reads for group in self.groups])

    def __call__(self, x: Tensor | Rows, ops: Ops, first: int = 0) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = ()
        for group, count in zip(self.groups, self.counts, strict=True):
            if first < count:
                results += group(x, ops, max(first, 0))
            first -= count
        return results


@dataclass(frozen=True)
class Added:
    """A projection and the run-time LoRAs of its layers: (A [rank, K], B [n, rank], strength) for some of them."""

    base: Projection
    additions: tuple[Additions, ...]

    @property
    def reads(self) -> Reads:
        return _all([self.base.reads, Reads.TENSOR])

    def __call__(self, x: Tensor | Rows, ops: Ops, first: int = 0) -> tuple[Tensor, ...]:
        results = list(self.base(x, ops, first))
        x = _plain(x)
        rows = x.flatten(0, -2)
        for number, additions in enumerate(self.additions[first:]):
            for down, up, strength in additions:
                low = rows @ down.to(x.dtype).t()
                flat = torch.addmm(results[number].flatten(0, -2), low, up.to(x.dtype).t(), alpha=strength)
                results[number] = flat.unflatten(0, x.shape[:-1])
        return tuple(results)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., K] times weight [N, K], plus bias [N]."""
    chosen = cublas.linear(x, weight, bias)
    return functional.linear(x, weight, bias) if chosen is None else chosen


def project(layers: Sequence[nn.Module]) -> Projection:
    """The fastest exact form for these layers of one input."""
    if any(isinstance(layer, LowRank) for layer in layers):
        bases = [layer.base if isinstance(layer, LowRank) else layer for layer in layers]
        return Added(project(bases), tuple(layer.additions if isinstance(layer, LowRank) else () for layer in layers))
    runs = [list(run) for _, run in groupby(layers, key=_kind)]
    if len(runs) > 1:
        return Grouped(tuple(_joined(run) for run in runs), tuple(len(run) for run in runs))
    return _joined(runs[0])


def _all(reads: Sequence[Reads]) -> Reads:
    """What satisfies several readers of the same."""
    return reads[0] if len(set(reads)) == 1 else Reads.BOTH


def _plain(x: Tensor | Rows) -> Tensor:
    if isinstance(x, Tensor):
        return x
    assert x.plain is not None, "its readers were asked what they read"
    return x.plain


def _kind(layer: Any) -> str:
    if _hooked(layer):
        return "other"
    if type(layer) is nn.Linear:
        return f"linear {layer.weight.dtype}"
    return "fp8" if _in_rows(layer) else "other"


def _joined(layers: list[Any]) -> Projection:
    """Layers of one kind."""
    kind = _kind(layers[0])
    if kind == "other" or len({layer.weight.device for layer in layers}) > 1:
        return Loose(tuple(layers))
    sizes, bias = tuple(layer.weight.shape[0] for layer in layers), None
    if any(layer.bias is not None for layer in layers):
        bias = _join([_bias(layer) for layer in layers])
    weight = _join([layer.weight for layer in layers])
    if kind != "fp8":
        return Joined(weight, bias, sizes)
    dtype = torch.bfloat16 if bias is None else bias.dtype
    return JoinedRows(weight, _join([layer.scale for layer in layers]), bias, sizes, dtype)


def _in_rows(layer: Any) -> bool:
    """Whether a layer quantises its input; elsewhere than on a GPU's FP8 units it does not."""
    if not isinstance(layer, Fp8Linear) or layer.static:
        return False
    weight = layer.weight
    return (
        weight.device.type == "cuda"
        and runs_on_units(weight)
        and torch.cuda.get_device_capability(weight.device) >= (8, 9)
    )


def _hooked(layer: Any) -> bool:
    return bool(layer._forward_pre_hooks or layer._forward_hooks)


def _bias(layer: Any) -> Tensor:
    return layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias


def _join(parts: list[Tensor]) -> Tensor:
    """The parts as one tensor along their first dimension; parts that are not yet neighbours in memory are moved."""
    if len(parts) == 1:
        return parts[0].detach()
    if _neighbours(parts):
        first = parts[0].detach()
        return first.as_strided((sum(len(part) for part in parts), *first.shape[1:]), first.stride())
    # In the mode that the weights were made in: what changes them in place later may not be in inference mode.
    with torch.inference_mode(parts[0].is_inference()), torch.no_grad():
        whole = torch.cat([part.detach() for part in parts])
        for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
            part.data = view
    return whole


def _neighbours(parts: list[Tensor]) -> bool:
    """Whether each part begins where the one before ends, in one storage."""
    end, storage = parts[0].data_ptr(), parts[0].untyped_storage().data_ptr()
    for part in parts:
        if part.data_ptr() != end or part.untyped_storage().data_ptr() != storage or not part.is_contiguous():
            return False
        end += part.numel() * part.element_size()
    return True
