"""`ltx2 bench`: cold and warm seconds of each phase, memory and operations a second, alone or against Diffusers.

Every timed run has its own prompt and seed, so nothing can be reused between runs; the median counts. The table goes to
stderr, and the last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from ltx2.doors.flags import to_request
from ltx2.doors.machine import Choice, choose, device_of, held_of, load_models, precision_of
from ltx2.doors.origin import origin
from ltx2.doors.show import size
from ltx2.spec.cost import Cost, need
from ltx2.spec.errors import GenerationFailed, NotOffered, RefusedRequest
from ltx2.spec.lossy import NO_EXTRAS
from ltx2.spec.settings import Settings
from ltx2.spec.shapes import shortened

if TYPE_CHECKING:
    from ltx2.engine.engine import Engine
    from ltx2.models.components import Models
    from ltx2.pipeline.generate import Retouch
    from ltx2.spec.events import Finished
    from ltx2.spec.plan import Plan
    from ltx2.spec.request import Request

PROMPT = "a red ball bounces on a dark background with a high beep at every bounce"


def bench_command(values: argparse.Namespace, settings: Settings) -> int:
    """Measure, or judge with `--quality`."""
    values.prompt = values.prompt or PROMPT
    for knob in ("repeats", "against_repeats", "workers", "prompts", "warm_up_steps"):
        count = getattr(values, knob)
        if count is not None and count < 1:
            raise RefusedRequest(f"{knob}: {count} is too few", knob=knob, hint="1 works")
    if values.quality:
        from ltx2.doors.quality import quality

        report = quality(values, settings)
    else:
        report = measure(values, settings)
    print(json.dumps(report))
    return 0


def measure(values: argparse.Namespace, settings: Settings, models: Models | None = None) -> dict[str, Any]:
    """Time a request on this machine, with `models` where they are loaded already; the JSON-ready report."""
    from ltx2.spec.plan import resolve

    request = to_request(values)
    choice = choose(values, settings)
    if values.picture == "moving" and choice.source.weights != "random":
        raise RefusedRequest(
            "picture: real weights show a picture of their own", knob="picture", hint="--weights random works with it"
        )
    plans = [
        resolve(_take(request, number), choice.card) for number in range(values.repeats + values.against_repeats + 1)
    ]
    if values.against:
        _check_comparable(plans[0])
    began = time.perf_counter()
    models = models or load_models(choice, values, settings, plans[0])
    from ltx2.engine.engine import Engine

    engine = Engine(models, _retouch(values.picture, plans[0], models))
    loaded = time.perf_counter() - began
    first = engine.warm_up(shortened(plans[0], values.warm_up_steps))
    timed, others = plans[1 : values.repeats + 1], plans[values.repeats + 1 :]
    runs = [_timed(engine, plan) for plan in timed]
    device = device_of(values, settings)
    cost = need(plans[0], choice.card, held_of(values, settings, device), settings.price_per_hour)
    report: dict[str, Any] = {
        "bench": plans[0].preset,
        "model": choice.card.name,
        "weights": choice.source.weights,
        "picture": values.picture if choice.source.weights == "random" else "its own",
        "precision": precision_of(values, settings, device),
        **origin(device),
        "size": [plans[0].width, plans[0].height, plans[0].frames],
        "steps": [stage.steps for stage in plans[0].stages],
        "attention": _attention(models, plans[0]),
        "passes": cost.passes,
        "skipped_steps": [run.skipped for run in runs],
        "cold": {"load": loaded, "first": first, "warm_up_steps": values.warm_up_steps},
        "warm": _phases(runs),
        "runs": [run.seconds for run in runs],
        "peak_bytes": max(run.peak_bytes for run in runs),
        "tflops": _rates(cost, _phases(runs)),
        "dollars": median(run.seconds for run in runs) / 3600 * settings.price_per_hour if device != "cpu" else None,
    }
    if values.against:
        others = [shortened(plans[0], values.warm_up_steps), *others]
        report["against"] = _against(engine, others, median(run.seconds for run in runs))
    _table(report, choice)
    return report


def _take(request: Request, number: int) -> Request:
    """The same request with another prompt and seed."""
    seed = (request.seed or 0) + number
    return request.model_copy(update={"prompt": f"{request.prompt}, take {number}", "seed": seed})


def _timed(engine: Engine, plan: Plan) -> Finished:
    from ltx2.spec.events import Finished

    with tempfile.TemporaryDirectory() as folder, closing(engine.generate(plan, Path(folder) / "bench.mp4")) as events:
        for event in events:
            if isinstance(event, Finished):
                return event
    raise GenerationFailed("the engine stopped without a result")


def _phases(runs: Iterable[Finished]) -> dict[str, float]:
    """Median seconds of each phase, of what no phase accounts for, and of the whole run."""
    runs = list(runs)
    phases = {phase: median(run.timings.get(phase, 0.0) for run in runs) for phase in runs[0].timings}
    rest = median(run.seconds - sum(run.timings.values()) for run in runs)
    return {**phases, "rest": rest, "total": median(run.seconds for run in runs)}


def _attention(models: Models, plan: Plan) -> list[str]:
    """What each stage's self-attention of the picture runs on."""
    from ltx2.models.fast.attention import backend

    if not models.fast:
        return ["Diffusers' own choice"] * len(plan.stages)
    tokens = [plan.grid(stage).video_tokens for stage in plan.stages]
    return [backend(models.device, models.dtype, count, models.attention == "fp8") for count in tokens]


def _rates(cost: Cost, phases: dict[str, float]) -> dict[str, float]:
    """Achieved TFLOP/s of each denoising stage; of none when steps are skipped, for what ran is then not what was counted."""
    if cost.at_most:
        return {}
    names = [f"stage {number}" for number in range(1, len(cost.stages) + 1)]
    return {
        name: stage.flops / phases[name] / 1e12
        for name, stage in zip(names, cost.stages, strict=True)
        if phases.get(name)
    }


def _check_comparable(plan: Plan) -> None:
    """Diffusers' pipelines are stages of Euler steps from text; anything else would compare different work."""
    plain = all(stage.sampler == "euler" and stage.extras == NO_EXTRAS for stage in plan.stages)
    # Merging a LoRA between stages would be on the other side's bill.
    if not plain or plan.image or plan.loras or len({stage.lora for stage in plan.stages}) > 1:
        raise NotOffered(
            f"against: Diffusers' pipelines cannot do {plan.preset!r} in the same passes",
            knob="against", hint="stages of Euler steps with one LoRA or none, as classic, dev, distilled and, of a "
            "distilled checkpoint, distilled-two-stage have, can be compared, without image and lossy extras",
        )  # fmt: skip


def _retouch(picture: str, plan: Plan, models: Models) -> Retouch:
    """What is encoded in place of the frames that were decoded, for they are decoded in any case."""
    from ltx2.doors.moving import Moving
    from ltx2.pipeline.generate import unchanged

    return Moving(plan.width, plan.height, plan.frames, models.device) if picture == "moving" else unchanged


def _against(engine: Engine, plans: list[Plan], ours: float) -> dict[str, Any]:
    """Seconds of Diffusers' pipelines for the same work, up to the file; the first plan is its warm-up."""
    from ltx2.models import oracle

    models = engine.models
    seconds: list[float] = []
    passes = 0
    # The distilled LoRA is merged once for all runs, so its merging is not on the other side's bill.
    with models.lora(plans[0].stages[0].lora):
        for number, plan in enumerate(plans):
            began = time.perf_counter()
            answer = oracle.run_stages(models, _asks(plan), decode=True)
            _write(engine, plan, answer)
            passes = answer.passes
            if number:
                seconds.append(time.perf_counter() - began)
    warm = median(seconds)
    return {"name": "diffusers", "runs": seconds, "total": warm, "passes": passes, "ratio": warm / ours}


def _asks(plan: Plan) -> list[Any]:
    from ltx2.models.oracle import Ask, Knobs

    return [
        Ask(
            prompt=plan.prompt,
            width=stage.width,
            height=stage.height,
            frames=plan.frames,
            sigmas=stage.sigmas,
            fps=float(plan.fps),
            negative_prompt=plan.negative_prompt,
            video=Knobs(stage.video.cfg, stage.video.stg, stage.video.modality, stage.video.rescale),
            audio=Knobs(stage.audio.cfg, stage.audio.stg, stage.audio.modality, stage.audio.rescale),
            stg_blocks=stage.video.stg_blocks or stage.audio.stg_blocks,
            seed=plan.seed,
        )
        for stage in plan.stages
    ]


def _write(engine: Engine, plan: Plan, answer: Any) -> None:
    """Write the other side's pixels [1, F, H, W, 3] in 0..1 and waveform [1, 2, S] with our muxer."""
    import torch

    from ltx2.pipeline.colour import yuv420
    from ltx2.pipeline.mux import writing
    from ltx2.pipeline.transfer import to_host

    pixels = torch.as_tensor((answer.video[0] * 255).round().clip(0, 255).astype("uint8"))
    with (
        tempfile.TemporaryDirectory() as folder,
        writing(plan, Path(folder) / "bench.mp4", engine.models.card.output_sampling_rate) as muxer,
    ):
        muxer.sound(answer.audio[0].float().cpu().numpy())
        muxer.frames(to_host(yuv420(engine.retouch(pixels.to(engine.models.device)))))


def _table(report: dict[str, Any], choice: Choice) -> None:
    width, height, frames = report["size"]
    lines = [
        f"{choice.card.name}, {report['bench']}, {width}x{height}x{frames}, {report['precision']}, {report['device']}"
    ]
    if report["weights"] == "random":
        lines.append(f"{'encoded':<10} {report['picture']}")
    lines.append(f"{'load':<10} {report['cold']['load']:8.2f} s")
    lines.append(f"{'first run':<10} {report['cold']['first']:8.2f} s")
    for phase, seconds in report["warm"].items():
        rate = report["tflops"].get(phase)
        lines.append(f"{phase:<10} {seconds:8.3f} s" + (f"  {rate:.4g} TFLOP/s" if rate else ""))
    skipped = f"    {median(report['skipped_steps']):g} steps skipped" if any(report["skipped_steps"]) else ""
    lines.append(f"{'passes':<10} {report['passes']:8d}    peak {size(report['peak_bytes'])}{skipped}")
    lines.append(f"{'attention':<10} {', '.join(dict.fromkeys(report['attention']))}")
    if against := report.get("against"):
        lines.append(
            f"{'Diffusers':<10} {against['total']:8.3f} s  {against['ratio']:.2f} times ours, {against['passes']} passes"
        )
    print("\n".join(lines), file=sys.stderr)
