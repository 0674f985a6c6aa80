"""An engine for chaos: some steps, then a file that says which attempt of which job made it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from ltx2.spec.events import Event, Finished, Progress
from ltx2.spec.plan import Plan

STEPS = 4


def make(options: Mapping[str, Any]) -> Callable[[Plan, Path], Generator[Event, None, None]]:
    """Jobs of `low` to `high` seconds, 0.1 to 0.6 when nobody says."""

    def generate(plan: Plan, out: Path) -> Generator[Event, None, None]:
        seconds = random.uniform(options.get("low", 0.1), options.get("high", 0.6))
        with out.open("w") as file:
            for step in range(STEPS):
                time.sleep(seconds / STEPS)
                file.write(f"{out.parent.parent.name} {out.parent.name.partition('.')[0]}\n")
                yield Progress("stage 1", step + 1, STEPS)
        yield Finished(out, plan.seed, seconds, 0)

    return generate
