"""What is made once before the first job, so that requests find their kernels and graphs: shapes, as settings write them.

A shape is `768x512x97` (width, height, frames), with a preset `768x512x97:classic`; or a word: `default` is what a request
gets that names nothing, `original` what one of the original service's routes gets. `none`, alone, is nothing at all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ltx2.spec.card import Card
from ltx2.spec.errors import RefusedRequest
from ltx2.spec.presets import preset

if TYPE_CHECKING:
    from ltx2.spec.plan import Plan

DEFAULT, ORIGINAL, NOTHING = "default", "original", "none"
WORDS = (DEFAULT, ORIGINAL)
CLASSIC = "classic"
FORM = re.compile(r"(\d+)x(\d+)x(\d+)(?::([a-z0-9-]+))?", re.ASCII)
PROMPT = "a red ball bounces"
# The first evaluation of a kind compiles kernels, the second is recorded as a graph, the third replays it.
STEPS = 3


def check(shape: str, knob: str) -> str:
    """The shape, if it is written like one. Raises RefusedRequest naming the knob."""
    if shape not in WORDS and not FORM.fullmatch(shape):
        raise RefusedRequest(
            f"{knob}: {shape!r} is no shape",
            knob=knob,
            hint="width x height x frames: 768x512x97, 768x512x97:classic; or default, original; or none, alone",
        )
    return shape


def read_shapes(text: str, knob: str) -> tuple[str, ...]:
    """Shapes between commas. Raises RefusedRequest as `check`."""
    shapes = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    return () if shapes == (NOTHING,) else tuple(check(shape, knob) for shape in shapes)


def plan_of(shape: str, card: Card) -> Plan:
    """The Plan of a shape. Raises RefusedRequest for one that the model cannot make."""
    # Settings read shapes, and help goes without pydantic.
    from ltx2.spec.plan import resolve
    from ltx2.spec.request import request

    fields: dict[str, Any] = {}
    match = FORM.fullmatch(shape)
    if match is not None:
        fields = {name: int(text) for name, text in zip(("width", "height", "frames"), match.groups(), strict=False)}
        fields |= {"preset": match[4]} if match[4] else {}
    elif shape == ORIGINAL:
        fields = original(card)
    return resolve(request(prompt=PROMPT, seed=0, **fields), card)


def plans_of(shapes: Sequence[str], card: Card) -> dict[str, Plan]:
    """The Plans of shapes by the first shape that asks for each: what is the same for this model is made once."""
    found: dict[str, Plan] = {}
    for shape in shapes:
        plan = plan_of(shape, card)
        if plan not in found.values():
            found[shape] = plan
    return found


def shortened(plan: Plan, steps: int | None = STEPS) -> Plan:
    """The plan with at most `steps` steps a stage: the same shapes and guidance, less work. None: as it is."""
    if steps is None:
        return plan
    few = [(*stage.sigmas[: min(steps, stage.steps)], stage.sigmas[-1]) for stage in plan.stages]
    stages = (replace(stage, sigmas=sigmas) for stage, sigmas in zip(plan.stages, few, strict=True))
    return replace(plan, stages=tuple(stages))


def original(card: Card) -> dict[str, Any]:
    """What a request of the original service means that names nothing: its size, by its recipe where the model has it."""
    from ltx2.spec.plan import DEFAULT_PRESET

    row = preset(card.family, CLASSIC)
    # A model that cannot follow it has one that it was made for.
    name = DEFAULT_PRESET.get(card.family) or ("distilled" if card.kind == "distilled" else CLASSIC)
    return {"preset": name, "width": row.width, "height": row.height, "frames": row.frames, "fps": str(row.fps)}
