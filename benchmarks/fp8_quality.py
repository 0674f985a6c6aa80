"""What fp8 changes in the embedded model's videos: the judge's shares, and how far the latents move from step to step.

    python benchmarks/fp8_quality.py RESULTS.jsonl [--prompts 90] [--preset distilled-two-stage] [--activations]

Every held-out prompt is made twice with one seed: plainly (bf16) and with the transformer in fp8. On a GPU its fp8 units
round the activations, too; a CPU dequantises the weights, unless `--activations` asks it for the same rounding (and for
the plain path). A line of JSON for every step: the median and the largest relative distance of the latents that enter it;
and a last line with both judgements.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

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


def main(words: list[str]) -> None:
    """Make the videos, print what moved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--prompts", type=int, default=90)
    parser.add_argument("--preset", default="distilled-two-stage")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--activations", action="store_true", help="round activations on a CPU, as a GPU does")
    values = parser.parse_args(words)
    if values.activations:
        Fp8Linear.forward = _rounding  # pyright: ignore[reportAttributeAccessIssue]
    engines = {
        name: Engine(load("tiny", device=values.device, dtype=torch.bfloat16, holding=holding))
        for name, holding in FORMS.items()
    }
    for engine in engines.values():
        engine.models.fast = not values.activations
    card = replace(engines["bf16"].models.card, preset=values.preset)
    prompts = held_out_prompts()
    count = min(values.prompts, len(prompts))
    clips: dict[str, list[Clip]] = {name: [] for name in FORMS}
    moved: list[list[tuple[float, float]]] = []
    began = time.perf_counter()
    try:
        for number in range(count):
            prompt = prompts[number * len(prompts) // count]
            plan = resolve(request(prompt=prompt.text, seed=number), card)
            walked: dict[str, Walk] = {}
            for name, engine in engines.items():
                with recording() as walked[name]:
                    clips[name].append(_clip(engine, plan, dict(prompt.attributes)))
            moved.append([_distances(*pair) for pair in zip(walked["bf16"], walked["fp8"], strict=True)])
            print(f"{number + 1}/{count}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped: what was made so far counts", file=sys.stderr)
    clips = {name: found[: len(moved)] for name, found in clips.items()}
    common = {
        "bench": "fp8-quality",
        "activations": values.activations,
        "preset": values.preset,
        "prompts": len(moved),
        **origin(values.device),
    }
    for step, pairs in enumerate(zip(*moved, strict=True)):
        line: dict[str, Any] = {"step": step}
        for side, found in zip(("video", "audio"), zip(*pairs, strict=True), strict=True):
            line |= {side: median(found), f"{side}_largest": max(found)}
        _append(values.results, common | line)
    judged = {name: shares(found) for name, found in clips.items()}
    same = sum(one.score == other.score for one, other in zip(clips["bf16"], clips["fp8"], strict=True))
    _append(values.results, common | judged | {"judged_alike": same, "seconds": time.perf_counter() - began})


@contextmanager
def recording() -> Iterator[Walk]:
    """Notes the latents (video, audio) that enter every evaluation of the denoiser."""
    original, found = generate.passes, list[tuple[Tensor, Tensor]]()

    def wrapped(transformer: nn.Module, fast: bool = True) -> Any:
        step = original(transformer, fast=fast)

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


def _append(results: Path, line: dict[str, Any]) -> None:
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
