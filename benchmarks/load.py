"""What a GPU does under sustained load: clock and power beside every time, for forwards, products and attention.

    python benchmarks/load.py RESULTS.jsonl [PART ...]      parts: forwards products attention
    python benchmarks/load.py RESULTS.jsonl --tiny          rehearsal on small sizes, also without a GPU

`speed.py` times bursts of a few milliseconds, in which a cool card may clock as high as it likes; here each measurement
lasts `--seconds`. Random weights and inputs: what is multiplied decides the power too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gauge import Gauge
from lab import Lab
from speed import LARGE, MIDDLE, SMALL, TINY, forward_modes, sdpa
from torch.nn import functional
from torch.nn.attention import SDPBackend

from ltx2.models.fast import attention
from ltx2.models.holding import quantise_network
from ltx2.models.precision import product, quantise_rows

# What a block multiplies: rows of a pass at 768x512x97 (two prompts), at 384x256x97 and at 1536x1024x121.
ROWS = {"middle": 9984, "small": 1248, "large": 24576}
PRODUCTS = {
    "qkv": (4096, 12288), "out": (4096, 4096), "text query": (4096, 4096), "a2v query": (4096, 2048),
    "v2a keys": (4096, 4096), "a2v out": (2048, 4096), "feed in": (4096, 16384), "feed out": (16384, 4096),
    "audio qkv": (2048, 6144), "audio feed in": (2048, 8192), "audio feed out": (8192, 2048),
}  # fmt: skip
AUDIO_ROWS = {"middle": 202, "small": 101, "large": 126}


def steadily(lab: Lab, seconds: float, work: Callable[[], Any]) -> dict[str, Any]:
    """Repeat `work` for `seconds` (after a sixth of that without the clock); ms each, and the card's state."""
    once = lab.time(work)
    count = max(2, round(seconds / once))
    for _ in range(max(1, count // 6)):
        work()
    lab.sync()
    with Gauge(lab.device) as gauge:
        begin = time.perf_counter()
        for _ in range(count):
            work()
        lab.sync()
        took = (time.perf_counter() - begin) / count
    return {"ms": took * 1e3, "ms_burst": once * 1e3, "count": count, **gauge.report()}


@torch.inference_mode()
def forwards(lab: Lab, seconds: float) -> None:
    """Slow and fast forwards in both orders, bf16 then fp8, so that a card that warms up cannot look like a slower path."""
    cases = [(MIDDLE, 2), (SMALL, 1), (LARGE, 1)]
    for hold in ("bf16", "fp8"):
        transformer = lab.network("ltx-2", "transformer")
        if hold == "fp8":
            quantise_network(transformer, "fp8")
        for size, rows in [(TINY, 2)] if lab.tiny else cases:
            streams = lab.streams("ltx-2", size, rows)
            made = forward_modes(lab, transformer, few=size == LARGE)
            made = {name: run for name, run in made.items() if "plain" not in name}
            order = [*made, *made] if hold == "bf16" and size == MIDDLE else list(made)[1:] or [*made]
            for mode in order:
                found = steadily(lab, seconds, partial(made[mode], *streams, ()))
                rate = rows * lab.flops("ltx-2", size) / found["ms"] / 1e9
                lab.write("forwards", hold=hold, size=size, rows=rows, mode=mode, tflops=rate, **found)
    lab.drop()


@torch.inference_mode()
def products(lab: Lab, seconds: float) -> None:
    """Every product of a block by itself: bf16 as a linear layer, with GELU in its last step, and row-wise fp8."""
    options: dict[str, Any] = {"device": lab.device, "dtype": lab.dtype}
    for size in ("middle", "small", "large"):
        for name, (inner, outer) in PRODUCTS.items():
            rows = (AUDIO_ROWS if name.startswith("audio") else ROWS)[size]
            if lab.tiny:
                rows, inner, outer = 32, inner // 64, outer // 64
            x, weight = torch.randn(rows, inner, **options), torch.randn(outer, inner, **options) / inner**0.5
            bias = torch.randn(outer, **options)
            works: dict[str, Callable[[], Any]] = {"linear": partial(functional.linear, x, weight, bias)}
            if "feed in" in name:
                works["linear, gelu"] = lambda x=x, w=weight, b=bias: functional.gelu(
                    functional.linear(x, w, b), approximate="tanh"
                )
                works["gelu inside"] = partial(torch._addmm_activation, bias, x, weight.t(), use_gelu=True)
            if lab.device.type == "cuda":
                eight, scale = quantise_rows(weight)
                works["fp8 rows"] = partial(product, *quantise_rows(x), eight, scale.squeeze(-1), bias, lab.dtype)
            for way, work in works.items():
                lab.attempt_line(
                    "products", partial(_multiply, lab, seconds, size, name, way, work, (rows, inner, outer))
                )


def _multiply(
    lab: Lab, seconds: float, size: str, name: str, way: str, work: Callable[[], Any], shape: tuple[int, int, int]
) -> None:
    found = steadily(lab, seconds, work)
    rows, inner, outer = shape
    lab.write(
        "products", size=size, product=name, way=way, shape=shape, **found,
        tflops=2 * rows * inner * outer / found["ms"] / 1e9,
    )  # fmt: skip


@torch.inference_mode()
def attend(lab: Lab, seconds: float) -> None:
    """Self-attention of the video by size with every backend that is here."""
    shapes = {"middle": (2, 4992), "small": (1, 1248), "dev": (2, 6144), "large": (1, 24576)}
    for name, (rows, tokens) in {"tiny": (1, 24)}.items() if lab.tiny else shapes.items():
        q, k, v = torch.randn(3, rows, tokens, 32, 128, device=lab.device, dtype=lab.dtype).unbind(0)
        works: dict[str, Callable[[], Any]] = {"default": partial(sdpa, q, k, v, None)}
        if lab.device.type == "cuda":
            works["cudnn"] = partial(sdpa, q, k, v, SDPBackend.CUDNN_ATTENTION)
            if flash := attention.flash_3():
                works["fa3"] = partial(flash, q, k, v)
                eights = [part.to(torch.float8_e4m3fn) for part in (q, k, v)]
                works["fa3 fp8"] = partial(flash, *eights)
        for backend, work in works.items():
            lab.attempt_line("attention", partial(_attend, lab, seconds, name, backend, work, (rows, tokens)))


def _attend(lab: Lab, seconds: float, name: str, backend: str, work: Callable[[], Any], shape: tuple[int, int]) -> None:
    found = steadily(lab, seconds, work)
    rows, tokens = shape
    rate = 4 * rows * tokens**2 * 4096 / found["ms"] / 1e9
    lab.write("attention", shape=name, backend=backend, tflops=rate, **found)


PARTS: dict[str, Callable[[Lab, float], None]] = {"forwards": forwards, "products": products, "attention": attend}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("parts", nargs="*", help="all when none is named")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.0)
    given = parser.parse_args()
    if unknown := set(given.parts) - PARTS.keys():
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not given.tiny:
        parser.error("full size needs a GPU; --tiny works here")
    lab = Lab(given.results, device, given.tiny)
    lab.begin()
    for name in given.parts or PARTS:
        lab.attempt(name, partial(PARTS[name], lab, given.seconds))


if __name__ == "__main__":
    main()
