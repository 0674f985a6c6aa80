"""How far a job is and how long it will take: shares of the work from its Plan, seconds from the jobs before it."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ltx2.jobs.job import Job
from ltx2.spec.card import Card
from ltx2.spec.cost import need
from ltx2.spec.plan import Plan

# Shares of what is no denoising; the stages have the rest, by their transformer passes and tokens.
AROUND = {"text": 0.03, "upsample": 0.01, "decode": 0.04, "sound": 0.02, "write": 0.10}
RECENT = 50


def share_done(plan: Plan, progress: Mapping[str, Any] | None) -> float:
    """From 0 to 1, how much of a Plan's work is done; grows through text, stages, decode, sound and write."""
    if progress is None:
        return 0.0
    phase, done = str(progress["phase"]), 0.0
    for name, share in _shares(plan):
        if name == phase:
            return done + share * progress["step"] / max(1, progress["steps"])
        done += share
    return 0.0


def _shares(plan: Plan) -> list[tuple[str, float]]:
    work = [stage.passes * stage.width * stage.height for stage in plan.stages]
    share = (1 - sum(AROUND.values())) / sum(work)
    stages: list[tuple[str, float]] = []
    for index, amount in enumerate(work):
        if index:
            stages.append(("upsample", AROUND["upsample"] / (len(work) - 1)))
        stages.append((f"stage {index + 1}", amount * share))
    return [("text", AROUND["text"]), *stages, *((name, AROUND[name]) for name in ("decode", "sound", "write"))]


@dataclass
class Estimates:
    """Seconds of Plans, learned from the jobs that this process has seen end.

    The counted cost of a Plan tells how long it takes compared with others; the median of the recent jobs of its model
    tells what that means on these machines; `workers` how many of them are at work. Before the first one, published
    models are taken to run on one H200.
    """

    workers: Callable[[], int] = lambda: 1
    _factors: dict[str, deque[float]] = field(default_factory=dict[str, deque[float]])
    _seen: deque[int] = field(default_factory=lambda: deque[int](maxlen=1000))

    def learn(self, job: Job, card: Card) -> None:
        """Take a finished job into account, once."""
        if job.state != "done" or job.result is None or job.number in self._seen:
            return
        self._seen.append(job.number)
        counted = need(Plan.from_dict(job.plan), card).seconds
        self._factors.setdefault(card.name, deque(maxlen=RECENT)).append(float(job.result["seconds"]) / counted)

    def seconds(self, plan: Plan, card: Card) -> float | None:
        """Seconds that a worker will be busy with a Plan; None for the embedded model before its first job."""
        counted = need(plan, card).seconds
        factors = self._factors.get(card.name)
        if factors:
            # Another thread may add to it: a copy does not change.
            return counted * statistics.median(tuple(factors))
        return None if card.family == "tiny" else counted

    def measured(self, card: Card) -> bool:
        """Whether `seconds` is learned from jobs here."""
        return bool(self._factors.get(card.name))
