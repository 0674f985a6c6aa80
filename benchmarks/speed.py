"""Where the time goes on one GPU, and what each part of the fast path gains, with a check of every number it speeds up.

    python benchmarks/speed.py RESULTS.jsonl [NAME ...]
    python benchmarks/speed.py RESULTS.jsonl --tiny          rehearsal, also without a GPU

Weights are random and full-size. Every finished measurement is a line of JSON at once; one that fails leaves its error in
the file and the next one goes on. The whole table of workloads is `benchmarks/h200.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from command import arguments, parse
from forms import Form, Made, modes, switched
from inputs import LARGE, MIDDLE, SMALL, TINY, Size
from lab import Lab, distances, opened
from operations import attend, decode, ops
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ltx2.models.fast import Stage, Twin
from ltx2.models.holding import quantise_network
from ltx2.models.velocity import Perturbation, velocities

GROWTH = [(256, 256, 25), SMALL, (768, 512, 25), MIDDLE, (960, 544, 121), (768, 512, 257), LARGE, (1920, 1088, 121)]
# Kernel families by what their names hold, first match wins.
FAMILIES = {
    "graph or copy": ("memcpy", "memset"),
    "attention": ("flash", "fmha", "sdpa", "attention", "cudnn_generated"),
    "convolutions": ("conv", "implicit", "dgrad", "fprop"),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "wgmma", "scaled_mm", "splitk", "cublas", "addmm", "bmm"),
    "fused": ("_residual_norm", "_normalise_heads", "_quantise_heads", "_largest", "_gate_heads", "_pointwise", "_pad"),
}


@torch.inference_mode()
def forward(lab: Lab) -> None:
    """One forward, by size and rows, in every mode, and how far each is from the slow one."""
    cases = [(MIDDLE, 2, False), (MIDDLE, 1, False), (SMALL, 1, False), (MIDDLE, 1, True), (LARGE, 1, False)]
    for size, rows, given in [(TINY, 2, False), (TINY, 1, True)] if lab.tiny else cases:
        what: dict[str, Any] = {"size": size, "rows": rows, "first_frame": given}
        lab.attempt_line("forward", partial(_measure_forward, lab, size, rows, given), **what)


def _measure_forward(lab: Lab, size: Size, rows: int, given: bool) -> None:
    transformer, streams = lab.network("ltx-2", "transformer"), lab.streams("ltx-2", size, rows, given)
    what: dict[str, Any] = {"size": size, "rows": rows, "first_frame": given}
    reference = velocities(transformer, *streams)[0][0]
    for mode, run in modes(lab.device, transformer, few=size == LARGE).items():
        measure = partial(_measure_mode, lab, partial(run, *streams, ()), reference, mode=mode, **what)
        lab.attempt_line("forward", measure, mode=mode, **what)
    if lab.device.type == "cuda":
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            other = velocities(transformer, *streams)[0][0]
        lab.write("forward", size=size, rows=rows, mode="slow, other attention", **distances(other, reference))


def _measure_mode(lab: Lab, work: Callable[[], Any], reference: Tensor, **what: Any) -> None:
    # The third one is replayed, where there are graphs.
    result = [work()[0][0] for _ in range(3)][-1]
    seconds = lab.time(work)
    lab.write(
        "forward", **what, ms=seconds * 1e3, tflops=what["rows"] * lab.flops("ltx-2", what["size"]) / seconds / 1e12,
        peak_gib=lab.peak(work), **distances(result, reference),
    )  # fmt: skip


@torch.inference_mode()
def passes(lab: Lab) -> None:
    """One evaluation with all four guidance passes of 2.3: the perturbed one shared or not, each pass by itself."""
    size = TINY if lab.tiny else (768, 512, 121)
    last = len(lab.network("ltx-2.3", "transformer").transformer_blocks)  # pyright: ignore[reportArgumentType]
    perturbed = Perturbation((last * 28 // 48,), (last * 28 // 48,))
    transformer, streams = lab.network("ltx-2.3", "transformer"), lab.streams("ltx-2.3", size, 2)
    kinds = {"cfg": (), "cfg + stg": (perturbed,), "all four": (perturbed, Perturbation(isolated=True))}
    for kind, weak in kinds.items():
        expected = velocities(transformer, *streams, weak)
        for mode, run in modes(lab.device, transformer).items():
            what: dict[str, Any] = {"size": size, "kind": kind, "mode": mode}
            measure = partial(_measure_passes, lab, partial(run, *streams, weak), expected, **what)
            lab.attempt_line("passes", measure, **what)


def _measure_passes(lab: Lab, work: Callable[[], Any], expected: Any, **what: Any) -> None:
    result = [work() for _ in range(3)][-1]
    seconds = lab.time(work)
    worst = max(
        distances(a, b)["cosine_distance"]
        for one, other in zip(result, expected, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    lab.write("passes", **what, ms=seconds * 1e3, cosine_distance=worst)


@torch.inference_mode()
def switches(lab: Lab) -> None:
    """One forward, with each part of the fast path taken out by itself, bf16 weights and then fp8 ones.

    All forms take turns, so that a card which slows down slows all of them down; each time is the median of its turns.
    The distance is that from the whole fast path (fp8 attention is lossy, the rest is other sums).
    """
    for held in ("bf16", "fp8"):
        transformer = lab.network("ltx-2", "transformer")
        if held == "fp8":
            quantise_network(transformer, "fp8")
        for size, rows in [(TINY, 2)] if lab.tiny else [(SMALL, 1), (MIDDLE, 1), (MIDDLE, 2), (LARGE, 1)]:
            made = switched(lab.device, transformer)
            if size == LARGE:
                made = {name: make for name, make in made.items() if name in ("whole", "no fa3", "fp8 attention")}
            what: dict[str, Any] = {"weights": held, "size": size, "rows": rows}
            lab.attempt_line("switches", partial(_take_turns, lab, made, **what), **what)
            # The graphs of all forms have a pool each.
            lab.collect()
    # What was quantised is of no use to the other parts.
    lab.drop()


def _take_turns(lab: Lab, made: Made, **what: Any) -> None:
    streams = lab.streams("ltx-2", what["size"], what["rows"])
    ready: dict[str, Form] = {}
    results: dict[str, Tensor] = {}

    def prepare(name: str) -> None:
        form = made[name]()
        # The first evaluations of a form compile, run as they are, and are recorded.
        results[name] = [form(*streams) for _ in range(3)][-1]
        ready[name] = form

    for name in made:
        lab.attempt_line("switches", partial(prepare, name), form=name, **what)
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(2 if what["size"] == LARGE else lab.repeats):
        for name, form in ready.items():
            seconds[name].append(lab.time(partial(form, *streams), warm=1, once=True))
    for name, spent in seconds.items():
        apart = distances(results[name], results["whole"]) if "whole" in results else {}
        lab.write(
            "switches", **what, form=name, ms=median(spent) * 1e3, least_ms=min(spent) * 1e3, recorded=ready[name].recorded,
            **apart,
        )  # fmt: skip


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
            found = modes(lab.device, transformer, few=size == LARGE)
            if hold == "fp8" or size != MIDDLE:
                found = dict([list(found.items())[-1]])
            for mode, run in found.items():
                what: dict[str, Any] = {"hold": hold, "size": size, "rows": rows, "mode": mode}
                lab.attempt_line("profile", partial(_profile, lab, partial(run, *streams, ()), **what), **what)
    lab.drop()


def _profile(lab: Lab, work: Callable[[], Any], **what: Any) -> None:
    for _ in range(3):
        work()
    lab.sync()
    cuda, activity = lab.device.type == "cuda", torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CUDA if cuda else activity.CPU]) as seen:
        work()
        lab.sync()
    events = [one for one in seen.events() or () if not cuda or one.device_type == torch.autograd.DeviceType.CUDA]
    spent = [(one.name, (one.time_range.elapsed_us() if cuda else one.self_cpu_time_total) / 1e3) for one in events]
    lab.write("profile", **what, **_families(spent))


def _families(spent: Iterable[tuple[str, float]]) -> dict[str, Any]:
    """Launches, milliseconds of each kernel family, and the kernels that take most: name, milliseconds, calls."""
    families: dict[str, float] = defaultdict(float)
    names, calls = defaultdict[str, float](float), defaultdict[str, int](int)
    for name, ms in spent:
        lower = name.lower()
        family = next((one for one, parts in FAMILIES.items() if any(part in lower for part in parts)), "elementwise")
        families[family] += ms
        names[name[:90]] += ms
        calls[name[:90]] += 1
    top = sorted(names.items(), key=lambda pair: -pair[1])[:24]
    return {
        "launches": sum(calls.values()), "ms": {key: round(value, 2) for key, value in families.items()},
        "top": [(name, round(ms, 2), calls[name]) for name, ms in top],
    }  # fmt: skip


@torch.inference_mode()
def growth(lab: Lab) -> None:
    """One fast forward of one row from small to large. Memory is that of the first one: a graph holds its own already."""
    for size in [TINY, (96, 64, 17)] if lab.tiny else GROWTH:
        lab.attempt_line("growth", partial(_measure_growth, lab, size), size=size)


def _measure_growth(lab: Lab, size: Size) -> None:
    streams = lab.streams("ltx-2", size, 1)
    work = partial(Stage(Twin(lab.network("ltx-2", "transformer"))), *streams, ())
    peak, seconds = lab.peak(work), lab.time(work, warm=3)
    flops = lab.flops("ltx-2", size)
    lab.write(
        "growth", size=size, tokens=streams[0].latent.shape[1], ms=seconds * 1e3, tflops=flops / seconds / 1e12,
        tflops_done=(flops - lab.text_flops("ltx-2")) / seconds / 1e12, peak_gib=peak,
    )  # fmt: skip


PARTS: dict[str, Callable[[Lab], None]] = {
    "ops": ops, "forward": forward, "profile": profile, "attention": attend, "decode": decode,
    "switches": switches, "growth": growth, "passes": passes,
}  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, PARTS, rehearsal="small networks and sizes")
    parser.add_argument("--repeats", type=int, default=5)
    given = parse(parser, words, PARTS, gpu=True)
    lab = opened(given)
    for name in given.names or PARTS:
        lab.attempt(name, partial(PARTS[name], lab))


if __name__ == "__main__":
    main()
