"""What the lossy extras cost and save: the embedded model's held-out prompts, each made plainly and with every setting.

    python -m benchmarks.lossy out.json [--prompts 90] [--preset dev]
    python -m benchmarks.lossy out.json --table          what was measured, as the table of docs/03-speed.md

For each setting: the judge's shares, passes and CPU seconds of denoising (one thread), and how far the final latents lie from
the plain ones, |a - b| / |b|, beside what plainly asking for fewer steps gives. The file is written anew after every prompt.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

import ltx2.pipeline.generate as generate_module
from ltx2.doors.origin import origin
from ltx2.doors.quality import Clip, read_clip, shares
from ltx2.engine.engine import Engine
from ltx2.judge import held_out_prompts, judge, score
from ltx2.models.components import load
from ltx2.models.describe import Source
from ltx2.spec.events import Finished, Progress
from ltx2.spec.plan import Plan, resolve
from ltx2.spec.request import request

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "step_cache 0.1": {"step_cache": 0.1},
    "step_cache 0.2": {"step_cache": 0.2},
    "guidance_interval 0:0.75": {"guidance_interval": "0:0.75"},
    "guidance_interval 0:0.5": {"guidance_interval": "0:0.5"},
    "steps 20": {"steps": 20},
    "steps 15": {"steps": 15},
}
STEPS = 30


@dataclass
class Made:
    """One video: what the judge says, final latents of both modalities, work."""

    clip: Clip
    latents: list[torch.Tensor]
    passes: float
    cpu_seconds: float


@dataclass
class Tally:
    """All videos of one setting."""

    clips: list[Clip] = field(default_factory=list[Clip])
    passes: list[float] = field(default_factory=list[float])
    cpu_seconds: list[float] = field(default_factory=list[float])
    distances: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])

    def add(self, made: Made, plain: Made) -> None:
        self.clips.append(made.clip)
        self.passes.append(made.passes)
        self.cpu_seconds.append(made.cpu_seconds)
        video, audio = (_distance(a, b) for a, b in zip(made.latents, plain.latents, strict=True))
        self.distances.append((video, audio))

    def summary(self) -> dict[str, Any]:
        sides = {"video": [pair[0] for pair in self.distances], "audio": [pair[1] for pair in self.distances]}
        return {
            "prompts": len(self.clips),
            "passes": mean(self.passes),
            "cpu_seconds": median(self.cpu_seconds),
            "distance": {side: {"mean": mean(all_), "median": median(all_)} for side, all_ in sides.items()},
            **shares(self.clips),
        }


def main() -> None:
    """Measure, and write after every prompt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=90)
    parser.add_argument("--preset", default="dev")
    parser.add_argument("--table", action="store_true")
    values = parser.parse_args()
    if values.table:
        print(table(json.loads(values.out.read_text())))
        return
    torch.set_num_threads(1)
    models = load(Source("tiny"), device="cpu", dtype=torch.float32)
    engine, prompts = Engine(models), held_out_prompts()
    tallies = {name: Tally() for name in SETTINGS}
    for number in range(values.prompts):
        prompt = prompts[number * len(prompts) // values.prompts]
        plain: Made | None = None
        for name, setting in SETTINGS.items():
            asked = {"steps": STEPS} | setting
            plan = resolve(request(prompt=prompt.text, seed=number, preset=values.preset, **asked), models.card)
            made = _make(engine, plan, dict(prompt.attributes))
            plain = plain or made
            tallies[name].add(made, plain)
        report = {"preset": values.preset, **origin("cpu"), "steps": STEPS}
        report["settings"] = {name: tally.summary() for name, tally in tallies.items()}
        values.out.write_text(json.dumps(report, indent=1))


def table(report: dict[str, Any]) -> str:
    """Rows of a report: work, medians of the distances, and what the judge found."""
    lines = [
        "| setting | passes | CPU s | distance of picture | of sound | all right | shape | motion |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in report["settings"].items():
        video, audio = (found["distance"][side]["median"] for side in ("video", "audio"))
        shares = [found["all"], found["shares"]["shape"], found["shares"]["motion"]]
        cells = [f"`{name}`", f"{found['passes']:.1f}", f"{found['cpu_seconds']:.2f}", f"{video:.3f}", f"{audio:.3f}"]
        lines.append(f"| {' | '.join([*cells, *(f'{share:.1%}' for share in shares)])} |")
    return "\n".join(lines)


def _make(engine: Engine, plan: Plan, attributes: dict[str, str]) -> Made:
    latents: list[torch.Tensor] = []
    video, audio = generate_module.decode_video, generate_module.decode_audio

    def seen(models: Any, latent: torch.Tensor, *rest: Any) -> Any:
        latents.append(latent.clone())
        return (video if latent.ndim == 5 else audio)(models, latent, *rest)

    generate_module.decode_video = generate_module.decode_audio = seen
    try:
        with tempfile.TemporaryDirectory() as folder:
            finished, seconds = _run(engine, plan, Path(folder) / "clip.mp4")
            pixels, sound, rate = read_clip(finished.path)
    finally:
        generate_module.decode_video, generate_module.decode_audio = video, audio
    stage = plan.stages[0]
    passes = plan.evaluations - finished.skipped * _passes_of_a_skipped_step(stage)
    clip = Clip(plan.prompt, score(judge(pixels, float(plan.fps), sound, rate), attributes))
    return Made(clip, latents, passes, seconds)


def _passes_of_a_skipped_step(stage: Any) -> int:
    """No setting here has both extras, so every step that may be skipped is a guided one."""
    assert not stage.extras.cache or stage.guided_evaluations == stage.evaluations
    return stage.passes_per_step


def _run(engine: Engine, plan: Plan, out: Path) -> tuple[Finished, float]:
    """The result, and CPU seconds from the end of the text to the end of the last stage."""
    begin = end = 0.0
    for event in engine.generate(plan, out):
        if isinstance(event, Progress) and event.phase == "text":
            begin = time.process_time()
        if isinstance(event, Progress) and event.phase.startswith("stage"):
            end = time.process_time()
        if isinstance(event, Finished):
            return event, end - begin
    raise AssertionError("the last event is Finished")


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).double().norm() / b.double().norm()).item()


if __name__ == "__main__":
    main()
