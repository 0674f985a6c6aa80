"""What each way of holding weights costs: fp8 against bf16, LoRAs merged against added, the text encoder in fewer bits.

    python benchmarks/weights.py RESULTS.jsonl [fp8 text lora cpu ...] [--seconds 150] [--model ltx-2]
    python benchmarks/weights.py RESULTS.jsonl --tiny        rehearsal with small networks, also without a GPU

Full-size random weights; nothing is downloaded. Each measurement is a line of JSON at once, in order of value; what does
not begin within `--seconds` is named in a last line. Seconds are medians of `--repeats` runs after one that does not
count, bytes are those of the device. A bench that fails leaves its error in the file, and the next one goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import torch
from command import append, arguments, failure, parse
from drawn import calibrate, dequantise_network, encode, text_encoder, transformer
from inputs import MIDDLE, Ask, streams
from lab import Lab, distances
from torch import Tensor, nn

from ltx2.doors.origin import origin
from ltx2.models.fast import forget, passes
from ltx2.models.holding import quantise_network
from ltx2.models.lora import added, merged
from ltx2.models.precision import clamped_share, use_calibration
from ltx2.models.randoms import draw_lora
from ltx2.models.velocity import Stream, velocity

Velocities = tuple[Tensor, Tensor]
Report = dict[str, Any]


def main(words: Sequence[str] | None = None) -> None:
    """Run the named measurements, or all."""
    values = _arguments(words)
    lab = Lab(values.results, torch.device(values.device), values.tiny, values.repeats)
    deadline = time.monotonic() + values.seconds
    common = {"model": values.model, "tiny": values.tiny, **origin(values.device)}
    left: list[str] = []
    for name in values.names or BENCHES:
        begin, line = time.monotonic(), {"bench": f"weights-{name}", **common}
        if begin > deadline:
            left.append(name)
            continue
        try:
            with torch.inference_mode():
                for report in BENCHES[name](values, lab):
                    append(values.results, line | report)
        except Exception as error:
            append(values.results, line | failure(error))
        lab.collect()
        append(values.results, {"bench": f"weights-{name}", "whole_seconds": time.monotonic() - begin})
    if left:
        append(values.results, {"bench": "weights", "left_out": left})


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__, BENCHES, rehearsal="8 layers of 256 channels at 128x64x9")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", default="ltx-2", choices=("ltx-2", "ltx-2.3", "ltx-2.5"))
    parser.add_argument("--layers", type=int, help="fewer layers, for small runs")
    parser.add_argument(
        "--width", type=int, help="fewer channels, a multiple of 256; the default is the published width"
    )
    parser.add_argument("--size", type=int, nargs=3, metavar=("WIDTH", "HEIGHT", "FRAMES"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=600.0, help="begin nothing later than this")
    values = parse(parser, words, BENCHES)
    if values.tiny:
        values.layers, values.width, values.repeats = values.layers or 8, values.width or 256, 1
    values.size = tuple(values.size or ((128, 64, 9) if values.tiny else MIDDLE))
    return values


def fp8(values: argparse.Namespace, lab: Lab) -> Iterator[Report]:
    """Forwards in bf16, in fp8, in bf16 with what the fp8 weights stand for, and with static scales, on both paths.

    `cosine_*_to_dequantised` is of the activations' rounding alone, `cosine_*_to_bf16` of both roundings together.
    """
    for drawn in ("heavy", "normal"):
        network = transformer(lab.device, values, drawn)
        inputs = streams(network, Ask(values.size))
        first = drawn == "heavy"
        common: Report = {"drawn": drawn}
        before = {name: way(network)(*inputs) for name, way in WAYS.items()}
        report = common | {"form": "bf16", **compare(before["fast"], before["plain"], "plain")}
        yield report | (times(network, inputs, lab) if first else {})

        begin = time.perf_counter()
        forget(network)
        quantise_network(network, "fp8")
        lab.sync()
        report = common | {"form": "fp8", "quantise_seconds": time.perf_counter() - begin}
        ours = {name: way(network)(*inputs) for name, way in WAYS.items()}
        for name in WAYS:
            report |= {f"{name}_{key}": value for key, value in compare(ours[name], before[name], "bf16").items()}
        report |= times(network, inputs, lab) if first else {}
        dequantise_network(network)
        for name, way in WAYS.items():
            theirs = way(network)(*inputs)
            report |= {f"{name}_{key}": value for key, value in compare(ours[name], theirs, "dequantised").items()}
        yield report
        del network
        lab.collect()

    yield from _static(values, lab)


def _static(values: argparse.Namespace, lab: Lab) -> Iterator[Report]:
    """As published files have it: one scale a weight, and one for the activations, calibrated on other inputs."""
    network = transformer(lab.device, values, "heavy")
    inputs, others = streams(network, Ask(values.size)), streams(network, Ask(values.size, seed=2, sigma=0.9))
    truth = velocity(network, *inputs)
    calibrate(network, others)
    for static in (False, True):
        use_calibration(network, static)
        found = velocity(network, *inputs)
        report: Report = {"drawn": "heavy", "form": "fp8-static" if static else "fp8-per-tensor"}
        report |= compare(found, truth, "bf16")
        if static:
            shares = clamped_share(network)
            report |= {"clamped_share": sum(shares.values()) / len(shares), "clamped_worst": max(shares.values())}
            report |= timed(lambda: velocity(network, *inputs), lab)
        yield report


def text(values: argparse.Namespace, lab: Lab) -> Iterator[Report]:
    """Gemma 3 12B over one padded prompt in bf16, int8 and int4, all with the same weights."""
    truth: Tensor | None = None
    for hold in ("plain", "int8", "int4"):
        encoder, count = text_encoder(lab.device, values, hold)
        report = {"form": hold, "on": values.device, "held_bytes": held(encoder), "quantised": count}
        report |= timed(lambda encoder=encoder: encode(encoder, lab.device), lab)
        states = encode(encoder, lab.device)
        truth = states if truth is None else truth
        yield report | apart(states, truth, "{}_to_bf16")
        del encoder
        lab.collect()


def cpu(values: argparse.Namespace, lab: Lab) -> Iterator[Report]:
    """The same in bf16 on the CPU: one run."""
    encoder, _ = text_encoder(lab.device, values, "plain")
    begin = time.perf_counter()
    encoder = encoder.to("cpu")
    moved = time.perf_counter() - begin
    begin = time.perf_counter()
    encode(encoder, torch.device("cpu"))
    yield {"form": "plain", "on": "cpu", "seconds": time.perf_counter() - begin, "move_seconds": moved}


def lora(values: argparse.Namespace, lab: Lab) -> Iterator[Report]:
    """The distilled LoRA's rank on every linear: switching on and off, one forward, and memory, for each way."""
    network = transformer(lab.device, values)
    inputs = streams(network, Ask(values.size))
    drawn = draw_lora(network, device=lab.device)
    size = sum(a.nbytes + b.nbytes for a, b in drawn.layers["transformer"].values())
    yield {"form": "none", "lora_bytes": size, **times(network, inputs, lab)}
    results: dict[str, Velocities] = {}
    for name, way in {"added": added, "merged": merged}.items():
        lab.collect()
        on: list[float] = []
        off: list[float] = []
        for _ in range(values.repeats + 1):
            begin = time.perf_counter()
            with way(network, [(drawn, 0.8)]):
                lab.sync()
                on.append(time.perf_counter() - begin)
                begin = time.perf_counter()
            lab.sync()
            off.append(time.perf_counter() - begin)
        report: Report = {"form": name, "on_seconds": median(on[1:]), "off_seconds": median(off[1:])}
        with way(network, [(drawn, 0.8)]):
            report |= times(network, inputs, lab)
            results[name] = velocity(network, *inputs)
        if name == "merged":
            report |= compare(results["added"], results["merged"], "merged", "added_")
        yield report


BENCHES: dict[str, Callable[[argparse.Namespace, Lab], Iterator[Report]]] = {
    "fp8": fp8,
    "text": text,
    "lora": lora,
    "cpu": cpu,
}


def _fast(network: nn.Module) -> Callable[[Stream, Stream], Velocities]:
    stage = passes(network)
    return lambda video, audio: stage(video, audio, ())[0]


def _plain(network: nn.Module) -> Callable[[Stream, Stream], Velocities]:
    return lambda video, audio: velocity(network, video, audio)


# As a stage of denoising has it: what the fast path remembers of a prompt is kept from one forward to the next.
WAYS = {"fast": _fast, "plain": _plain}


def times(network: nn.Module, inputs: tuple[Stream, Stream], lab: Lab) -> Report:
    """Seconds and memory of one forward on each path, and the bytes of the weights."""
    report: Report = {"held_bytes": held(network)}
    for name, way in WAYS.items():
        step = way(network)
        found = timed(lambda step=step: step(*inputs), lab)
        report |= {f"{name}_{key}": value for key, value in found.items()}
    forget(network)
    return report


def timed(work: Callable[[], Any], lab: Lab) -> Report:
    """Median seconds, and the device's peak beyond what it held before."""
    work()
    lab.sync()
    cuda = lab.device.type == "cuda"
    before = torch.cuda.memory_allocated(lab.device) if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats(lab.device)
    seconds = lab.times(work)
    peak = torch.cuda.max_memory_allocated(lab.device) - before if cuda else None
    return {"seconds": median(seconds), "runs": seconds, "extra_bytes": peak}


def held(network: nn.Module) -> int:
    """Bytes of all weights and buffers."""
    return sum(tensor.nbytes for tensor in {t.data_ptr(): t for t in network.state_dict().values()}.values())


def compare(found: Velocities, truth: Velocities, name: str, before: str = "") -> Report:
    """Cosine and relative error of both streams against `truth`, which is called `name`."""
    report: Report = {}
    for side, one, other in zip(("video", "audio"), found, truth, strict=True):
        report |= apart(one, other, f"{before}{{}}_{side}_to_{name}")
    return report


def apart(found: Tensor, truth: Tensor, name: str) -> Report:
    """Cosine and relative error, under `name` with the one or the other word in it."""
    far = distances(found, truth)
    return {name.format("cosine"): 1 - far["cosine_distance"], name.format("error"): far["relative_l2"]}


if __name__ == "__main__":
    main()
