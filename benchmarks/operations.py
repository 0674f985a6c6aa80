"""Parts of the fast path by themselves: fused operations, attention, the video's decoder, each beside what it replaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from inputs import LARGE, MIDDLE, TINY, Size
from lab import Lab, distances
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ltx2.models.fast import attention
from ltx2.models.fast.compare import compare
from ltx2.models.fast.decoder import decode as fast_decode
from ltx2.models.fast.ops import PLAIN, Affine, Ops, Table, choose

# As it is, and others.
VALUES = (None, 8, 16, 32)


def ops(lab: Lab) -> None:
    """Every fused operation: right against its twin, and its time against the twin and the memory it moves, by the number
    of values of a row that a thread has."""
    fused = choose(lab.device)
    lab.attempt_line("ops check", partial(_check_ops, lab, fused))
    rows, tokens, heads, half = (2, 12, 2, 8) if lab.tiny else (2, 4992, 32, 64)
    for name, moved, work in _op_cases(lab, rows, tokens, heads, half):
        twin = lab.time(partial(work, PLAIN))
        for values in VALUES if fused is not PLAIN else VALUES[:1]:
            what: dict[str, Any] = {"op": name, "values": values}
            lab.attempt_line("ops", partial(_measure_op, lab, fused, moved, work, twin_us=twin * 1e6, **what), **what)


def _check_ops(lab: Lab, fused: Ops) -> None:
    shape = {"tokens": 6, "heads": 3, "half": 10} if lab.tiny else {"tokens": 77, "heads": 32, "half": 64}
    for line, good in compare(fused, lab.device, lab.dtype, **shape):
        lab.write("ops check", case=line, ok=good)


def _measure_op(lab: Lab, fused: Ops, moved: int, work: Callable[[Ops], Any], values: int | None, **what: Any) -> None:
    with _values(fused, values):
        seconds = lab.time(partial(work, fused), inner=10)
    lab.write("ops", **what, values=values, ops=fused.name, us=seconds * 1e6, gb_s=moved / seconds / 1e9)


@contextmanager
def _values(fused: Ops, values: int | None) -> Iterator[None]:
    """Kernels whose threads have so many values each, inside the block."""
    if fused is PLAIN or values is None:
        yield
        return
    from ltx2.models.fast import launch

    before, launch.VALUES = launch.VALUES, values
    try:
        yield
    finally:
        launch.VALUES = before


def _op_cases(lab: Lab, rows: int, tokens: int, heads: int, half: int) -> list[tuple[str, int, Callable[[Ops], Any]]]:
    width = 2 * half * heads
    options: dict[str, Any] = {"device": lab.device, "dtype": lab.dtype}
    h, y = torch.randn(2, rows, tokens, width, **options).unbind(0)
    packed, hidden = torch.randn(rows, tokens, 3 * width, **options), torch.randn(rows, tokens, 4 * width, **options)
    one = torch.randn(1, 1, 6, width, **options).unbind(2)
    angles = torch.rand(tokens, heads, half, device=lab.device)
    table, weight = Table(angles.cos(), angles.sin()), torch.ones(width, **options)
    logits = torch.randn(rows, tokens, heads, **options)
    size, affine = h.numel() * h.element_size(), Affine(one[1], one[2])
    update = (y, one[0])
    return [
        ("residual + norm + modulate", 4 * size, lambda ops: ops.residual_norm(h, update, [affine], None, 1e-6)),
        ("the same, two modulations", 5 * size, lambda ops: ops.residual_norm(h, update, [affine] * 2, None, 1e-6)),
        ("the same to fp8", 3 * size + size // 2, lambda ops: ops.residual_norm(h, update, [affine], None, 1e-6, True)),
        ("qk norm + rope", 2 * size, lambda ops: ops.normalise_heads(packed[..., :width], weight, table, heads, 1e-6)),
        ("head gates", 2 * size, lambda ops: ops.gate_heads(h, logits)),
        (
            "qk norm + rope of a pair",
            4 * size,
            lambda ops: ops.normalise_pair(*_pair(packed), (weight, weight), table, heads, 1e-6),
        ),
        ("gelu", 8 * size, lambda ops: ops.gelu(hidden)),
        ("gelu to fp8", 6 * size, lambda ops: ops.gelu(hidden, True)),
        ("to fp8", size + size // 2, lambda ops: ops.quantise(h)),
    ]


def _pair(packed: Tensor) -> tuple[Tensor, Tensor]:
    q, k, _ = packed.chunk(3, dim=-1)
    return q, k


def attend(lab: Lab) -> None:
    """Attention backends by shape: time, and the distance from float32 mathematics: the noise floor of everything."""
    shapes = {
        "self 4992": (2, 4992, 4992, 32, 128), "self 1248": (1, 1248, 1248, 32, 128),
        "self 24576": (1, 24576, 24576, 32, 128), "text": (2, 4992, 1024, 32, 128),
        "a2v": (2, 4992, 101, 32, 64), "v2a": (2, 101, 4992, 32, 64), "audio": (2, 101, 101, 32, 64),
    }  # fmt: skip
    if lab.tiny:
        shapes = {"self": (1, 24, 24, 2, 8), "text": (1, 24, 16, 2, 8)}
    backends: dict[str, Any] = {"default": None}
    if lab.device.type == "cuda":
        backends |= {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    flash = attention.flash_3() if lab.device.type == "cuda" else None
    for name, (rows, queries, keys, heads, width) in shapes.items():
        q, k, v = (
            torch.randn(rows, tokens, heads, width, device=lab.device, dtype=lab.dtype)
            for tokens in (queries, keys, keys)
        )
        works: dict[str, Callable[[], Tensor]] = {key: partial(sdpa, q, k, v, one) for key, one in backends.items()}
        if flash:
            works["fa3"] = partial(flash, q, k, v)
        for backend, work in works.items():
            measure = partial(_measure_attention, lab, name, backend, work, (q, k, v))
            lab.attempt_line("attention", measure, shape=name, backend=backend)


def _measure_attention(
    lab: Lab, name: str, backend: str, work: Callable[[], Tensor], parts: tuple[Tensor, Tensor, Tensor]
) -> None:
    q, k, v = parts
    result, exact = work(), _exact(q[:1, :64], k[:1], v[:1])
    seconds = lab.time(work, inner=5)
    flops = 4 * q.numel() * k.shape[1]
    lab.write(
        "attention", shape=name, backend=backend, us=seconds * 1e6, tflops=flops / seconds / 1e12,
        dense=result.is_contiguous(), **distances(result[:1, :64], exact),
    )  # fmt: skip


def sdpa(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend | None) -> Tensor:
    """PyTorch's attention of [B, T, H, d] by one backend, or by the one that it chooses."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    with nullcontext() if backend is None else sdpa_kernel(backend):
        return scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    parts = [part.transpose(1, 2).double() for part in (q, k, v)]
    weights = (parts[0] @ parts[1].transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ parts[2]).transpose(1, 2)


@torch.inference_mode()
def decode(lab: Lab) -> None:
    """The video decoder: as it is, and fast, in pieces and in one."""
    for size in [TINY] if lab.tiny else [MIDDLE, LARGE]:
        lab.attempt_line("decode", partial(_decode_size, lab, size), size=size)
    lab.drop()


def _decode_size(lab: Lab, size: Size) -> None:
    vae: Any = lab.network("ltx-2", "vae")
    width, height, frames = size
    shape = (1, vae.config.latent_channels, 1 + (frames - 1) // 8, height // 32, width // 32)
    raw, kernels = torch.randn(shape, device=lab.device, dtype=lab.dtype), choose(lab.device)
    modes: dict[str, Callable[[], Tensor]] = {
        "slow": partial(vae.decoder, raw),
        "fast, plain ops": lambda: _joined(vae, raw, PLAIN),
        f"fast, {kernels.name} ops": lambda: _joined(vae, raw, kernels),
        f"fast, {kernels.name} ops, in one piece": lambda: _joined(vae, raw, kernels, 10_000),
    }
    reference = modes["slow"]()
    for mode, work in modes.items():
        lab.attempt_line("decode", partial(_measure_decode, lab, size, mode, work, reference), size=size, mode=mode)


def _joined(vae: Any, raw: Tensor, ops: Ops, piece: int | None = None) -> Tensor:
    return torch.cat([*fast_decode(vae, raw, ops, piece)], 2)


def _measure_decode(lab: Lab, size: Size, mode: str, work: Callable[[], Tensor], reference: Tensor) -> None:
    lab.write(
        "decode", size=size, mode=mode, ms=lab.time(work) * 1e3, peak_gib=lab.peak(work), **distances(work(), reference)
    )
