"""`ltx2 generate` and `ltx2 plan`: from parsed flags to a file, or to a description of what would be done."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx2.doors.flags import given, read_lora, to_request
from ltx2.doors.machine import EMBEDDED_NOTE, Choice, check_inputs, check_output, choose, held_of, load_models
from ltx2.doors.progress import Reporter
from ltx2.doors.show import describe, size
from ltx2.spec.cost import need
from ltx2.spec.errors import GenerationFailed, OutOfRoom, RefusedRequest
from ltx2.spec.settings import Settings

if TYPE_CHECKING:
    from ltx2.spec.events import Finished
    from ltx2.spec.plan import Plan

# Flags that say how and where, not what: they may be changed when a video is made again. The image and the LoRAs must be
# those of the file; it may know their names only.
HOW = {"source", "output", "model", "kind", "weights", "text_encoder", "download", "distilled_lora"} | {
    "upsampler",
    "image",
    "lora",
    "device",
    "precision",
    "text_encoder_precision",
    "text_encoder_device",
    "lora_mode",
    "attention",
    "activation_scales",
    "prompt_cache",
    "json",
    "quiet",
    "command",
}


def plan_command(values: argparse.Namespace, settings: Settings) -> int:
    """Print the Plan and its cost; no torch, no weights, no GPU."""
    choice, plan = prepare(values, settings)
    check_inputs(plan)
    cost = need(plan, choice.card, held_of(values, settings, "cuda"), settings.price_per_hour)
    if values.json:
        print(json.dumps({"plan": plan.as_dict(), "cost": cost.as_dict()}))
    else:
        print(describe(plan, choice.card, cost, settings))
    return 0


def generate_command(values: argparse.Namespace, settings: Settings) -> int:
    """Make one video. Everything that can be refused is refused before torch is imported or weights are read."""
    if not values.output:
        raise RefusedRequest("output: say where the video goes", knob="output", hint="-o out.mp4")
    out = Path(values.output)
    check_output(out)
    choice, plan = prepare(values, settings)
    check_inputs(plan)
    reporter = Reporter(values.quiet or values.json)
    if plan.image:
        from ltx2.pipeline.condition import open_image

        open_image(plan.image)
    try:
        finished = run(choice, plan, values, settings, reporter)
    except OutOfRoom as error:
        # The engine does not tell the folder: its words also go to clients of a service.
        raise OutOfRoom(
            f"there was no room for the video in {out.absolute().parent}",
            knob="output", hint="free some space there, or name another folder with -o",
        ) from error  # fmt: skip
    for warning in finished.warnings:
        print(f"ltx2: warning: {warning}", file=sys.stderr)
    if values.json:
        print(json.dumps(as_json(finished, plan)))
    else:
        peak = f"peak {size(finished.peak_bytes)}"
        skipped = f"  {finished.skipped} steps skipped" if plan.skips else ""
        print(f"{finished.path}  seed {finished.seed}  {finished.seconds:.1f} s  {peak}{skipped}")
    return 0


def prepare(values: argparse.Namespace, settings: Settings) -> tuple[Choice, Plan]:
    """The checkpoint and the Plan of the flags, or of the file that `--from` names."""
    from ltx2.spec.plan import resolve

    if values.source:
        return _again(values, settings)
    request = to_request(values)
    choice = choose(values, settings)
    plan = resolve(request, choice.card)
    if choice.defaulted and not values.quiet:
        print(f"ltx2: note: {EMBEDDED_NOTE}", file=sys.stderr)
    return choice, plan


def run(choice: Choice, plan: Plan, values: argparse.Namespace, settings: Settings, reporter: Reporter) -> Finished:
    """Load the models and generate, showing progress. Closing the generator leaves no file on any failure."""
    from ltx2.spec.events import Finished, Progress, Retrying

    reporter.show(Progress("load", 0, 1))
    models = load_models(choice, values, settings, plan)
    from ltx2.engine.engine import Engine

    reporter.show(Progress("load", 1, 1))

    engine = Engine(models)
    engine.check_fits(plan)
    with closing(engine.generate(plan, Path(values.output))) as events:
        for event in events:
            if isinstance(event, Finished):
                reporter.close()
                return event
            if isinstance(event, Retrying):
                reporter.say(f"again: {event.reason}")
            else:
                reporter.show(event)
    raise GenerationFailed("the engine stopped without a result")


def as_json(finished: Finished, plan: Plan) -> dict[str, object]:
    """The JSON object of `generate --json`."""
    return {
        "file": str(finished.path),
        "seed": finished.seed,
        "seconds": finished.seconds,
        "peak_bytes": finished.peak_bytes,
        "timings": finished.timings,
        "warnings": list(finished.warnings),
        "skipped_steps": finished.skipped,
        "plan": plan.as_dict(),
    }


def _again(values: argparse.Namespace, settings: Settings) -> tuple[Choice, Plan]:
    changed = sorted(given(values).keys() - HOW)
    if changed:
        raise RefusedRequest(
            f"from: the plan of the file is kept as it is, so {', '.join(changed)} cannot be given",
            knob="from", hint="leave it out, or ask anew without --from",
        )  # fmt: skip
    from ltx2.pipeline.mux import read_plan

    plan = found(read_plan(values.source), given(values))
    choice = choose(values, settings, fallback=plan.model)
    if choice.card.version != plan.version:
        raise RefusedRequest(
            f"from: the file was made with {plan.model} ({plan.version}), not {choice.card.name}",
            knob="model", hint=f"--model {plan.model}",
        )  # fmt: skip
    return choice, plan


def found(plan: Plan, flags: dict[str, Any]) -> Plan:
    """The plan with its image and LoRAs where the flags say that they are now.

    Raises RefusedRequest for others than those that it was made with, and for files that are not there.
    """
    if "image" in flags:
        if Path(flags["image"]).name != Path(plan.image).name:
            raise _another("image", Path(plan.image).name)
        plan = replace(plan, image=flags["image"])
    if "lora" in flags:
        asked = [read_lora(text) for text in flags["lora"]]
        pairs = zip(asked, plan.loras, strict=False)
        loras = tuple((lora["path"], float(lora.get("strength", strength))) for lora, (_, strength) in pairs)
        if len(asked) != len(plan.loras) or _names(loras) != _names(plan.loras):
            raise _another("lora", _names(plan.loras))
        plan = replace(plan, loras=loras)
    for knob, path in (("image", plan.image), *(("lora", path) for path, _ in plan.loras)):
        if path and not Path(path).exists():
            raise RefusedRequest(
                f"from: the file was made with {path}, and there is no such file here",
                knob=knob, hint=f"say where it is now: --{knob} FOLDER/{Path(path).name}",
            )  # fmt: skip
    return plan


def _names(loras: tuple[tuple[str, float], ...]) -> str:
    return ", ".join(f"{Path(path).name}:{strength:g}" for path, strength in loras)


def _another(knob: str, names: str) -> RefusedRequest:
    made = f"with {names}, so --{knob} can only say where that is now" if names else "without"
    return RefusedRequest(f"from: the file was made {made}", knob=knob, hint=f"leave --{knob} out, or ask anew")
