"""What a GPU does under sustained load: clock and power beside every time, for forwards, products and attention.

    python benchmarks/load.py RESULTS.jsonl [NAME ...]
    python benchmarks/load.py RESULTS.jsonl --tiny          rehearsal, also without a GPU

`speed.py` times bursts of a few milliseconds, in which a cool card may clock as high as it likes; here each measurement
lasts `--seconds`. Random weights and inputs: what is multiplied decides the power too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from statistics import median
from typing import Any

import torch
from command import arguments, parse
from forms import modes
from gauge import Gauge
from inputs import LARGE, MIDDLE, SMALL, TINY, Size
from lab import Lab, opened
from operations import sdpa
from torch.nn import functional
from torch.nn.attention import SDPBackend

from ltx2.models.fast import attention, cublas
from ltx2.models.holding import quantise_network
from ltx2.models.precision import product, quantise_rows

# What a block multiplies: rows of a pass at 768x512x97 (two prompts), at 384x256x97 and at 1536x1024x121.
ROWS = {"middle": 9984, "small": 1248, "large": 24576}
PRODUCTS = {
    "qkv": (4096, 12288), "out": (4096, 4096), "text query": (4096, 4096), "a2v query": (4096, 2048),
    "v2a keys": (4096, 4096), "a2v out": (2048, 4096), "feed in": (4096, 16384), "feed out": (16384, 4096),
    "audio qkv": (2048, 6144), "audio feed in": (2048, 8192), "audio feed out": (8192, 2048),
}  # fmt: skip
# Tokens of the stages of the table's workloads: both rows of `classic` and `dev`, one of two-stage and of large.
TURNS = (9984, 12288, 1248, 4992, 6144, 24576)
AUDIO_ROWS = {"middle": 202, "small": 101, "large": 126}

Works = dict[str, Callable[[], Any]]


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
    for hold in ("bf16", "fp8"):
        if hold == "fp8":
            quantise_network(lab.network("ltx-2", "transformer"), "fp8")
        for size, rows in [(TINY, 2)] if lab.tiny else [(MIDDLE, 2), (SMALL, 1), (LARGE, 1)]:
            lab.attempt_line("forwards", partial(_forwards, lab, seconds, hold, size, rows), hold=hold, size=size)
    lab.drop()


def _forwards(lab: Lab, seconds: float, hold: str, size: Size, rows: int) -> None:
    streams = lab.streams("ltx-2", size, rows)
    made = modes(lab.device, lab.network("ltx-2", "transformer"), few=size == LARGE)
    made = {name: run for name, run in made.items() if "plain" not in name}
    order = [*made, *made] if hold == "bf16" and size == MIDDLE else list(made)[1:] or [*made]
    for mode in order:
        what: dict[str, Any] = {"hold": hold, "size": size, "rows": rows, "mode": mode}
        flops = rows * lab.flops("ltx-2", size)
        measure = partial(_measure, lab, seconds, "forwards", partial(made[mode], *streams, ()), flops, **what)
        lab.attempt_line("forwards", measure, **what)


@torch.inference_mode()
def products(lab: Lab, seconds: float) -> None:
    """Every product of a block by itself: bf16 as a linear layer, with GELU in its last step, and row-wise fp8."""
    for size in ("middle", "small", "large"):
        for name, (inner, outer) in PRODUCTS.items():
            rows = (AUDIO_ROWS if name.startswith("audio") else ROWS)[size]
            shape = (32, inner // 64, outer // 64) if lab.tiny else (rows, inner, outer)
            what: dict[str, Any] = {"size": size, "product": name}
            lab.attempt_line("products", partial(_products, lab, seconds, shape, **what), **what)


def _products(lab: Lab, seconds: float, shape: tuple[int, int, int], **what: Any) -> None:
    for way, work in _ways(lab, shape, "feed in" in what["product"]).items():
        flops = 2 * shape[0] * shape[1] * shape[2]
        measure = partial(_measure, lab, seconds, "products", work, flops, **what, way=way, shape=shape)
        lab.attempt_line("products", measure, **what, way=way, shape=shape)


def _ways(lab: Lab, shape: tuple[int, int, int], activated: bool) -> Works:
    """How a product [rows, inner] x [inner, outer] with a bias is done, those with GELU where it is `activated`."""
    rows, inner, outer = shape
    options: dict[str, Any] = {"device": lab.device, "dtype": lab.dtype}
    x, weight = torch.randn(rows, inner, **options), torch.randn(outer, inner, **options) / inner**0.5
    bias = torch.randn(outer, **options)
    works: Works = {"linear": partial(functional.linear, x, weight, bias)}
    if activated:
        works["linear, gelu"] = lambda: functional.gelu(functional.linear(x, weight, bias), approximate="tanh")
        works["gelu inside"] = partial(torch._addmm_activation, bias, x, weight.t(), use_gelu=True)
    if lab.device.type == "cuda":
        eight, scale = quantise_rows(weight)
        works["fp8 rows"] = partial(product, *quantise_rows(x), eight, scale.squeeze(-1), bias, lab.dtype)
    return works


@torch.inference_mode()
def attend(lab: Lab, seconds: float) -> None:
    """Self-attention of the video by size with every backend that is here."""
    shapes = {"middle": (2, 4992), "small": (1, 1248), "dev": (2, 6144), "large": (1, 24576)}
    flash = attention.flash_3() if lab.device.type == "cuda" else None
    for name, (rows, tokens) in {"tiny": (1, 24)}.items() if lab.tiny else shapes.items():
        q, k, v = torch.randn(3, rows, tokens, 32, 128, device=lab.device, dtype=lab.dtype).unbind(0)
        works: Works = {"default": partial(sdpa, q, k, v, None)}
        if lab.device.type == "cuda":
            works["cudnn"] = partial(sdpa, q, k, v, SDPBackend.CUDNN_ATTENTION)
        if flash:
            works["fa3"] = partial(flash, q, k, v)
            works["fa3 fp8"] = partial(flash, *(part.to(torch.float8_e4m3fn) for part in (q, k, v)))
        for backend, work in works.items():
            what: dict[str, Any] = {"shape": name, "backend": backend}
            measure = partial(_measure, lab, seconds, "attention", work, 4 * rows * tokens**2 * 4096, **what)
            lab.attempt_line("attention", measure, **what)


@torch.inference_mode()
def tiles(lab: Lab, seconds: float) -> None:
    """Products with cuBLAS's tiles and with the best of ours, in turns, so that a card that warms up favours none."""
    for tokens in [32] if lab.tiny else TURNS:
        for inner, outer in sorted({PRODUCTS[name] for name in PRODUCTS if not name.startswith("audio")}):
            shape = (tokens, inner // 64, outer // 64) if lab.tiny else (tokens, inner, outer)
            for last in ("gelu" if (inner, outer) == PRODUCTS["feed in"] else "bias", "fp8"):
                what: dict[str, Any] = {"shape": shape, "last": last}
                lab.attempt_line("tiles", partial(_tiles, lab, seconds, shape, last), **what)


def _tiles(lab: Lab, seconds: float, shape: tuple[int, int, int], last: str) -> None:
    works = _by_tile(lab, shape, last)
    count = max(3, round(seconds / 16 / lab.time(works["cublas"], inner=10)))
    # Each in a graph of its own: the smallest take less time than their launch.
    takes = {name: _often(lab, work, count) for name, work in works.items()}
    spent: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(5):
        for name, take in list(takes.items())[:: 1 if turn % 2 else -1]:
            # The clock follows the power with some delay.
            spent[name].append(lab.time(take, warm=1, once=True))
    expected = works["cublas"]()
    for name, work in works.items():
        took = median(spent[name]) / count
        speed = 2 * shape[0] * shape[1] * shape[2] / took / 1e12
        what: dict[str, Any] = {"shape": shape, "last": last, "same": torch.equal(work(), expected)}
        lab.write("tiles", **what, way=name, ms=took * 1e3, tflops=speed)


def _often(lab: Lab, work: Callable[[], Any], count: int) -> Callable[[], None]:
    """The work `count` times, on a GPU in one launch."""

    def take() -> None:
        for _ in range(count):
            work()

    take()
    if lab.device.type != "cuda":
        return take
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        take()
    return graph.replay


def _by_tile(lab: Lab, shape: tuple[int, int, int], last: str) -> Works:
    """A product with a bias as cuBLAS does it, and with up to six tiles of ours."""
    tokens, inner, outer = shape
    options: dict[str, Any] = {"device": lab.device, "dtype": lab.dtype}
    x, weight = torch.randn(tokens, inner, **options), torch.randn(outer, inner, **options) / inner**0.5
    bias, scales = torch.randn(outer, **options), None
    works: Works = {"cublas": partial(functional.linear, x, weight, bias)}
    if last == "gelu":
        works = {"cublas": partial(torch._addmm_activation, bias, x, weight.t(), use_gelu=True)}
    if last == "fp8":
        (x, of_x), (weight, of_weight) = quantise_rows(x), quantise_rows(weight)
        scales = (of_x.flatten(), of_weight.flatten())
        works = {"cublas": partial(product, x, of_x, weight, scales[1], bias, lab.dtype)}
    if (lt := cublas.of(lab.device)) is None:
        return works
    problem = cublas.Problem(tokens, inner, outer, True, last == "gelu", last == "fp8")
    for number, choice in enumerate(islice(lt.choices_for(problem, gain=-0.02), 6)):
        name = f"{number}: {choice.tile.features}x{choice.tile.tokens}" + " alone" * (not choice.tile.together)
        works[name] = partial(_chosen, lt, problem, choice, x, weight, bias, last == "gelu", scales)
    return works


def _chosen(lt: Any, problem: Any, choice: Any, *parts: Any) -> Any:
    lt.choices[problem] = choice
    return lt.linear(*parts)


def _measure(lab: Lab, seconds: float, part: str, work: Callable[[], Any], flops: float, **what: Any) -> None:
    found = steadily(lab, seconds, work)
    lab.write(part, **what, **found, tflops=flops / found["ms"] / 1e9)


PARTS: dict[str, Callable[[Lab, float], None]] = {
    "forwards": forwards,
    "products": products,
    "attention": attend,
    "tiles": tiles,
}


def main(words: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, PARTS, rehearsal="small networks and sizes")
    parser.add_argument("--seconds", type=float, default=1.0)
    given = parse(parser, words, PARTS, gpu=True)
    lab = opened(given)
    for name in given.names or PARTS:
        lab.attempt(name, partial(PARTS[name], lab, given.seconds))


if __name__ == "__main__":
    main()
