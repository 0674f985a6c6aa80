"""Engines for workers of `ltx2 serve --engine tests.doors.http.engines:…`: what they do stands in the prompt."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from ltx2.spec.errors import CheckpointError
from ltx2.spec.events import Event, Finished, Progress
from ltx2.spec.plan import Plan

Generate = Callable[[Plan, Path], Generator[Event, None, None]]
STEP = 0.05


def quick(options: Mapping[str, Any]) -> Generate:
    """Makes a file at once, or in as many seconds as the prompt `take 3` says."""

    def generate(plan: Plan, out: Path) -> Generator[Event, None, None]:
        word, _, rest = plan.prompt.partition(" ")
        if word == "die":
            os._exit(3)
        steps = round(float(rest) / STEP) if word == "take" else 1
        for step in range(steps):
            time.sleep(STEP)
            yield Progress("stage 1", step + 1, steps)
        out.write_text(f"{plan.prompt} {plan.seed}")
        yield Finished(out, plan.seed, steps * STEP, 0)

    return generate


SECRET = "/secret/place"
PLANTED: dict[str, Exception] = {
    "checkpoint": CheckpointError(f"{SECRET}/x.safetensors: a key is missing", hint=f"look into {SECRET}"),
    "file": FileNotFoundError(2, "No such file or directory", f"{SECRET}/out.mp4"),
    "text": RuntimeError(f'Traceback (most recent call last):\n  File "{SECRET}/x.py", line 3\nhf_{"s" * 30}'),
}


def planted(options: Mapping[str, Any]) -> Generate:
    """Fails as the prompt says, with words that no client may read; or leaves them in a warning."""

    def generate(plan: Plan, out: Path) -> Generator[Event, None, None]:
        if plan.prompt in PLANTED:
            raise PLANTED[plan.prompt]
        yield Progress("stage 1", 1, 1)
        out.write_text(plan.prompt)
        yield Finished(out, plan.seed, STEP, 0, {}, (f"slow: {SECRET}/kernel.cu does not compile",))

    return generate


def unloadable(options: Mapping[str, Any]) -> Generate:
    """Never starts, and says why."""
    raise PLANTED["checkpoint"]


def dead(options: Mapping[str, Any]) -> Generate:
    """Never starts."""
    os._exit(3)


def loading(options: Mapping[str, Any]) -> Generate:
    """Takes for ever to start."""
    time.sleep(600)
    raise AssertionError
