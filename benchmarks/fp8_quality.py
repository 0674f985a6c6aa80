"""What fp8 changes in the embedded model's videos: the judge's shares, and how far the latents move from step to step.

    python benchmarks/fp8_quality.py RESULTS.jsonl [--prompts 90] [--part 1/3] [--preset distilled-two-stage] [--activations]

Every held-out prompt is made twice with one seed: plainly (bf16) and with the transformer in fp8. On a GPU its fp8 units
round the activations, too; a CPU dequantises the weights, unless `--activations` asks it for the same rounding (and for
the plain path). A line of JSON for every prompt as it is made: what the judge found wrong, and the relative distance of the
latents that enter the last step; in the end one for every step: the median and the largest distance; and a last line with
both judgements. Parts are for processes side by side: most of a prompt's time is the CPU's.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from command import append, arguments, failure, parse
from torch import Tensor

from ltx2.doors.origin import origin
from ltx2.doors.quality import Clip, read_clip, shares
from ltx2.engine.engine import Engine
from ltx2.judge import held_out_prompts, judge, score
from ltx2.models.components import load
from ltx2.models.holding import Holding
from ltx2.models.precision import Fp8Linear, product, quantise_rows
from ltx2.models.velocity import Perturbation, Stream
from ltx2.pipeline import generate
from ltx2.spec.plan import Plan, resolve
from ltx2.spec.request import request

FORMS = {"bf16": Holding(), "fp8": Holding(transformer="fp8", loras="added")}
Walk = list[tuple[Tensor, Tensor]]


@dataclass
class Tally:
    """The prompts so far: both clips of each, and how far its latents moved, step by step."""

    clips: dict[str, list[Clip]] = field(default_factory=lambda: {name: [] for name in FORMS})
    moved: list[list[tuple[float, float]]] = field(default_factory=list[list[tuple[float, float]]])

    def add(self, clips: dict[str, Clip], moved: list[tuple[float, float]]) -> None:
        for name, clip in clips.items():
            self.clips[name].append(clip)
        self.moved.append(moved)

    def steps(self) -> Iterator[dict[str, Any]]:
        """The median and the largest distance of each step."""
        for step, pairs in enumerate(zip(*self.moved, strict=True)):
            line: dict[str, Any] = {"step": step}
            for side, found in zip(("video", "audio"), zip(*pairs, strict=True), strict=True):
                line |= {side: median(found), f"{side}_largest": max(found)}
            yield line

    def judged(self) -> dict[str, Any]:
        """The judge's shares of both forms, and how many prompts it found the same of."""
        same = sum(one.score == other.score for one, other in zip(*self.clips.values(), strict=True))
        return {**{name: shares(found) for name, found in self.clips.items()}, "judged_alike": same}


def main(words: Sequence[str] | None = None) -> None:
    """Make the videos, print what moved."""
    parser = arguments(__doc__)
    parser.add_argument("--prompts", type=int, default=90)
    parser.add_argument("--part", type=_part, default=(1, 1), metavar="N/OF", help="only every OF-th of the prompts")
    parser.add_argument("--preset", default="distilled-two-stage")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--activations", action="store_true", help="round activations on a CPU, as a GPU does")
    values = parse(parser, words)
    began = time.perf_counter()
    common = {
        "bench": "fp8-quality",
        "activations": values.activations,
        "preset": values.preset,
        **origin(values.device),
    }
    tally = Tally()
    try:
        _walk(values, common, tally)
    except KeyboardInterrupt:
        print("stopped: what was made so far counts", file=sys.stderr)
    if not tally.moved:
        sys.exit("no prompt was made in both forms")
    common["prompts"] = len(tally.moved)
    for line in tally.steps():
        append(values.results, common | line)
    append(values.results, common | tally.judged() | {"seconds": time.perf_counter() - began})


def _walk(values: argparse.Namespace, common: dict[str, Any], tally: Tally) -> None:
    """Every prompt in both forms, a line for each; one that fails does not count."""
    engines = _engines(values)
    card = replace(engines["bf16"].models.card, preset=values.preset)
    prompts = held_out_prompts()
    count = min(values.prompts, len(prompts))
    part, parts = values.part
    for number in range(part - 1, count, parts):
        prompt = prompts[number * len(prompts) // count]
        line = {**common, "prompt": prompt.text, "seed": number}
        plan = resolve(request(prompt=prompt.text, seed=number), card)
        try:
            clips: dict[str, Clip] = {}
            walked: dict[str, Walk] = {}
            for name, engine in engines.items():
                with recording() as walked[name]:
                    clips[name] = _clip(engine, plan, dict(prompt.attributes))
            moved = [_distances(*pair) for pair in zip(walked["bf16"], walked["fp8"], strict=True)]
        except Exception as error:
            append(values.results, line | failure(error))
            continue
        tally.add(clips, moved)
        wrong = {name: [what for what, right in clip.score.items() if not right] for name, clip in clips.items()}
        append(values.results, line | {"wrong": wrong, "last_video": moved[-1][0], "last_audio": moved[-1][1]})


def _part(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text} is no part, 1/3 is")
    return int(part), int(parts)


def _engines(values: argparse.Namespace) -> dict[str, Engine]:
    if values.activations:
        Fp8Linear.forward = _rounding  # pyright: ignore[reportAttributeAccessIssue]
    engines = {
        name: Engine(load("tiny", device=values.device, dtype=torch.bfloat16, holding=holding))
        for name, holding in FORMS.items()
    }
    for engine in engines.values():
        engine.models.fast = not values.activations
    return engines


@contextmanager
def recording() -> Iterator[Walk]:
    """Notes the latents (video, audio) that enter every evaluation of the denoiser."""
    original, found = generate.passes, list[tuple[Tensor, Tensor]]()

    def wrapped(*given: Any) -> Any:
        step = original(*given)

        def noted(video: Stream, audio: Stream, weak: Sequence[Perturbation] = ()) -> list[tuple[Tensor, Tensor]]:
            found.append((video.latent[:1].float().cpu(), audio.latent[:1].float().cpu()))
            return step(video, audio, weak)

        return noted

    generate.passes = wrapped
    try:
        yield found
    finally:
        generate.passes = original


def _rounding(layer: Fp8Linear, x: Tensor) -> Tensor:
    values, scales = quantise_rows(x)
    return product(values, scales, layer.weight, layer.scale, layer.bias, x.dtype)


def _clip(engine: Engine, plan: Plan, attributes: dict[str, str]) -> Clip:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "clip.mp4"
        with closing(engine.generate(plan, out)) as events:
            for _ in events:
                pass
        video, audio, rate = read_clip(out)
    return Clip(plan.prompt, score(judge(video, float(plan.fps), audio, rate), attributes))


def _distances(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Relative distance of the latents, of picture and sound."""
    video, audio = (float((b - a).norm() / a.norm()) for a, b in zip(one, other, strict=True))
    return video, audio


if __name__ == "__main__":
    # So that `timeout` leaves the judgement of what was made until then.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
