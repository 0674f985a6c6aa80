"""Official LoRA files: read, mapped to Diffusers' names, and merged into weights by the official rule or added at run time.

Merged costs nothing while it is used, but keeps the originals of all touched weights. Added costs two thin products for
every layer, works on quantised weights, and is switched by exchanging modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ltx2.models.header import Entry, read_header
from ltx2.models.precision import Fp8Linear
from ltx2.models.reading import read
from ltx2.models.rename import component_of, diffusers_name
from ltx2.spec.errors import CheckpointError

_SUFFIXES = (".lora_A.weight", ".lora_B.weight")


@dataclass(frozen=True)
class Lora:
    """Low-rank additions of one file: component -> Diffusers layer -> (A [rank, in], B [out, rank]).

    Ranks differ between layers. `metadata` is the file's own (IC-LoRAs state their reference factors there).
    """

    name: str
    layers: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]]
    metadata: Mapping[str, str]


def load_lora(file: Path, device: torch.device | None = None) -> Lora:
    """Read an official LoRA file (`diffusion_model.<module>.lora_A.weight`, the text projection without prefix).

    Raises CheckpointError for a key that is no LoRA key, one half of a pair, ranks that do not agree, or no keys.
    """
    header = read_header(file)
    entries: dict[str, Entry] = header.entries
    pairs: dict[tuple[str, str], dict[str, Entry]] = {}
    for key, entry in entries.items():
        suffix = next((suffix for suffix in _SUFFIXES if key.endswith(suffix)), None)
        place = component_of(key.removesuffix(suffix), "transformer") if suffix else None
        if suffix is None or place is None or place[0] not in ("transformer", "connectors"):
            raise CheckpointError(f"{file.name} is not an LTX-2 LoRA: {key} is unknown")
        pairs.setdefault((place[0], diffusers_name(*place)), {})[suffix] = entry
    if not pairs:
        raise CheckpointError(f"{file.name} is empty")
    wanted: dict[str, Entry] = {}
    for (component, layer), pair in pairs.items():
        if len(pair) != 2 or not _belong(*(pair[suffix].shape for suffix in _SUFFIXES)):
            raise CheckpointError(f"{file.name}: the lora_A and lora_B of {layer} do not belong together")
        wanted |= {f"{component}/{layer}{suffix}": entry for suffix, entry in pair.items()}
    tensors = dict(read(wanted, device or torch.device("cpu")))
    layers: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for component, layer in pairs:
        down, up = (tensors[f"{component}/{layer}{suffix}"] for suffix in _SUFFIXES)
        layers.setdefault(component, {})[layer] = (down, up)
    return Lora(file.stem, layers, header.metadata)


def _belong(down: tuple[int, ...], up: tuple[int, ...]) -> bool:
    return len(down) == len(up) == 2 and down[0] == up[1]


def check(network: nn.Module, component: str, lora: Lora) -> None:
    """Refuse a LoRA with a layer that the network does not have, or of another shape.

    Raises CheckpointError naming the first such layer.
    """
    for layer, (down, up) in lora.layers.get(component, {}).items():
        weight = _weight(network, layer)
        if weight is None:
            raise CheckpointError(f"LoRA {lora.name}: the {component} has no layer {layer}")
        if (up.shape[0], down.shape[1]) != tuple(weight.shape):
            expected, found = list(weight.shape), [up.shape[0], down.shape[1]]
            raise CheckpointError(f"LoRA {lora.name}: {layer} is {expected} here and {found} in the LoRA")


@contextmanager
def merged(
    network: nn.Module, loras: Sequence[tuple[Lora, float]], component: str = "transformer"
) -> Iterator[nn.Module]:
    """Merge LoRAs with their strengths for the duration of the block, then restore the weights bit for bit.

    The originals of the touched layers are kept on the same device, so memory for the touched weights doubles.
    Strength 0 leaves a LoRA out. Weights change in place, so graphs and views of them stay valid.
    Raises CheckpointError as `check` does, before anything is changed.
    """
    originals = merge_into(network, loras, component)
    try:
        yield network
    finally:
        _restore(originals)


def merge_into(
    network: nn.Module, loras: Sequence[tuple[Lora, float]], component: str = "transformer"
) -> list[tuple[Tensor, Tensor]]:
    """Merge LoRAs for good. Returns (weight, copy of the original) of every touched layer.

    All are merged or none: when memory runs out on the way, what was merged by then is restored.
    """
    active = [(lora, strength) for lora, strength in loras if strength]
    for lora, _ in active:
        check(network, component, lora)
    additions = _by_layer(active, component)
    for layer in additions:
        if isinstance(network.get_submodule(layer), Fp8Linear):
            raise CheckpointError(f"{layer} is held in fp8: a LoRA cannot be merged into it", hint="add it at run time")
    originals: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for layer, triples in additions.items():
                weight = _weight(network, layer)
                assert weight is not None, "checked above"
                originals.append((weight, weight.clone()))
                weight.copy_(merge(weight, triples))
    except BaseException:
        _restore(originals)
        raise
    return originals


def _restore(originals: Sequence[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for weight, original in originals:
            weight.copy_(original)


class LowRank(nn.Module):
    """A linear layer, plain or fp8, and the low-rank additions (A [rank, in], B [out, rank], strength) to its output."""

    def __init__(self, base: nn.Module, additions: Sequence[tuple[Tensor, Tensor, float]]):
        super().__init__()
        self.base = base
        self.additions = tuple(additions)

    def forward(self, x: Tensor) -> Tensor:
        """base(x) + the sum of strength * (x A^T) B^T, [..., in] -> [..., out]."""
        result = self.base(x)
        rows, flat = x.flatten(0, -2), result.flatten(0, -2)
        for down, up, strength in self.additions:
            flat = torch.addmm(flat, rows @ down.to(x.dtype).t(), up.to(x.dtype).t(), alpha=strength)
        return flat.view(result.shape)


@contextmanager
def added(
    network: nn.Module, loras: Sequence[tuple[Lora, float]], component: str = "transformer"
) -> Iterator[nn.Module]:
    """Add LoRAs with their strengths at run time for the duration of the block.

    Touched layers are wrapped and afterwards unwrapped; no weight changes, so nothing is copied and restoring is exact.
    Strength 0 leaves a LoRA out. Raises CheckpointError as `check` does, before anything is changed.
    """
    active = [(lora, strength) for lora, strength in loras if strength]
    for lora, _ in active:
        check(network, component, lora)
    bases: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for layer, additions in _by_layer(active, component).items():
            path, _, leaf = layer.rpartition(".")
            parent = network.get_submodule(path)
            base = parent._modules[leaf]
            assert base is not None, "checked above"
            bases.append((parent, leaf, base))
            parent._modules[leaf] = LowRank(base, additions)
        yield network
    finally:
        for parent, leaf, base in bases:
            parent._modules[leaf] = base


def _by_layer(loras: Sequence[tuple[Lora, float]], component: str) -> dict[str, list[tuple[Tensor, Tensor, float]]]:
    additions: dict[str, list[tuple[Tensor, Tensor, float]]] = {}
    for lora, strength in loras:
        for layer, (down, up) in lora.layers.get(component, {}).items():
            additions.setdefault(layer, []).append((down, up, strength))
    return additions


def merge(weight: Tensor, additions: Sequence[tuple[Tensor, Tensor, float]]) -> Tensor:
    """Merge (A, B, strength) triples into W [out, in] by the official rule, wholly in bfloat16.

    The first delta is (B * strength) @ A; each further one is added by one multiply-add with the strength as its
    factor; then W + delta. Weights of another dtype are merged by the same rule and cast back, so that a model in
    float32 on a CPU gets the same merged weights.
    """
    half = torch.bfloat16
    (down, up, strength), *others = [(a.to(weight.device, half), b.to(weight.device, half), s) for a, b, s in additions]
    delta = (up * strength) @ down
    for down, up, strength in others:
        delta = torch.addmm(delta, up, down, alpha=strength)
    return (weight.to(half) + delta).to(weight.dtype)


def _weight(network: nn.Module, layer: str) -> Tensor | None:
    try:
        return getattr(network.get_submodule(layer), "weight", None)
    except AttributeError:
        return None
