"""Engines for workers of `ltx2 serve --engine tests.doors.http.engines:…`: what they do stands in the prompt."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

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


def dead(options: Mapping[str, Any]) -> Generate:
    """Never starts."""
    os._exit(3)


def loading(options: Mapping[str, Any]) -> Generate:
    """Takes for ever to start."""
    time.sleep(600)
    raise AssertionError
