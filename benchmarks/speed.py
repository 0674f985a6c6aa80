"""Where the time goes on one GPU, and what each part of the fast path gains, with a check of every number it speeds up.

    python benchmarks/speed.py RESULTS.jsonl [PART ...]      parts: ops attention forward profile switches decode growth passes
                                                         passes
    python benchmarks/speed.py RESULTS.jsonl --tiny          rehearsal: small networks and sizes, also without a GPU

Weights are random and full-size. Every finished measurement is a line of JSON at once; a part that fails leaves its error
in the file and the next one goes on. The whole table of workloads is `benchmarks/h200.py`.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lab import Lab, Size, distances
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ltx2.models.fast import Stage, Twin, attention, block
from ltx2.models.fast.compare import compare
from ltx2.models.fast.graphs import CudaRecorder, Graphs
from ltx2.models.fast.lanes import lanes_of
from ltx2.models.fast.ops import PLAIN, Affine, Ops, Table, choose
from ltx2.models.holding import quantise_network
from ltx2.models.velocity import Perturbation, velocities

SMALL, MIDDLE, LARGE = (384, 256, 97), (768, 512, 97), (1536, 1024, 121)
GROWTH = [(256, 256, 25), SMALL, (768, 512, 25), MIDDLE, (960, 544, 121), (768, 512, 257), LARGE, (1920, 1088, 121)]
TINY = (64, 64, 9)
# Kernel families by what their names hold, first match wins.
FAMILIES = {
    "graph or copy": ("memcpy", "memset"),
    "attention": ("flash", "fmha", "sdpa", "attention", "cudnn_generated"),
    "convolutions": ("conv", "implicit", "dgrad", "fprop"),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "wgmma", "scaled_mm", "splitk", "cublas", "addmm", "bmm"),
    "fused": ("_residual_norm", "_normalise_heads", "_quantise_heads", "_largest", "_gate_heads", "_pointwise", "_pad"),
}


def ops(lab: Lab) -> None:
    """Every fused operation: right against its twin, and its time against the twin and the memory it moves."""
    fused = choose(lab.device)
    shape = {"tokens": 6, "heads": 3, "half": 10} if lab.tiny else {"tokens": 77, "heads": 32, "half": 64}
    for line, good in compare(fused, lab.device, lab.dtype, **shape):
        lab.write("ops check", case=line, ok=good)
    rows, tokens, heads, half = (2, 12, 2, 8) if lab.tiny else (2, 4992, 32, 64)
    for name, bytes_moved, work in _op_cases(lab, rows, tokens, heads, half):
        seconds, twin = lab.time(partial(work, fused), inner=10), lab.time(partial(work, PLAIN))
        lab.write(
            "ops", op=name, ops=fused.name, us=seconds * 1e6, twin_us=twin * 1e6, gb_s=bytes_moved / seconds / 1e9
        )


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
        ("gelu", 8 * size, lambda ops: ops.gelu(hidden)),
        ("gelu to fp8", 6 * size, lambda ops: ops.gelu(hidden, True)),
    ]


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
    for name, (rows, queries, keys, heads, width) in shapes.items():
        q, k, v = (
            torch.randn(rows, tokens, heads, width, device=lab.device, dtype=lab.dtype)
            for tokens in (queries, keys, keys)
        )
        exact = _exact(q[:1, :64], k[:1], v[:1])
        works: dict[str, Callable[[], Tensor]] = {key: partial(sdpa, q, k, v, one) for key, one in backends.items()}
        if lab.device.type == "cuda" and (flash := attention.flash_3()):
            works["fa3"] = partial(flash, q, k, v)
        for backend, work in works.items():
            lab.attempt_line("attention", partial(_measure_attention, lab, name, backend, work, exact, q, k))


def _measure_attention(
    lab: Lab, name: str, backend: str, work: Callable[[], Tensor], exact: Tensor, q: Tensor, k: Tensor
) -> None:
    result = work()
    seconds = lab.time(work, inner=5)
    flops = 4 * q.numel() * k.shape[1]
    lab.write(
        "attention", shape=name, backend=backend, us=seconds * 1e6, tflops=flops / seconds / 1e12,
        dense=result.is_contiguous(), **distances(result[:1, :64], exact),
    )  # fmt: skip


def sdpa(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend | None) -> Tensor:
    parts = [part.transpose(1, 2) for part in (q, k, v)]
    with nullcontext() if backend is None else sdpa_kernel(backend):
        return scaled_dot_product_attention(*parts).transpose(1, 2)


def _exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    parts = [part.transpose(1, 2).double() for part in (q, k, v)]
    weights = (parts[0] @ parts[1].transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ parts[2]).transpose(1, 2)


def forward_modes(lab: Lab, transformer: Any, few: bool = False) -> dict[str, Callable[..., Any]]:
    """The forward in every form: the slow path, and the fast one with ever more of its parts; or `few` of them."""
    kernels = choose(lab.device)
    plain, fused = Twin(transformer, PLAIN), Twin(transformer, kernels)
    plain.graphs = fused.graphs = None
    modes: dict[str, Callable[..., Any]] = {
        "slow": partial(velocities, transformer),
        "fast, plain ops": Stage(plain),
        f"fast, {kernels.name} ops": Stage(fused),
    }
    if lab.device.type == "cuda":
        graphed = Twin(transformer, kernels, Graphs(CudaRecorder()))
        modes["fast, graph"] = Stage(graphed)
    if few:
        modes = {mode: run for mode, run in modes.items() if mode in ("slow", f"fast, {kernels.name} ops")}
    return modes


@torch.inference_mode()
def forward(lab: Lab) -> None:
    """One forward, by size and rows, in every mode, and how far each is from the slow one."""
    model = "ltx-2"
    cases = [(MIDDLE, 2, False), (MIDDLE, 1, False), (SMALL, 1, False), (MIDDLE, 1, True), (LARGE, 1, False)]
    for size, rows, given in [(TINY, 2, False), (TINY, 1, True)] if lab.tiny else cases:
        transformer, streams = lab.network(model, "transformer"), lab.streams(model, size, rows, given)
        reference: Tensor | None = None
        for mode, run in forward_modes(lab, transformer, few=size == LARGE).items():
            work = partial(run, *streams, ())
            result = [work()[0][0] for _ in range(3)][-1]
            reference = result if reference is None else reference
            seconds = lab.time(work)
            lab.write(
                "forward", size=size, rows=rows, first_frame=given, mode=mode, ms=seconds * 1e3,
                tflops=rows * lab.flops(model, size) / seconds / 1e12, peak_gib=lab.peak(work),
                **distances(result, reference),
            )  # fmt: skip
        if lab.device.type == "cuda" and reference is not None:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                other = velocities(transformer, *streams)[0][0]
            lab.write("forward", size=size, rows=rows, mode="slow, other attention", **distances(other, reference))


@torch.inference_mode()
def passes(lab: Lab) -> None:
    """One evaluation with all four guidance passes of 2.3: the perturbed one shared or not, each pass by itself."""
    size = TINY if lab.tiny else (768, 512, 121)
    last = len(lab.network("ltx-2.3", "transformer").transformer_blocks)  # pyright: ignore[reportArgumentType]
    perturbed = Perturbation((last * 28 // 48,), (last * 28 // 48,))
    transformer, (video, audio) = lab.network("ltx-2.3", "transformer"), lab.streams("ltx-2.3", size, 2)
    kinds = {"cfg": (), "cfg + stg": (perturbed,), "all four": (perturbed, Perturbation(isolated=True))}
    for kind, weak in kinds.items():
        expected = velocities(transformer, video, audio, weak)
        for mode, run in forward_modes(lab, transformer).items():
            work = partial(run, video, audio, weak)
            result = [work() for _ in range(3)][-1]
            seconds = lab.time(work)
            worst = max(
                distances(a, b)["cosine_distance"]
                for one, other in zip(result, expected, strict=True)
                for a, b in zip(one, other, strict=True)
            )
            lab.write("passes", size=size, kind=kind, mode=mode, ms=seconds * 1e3, cosine_distance=worst)


@torch.inference_mode()
def switches(lab: Lab) -> None:
    """One forward in a graph, with each part of the fast path taken out by itself, bf16 weights and then fp8 ones.

    All forms take turns, so that a card which slows down slows all of them down; each time is the median of its turns.
    The distance is that from the whole fast path (fp8 attention is lossy, the rest is other sums).
    """
    for held in ("bf16", "fp8"):
        transformer = lab.network("ltx-2", "transformer")
        if held == "fp8":
            quantise_network(transformer, "fp8")
        for size, rows in [(TINY, 2)] if lab.tiny else [(SMALL, 1), (MIDDLE, 1), (MIDDLE, 2), (LARGE, 1)]:
            lab.attempt_line("switches", partial(_measure_switches, lab, transformer, held, size, rows))
    # What was quantised is of no use to the other parts.
    lab.drop()


def _measure_switches(lab: Lab, transformer: Any, held: str, size: Size, rows: int) -> None:
    streams = lab.streams("ltx-2", size, rows)
    forms, turns = _switched(lab, transformer), lab.repeats
    if size == LARGE:
        forms, turns = {name: forms[name] for name in ("whole", "one lane", "fp8 attention") if name in forms}, 2
    seconds: dict[str, list[float]] = defaultdict(list)
    results: dict[str, Tensor] = {}
    # The first evaluations of a form compile, run as they are, and are recorded.
    for name, (run, around) in forms.items():
        with around():
            results[name] = [run(*streams, ())[0][0] for _ in range(3)][-1]
    for _ in range(turns):
        for name, (run, around) in forms.items():
            with around():
                seconds[name].append(lab.time(partial(run, *streams, ()), warm=1, once=True))
    for name, spent in seconds.items():
        lab.write(
            "switches", weights=held, size=size, rows=rows, form=name, ms=median(spent) * 1e3,
            least_ms=min(spent) * 1e3, recorded=_recorded(forms[name][0]), **distances(results[name], results["whole"]),
        )  # fmt: skip


def _recorded(stage: Stage) -> bool:
    return stage.twin.graphs is not None and bool(stage.twin.graphs.recorded)


def _switched(lab: Lab, transformer: Any) -> dict[str, tuple[Stage, Callable[[], Any]]]:
    """Each form of the forward, and what it runs in."""
    ops = choose(lab.device)
    made = partial(Twin, transformer, lanes=lanes_of(lab.device))
    forms: dict[str, tuple[Twin, Callable[[], Any]]] = {
        "whole": (made(), nullcontext),
        "one lane": (Twin(transformer), nullcontext),
        "keys in the main lane": (made(), _keys_in_the_main_lane),
        "gelu in a kernel": (made(replace(ops, linear_gelu=None)), nullcontext),
        "q and k in two kernels": (made(replace(ops, normalise_pair=_two_kernels(ops))), nullcontext),
    }
    if not attention.no_fp8_attention(lab.device) or lab.tiny:
        forms["fp8 attention"] = (made(fp8_from=1), nullcontext)
    return {name: (Stage(twin), around) for name, (twin, around) in forms.items()}


@contextmanager
def _keys_in_the_main_lane() -> Iterator[None]:
    block.KEYS_ASIDE = False
    try:
        yield
    finally:
        block.KEYS_ASIDE = True


def _two_kernels(ops: Ops) -> Any:
    def pair(q: Tensor, k: Tensor, weights: Any, table: Table, heads: int, eps: float) -> tuple[Tensor, Tensor]:
        return (
            ops.normalise_heads(q, weights[0], table, heads, eps),
            ops.normalise_heads(k, weights[1], table, heads, eps),
        )

    return pair


@torch.inference_mode()
def profile(lab: Lab) -> None:
    """Device time of one forward by kernel family, and the number of launches: every mode, then the fastest by size, in
    bf16 and in fp8."""
    for hold in ("bf16", "fp8"):
        transformer = lab.network("ltx-2", "transformer")
        if hold == "fp8":
            quantise_network(transformer, "fp8")
        for size, rows in [(TINY, 2)] if lab.tiny else [(MIDDLE, 2), (SMALL, 1), (LARGE, 1)]:
            streams = lab.streams("ltx-2", size, rows)
            found = forward_modes(lab, transformer, few=size == LARGE)
            if hold == "fp8" or size != MIDDLE:
                found = dict([list(found.items())[-1]])
            for mode, run in found.items():
                _profile(lab, partial(run, *streams, ()), hold=hold, size=size, rows=rows, mode=mode)
    lab.drop()


def _profile(lab: Lab, work: Callable[[], Any], **what: Any) -> None:
    for _ in range(3):
        work()
    lab.sync()
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CUDA if lab.device.type == "cuda" else activity.CPU]) as seen:
        work()
        lab.sync()
    families: dict[str, float] = defaultdict(float)
    launches, names, calls = 0, defaultdict(float), defaultdict(int)
    for event in seen.events():
        if lab.device.type == "cuda" and event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        spent = event.time_range.elapsed_us() if lab.device.type == "cuda" else event.self_cpu_time_total
        launches += 1
        names[event.name[:90]] += spent / 1e3
        calls[event.name[:90]] += 1
        lower = event.name.lower()
        family = next((one for one, parts in FAMILIES.items() if any(part in lower for part in parts)), "elementwise")
        families[family] += spent / 1e3
    top = sorted(names.items(), key=lambda pair: -pair[1])[:24]
    lab.write(
        "profile", **what, launches=launches, ms={key: round(value, 2) for key, value in families.items()},
        top=[(name, round(spent, 2), calls[name]) for name, spent in top],
    )  # fmt: skip


@torch.inference_mode()
def growth(lab: Lab) -> None:
    """One fast forward of one row from small to large."""
    for size in [TINY, (96, 64, 17)] if lab.tiny else GROWTH:
        streams = lab.streams("ltx-2", size, 1)
        work = partial(Stage(Twin(lab.network("ltx-2", "transformer"))), *streams, ())
        seconds = lab.time(work, warm=3)
        lab.write(
            "growth", size=size, tokens=streams[0].latent.shape[1], ms=seconds * 1e3,
            tflops=lab.flops("ltx-2", size) / seconds / 1e12, peak_gib=lab.peak(work),
        )  # fmt: skip


@torch.inference_mode()
def decode(lab: Lab) -> None:
    """The video decoder: as it is, fast, and compiled."""
    from ltx2.models.fast.decoder import decode as fast

    for size in [TINY] if lab.tiny else [MIDDLE, LARGE]:
        vae: Any = lab.network("ltx-2", "vae")
        width, height, frames = size
        shape = (1, vae.config.latent_channels, 1 + (frames - 1) // 8, height // 32, width // 32)
        raw, kernels = torch.randn(shape, device=lab.device, dtype=lab.dtype), choose(lab.device)
        modes: dict[str, Callable[[], Tensor]] = {
            "slow": partial(vae.decoder, raw),
            "fast, plain ops": partial(fast, vae, raw, PLAIN),
            f"fast, {kernels.name} ops": partial(fast, vae, raw, kernels),
        }
        if lab.device.type == "cuda" and size == MIDDLE:
            modes["compiled"] = partial(torch.compile(vae.decoder), raw)
        reference = modes["slow"]()
        for mode, work in modes.items():
            lab.attempt_line("decode", partial(_measure_decode, lab, size, mode, work, reference))
    lab.drop()


def _measure_decode(lab: Lab, size: Size, mode: str, work: Callable[[], Tensor], reference: Tensor) -> None:
    lab.write(
        "decode", size=size, mode=mode, ms=lab.time(work) * 1e3, peak_gib=lab.peak(work), **distances(work(), reference)
    )


PARTS: dict[str, Callable[[Lab], None]] = {
    "ops": ops, "forward": forward, "profile": profile, "attention": attend, "decode": decode,
    "switches": switches, "growth": growth, "passes": passes,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("parts", nargs="*", help="all when none is named")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    if unknown := set(given.parts) - PARTS.keys():
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not given.tiny:
        parser.error("full size needs a GPU; --tiny works here")
    lab = Lab(given.results, device, given.tiny, given.repeats)
    lab.begin()
    for name in given.parts or PARTS:
        lab.attempt(name, partial(PARTS[name], lab))


if __name__ == "__main__":
    main()
