"""Extras that make a video faster and a little different: off unless they are asked for, each with its measured price.

`Extras` stand in a Plan, so that a video is made again with them; `extras` refuses them where they could do nothing, or harm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ltx2.spec.errors import RefusedRequest
from ltx2.spec.request import Request

WHOLE = (0.0, 1.0)
# Steps at the beginning that are always computed, as a share: there the layout is decided.
KEPT_SHARE = 0.25
MIN_CACHED_STEPS = 4
GUIDED_PRESETS = "classic, dev, two-stage or hq"
# Samplers for which a step is more than one velocity along which the latents go on.
UNCACHED = {
    "res_2s": "evaluates between its steps",
    "euler-ancestral": "adds fresh noise in every step",
    "gradient-estimation": "takes the change of velocity from step to step for more than it is",
}


@dataclass(frozen=True)
class Extras:
    """What one stage leaves out.

    `guided` is the share of the steps, from and to, in which guidance runs. `cache` is the relative change of velocity
    up to which a step takes it from those before instead of computing it; 0 computes every step.
    """

    guided: tuple[float, float] = WHOLE
    cache: float = 0.0

    def guides(self, step: int, steps: int) -> bool:
        """Whether guidance runs in step number `step` of `steps`."""
        return self.guided[0] <= step / steps < self.guided[1]

    def may_skip(self, step: int, steps: int) -> bool:
        """Whether step number `step` of `steps` may be left out at all."""
        return self.cache > 0 and KEPT_SHARE * steps <= step < steps - 1


NO_EXTRAS = Extras()


def extras(request: Request, sampler: str, steps: int, passes: Sequence[int]) -> Extras:
    """The extras of a guided stage. `passes` are those of an evaluation for the picture and for the sound.

    Raises RefusedRequest, naming the knob and what works.
    """
    guided, cache = request.guidance_interval or WHOLE, request.step_cache or 0.0
    asked = Extras(guided, cache)
    if guided != WHOLE:
        _check_interval(asked, sampler, steps, max(passes))
    if cache:
        _check_cache(sampler, steps)
    return asked


def check_offered(request: Request, preset: str, guided: bool) -> None:
    """Raise RefusedRequest for extras of a preset without a `guided` stage."""
    if guided:
        return
    if request.guidance_interval is not None:
        raise RefusedRequest(
            f"guidance_interval: {preset!r} does not guide",
            knob="guidance_interval", hint=f"leave guidance_interval out, or use {GUIDED_PRESETS}",
        )  # fmt: skip
    if request.step_cache:
        raise RefusedRequest(
            f"step_cache: {preset!r} has too few steps, and all of them are needed",
            knob="step_cache", hint="leave step_cache out, or use classic, dev or two-stage",
        )  # fmt: skip


def _check_interval(asked: Extras, sampler: str, steps: int, passes: int) -> None:
    knob, begin, end = "guidance_interval", *asked.guided
    if passes == 1:
        raise RefusedRequest(
            f"{knob}: nothing guides, every scale is off", knob=knob, hint="leave it out, or set video_cfg above 1"
        )
    if begin >= end:
        raise RefusedRequest(f"{knob}: {begin:g}:{end:g} is empty", knob=knob, hint="0:0.5 works")
    if not any(asked.guides(step, steps) for step in range(steps)):
        near = min(math.ceil(begin * steps), steps - 1)
        works = f"{math.floor(1000 * near / steps) / 1000:g}:{math.ceil(1000 * (near + 1) / steps) / 1000:g}"
        raise RefusedRequest(
            f"{knob}: none of the {steps} steps begins in {begin:g}:{end:g}", knob=knob, hint=f"{works} works"
        )
    if sampler == "gradient-estimation":
        raise RefusedRequest(
            f"{knob}: gradient-estimation would take the end of guidance for a turn of the velocity",
            knob=knob, hint="sampler euler works",
        )  # fmt: skip


def _check_cache(sampler: str, steps: int) -> None:
    if sampler != "euler":
        raise RefusedRequest(
            f"step_cache: {sampler} {UNCACHED[sampler]}",
            knob="step_cache", hint="sampler euler works, as in classic, dev and two-stage",
        )  # fmt: skip
    if steps < MIN_CACHED_STEPS:
        raise RefusedRequest(
            f"step_cache: all of {steps} steps are needed", knob="step_cache", hint=f"{MIN_CACHED_STEPS} steps work"
        )
