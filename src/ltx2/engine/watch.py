"""How long an engine's process may take: to load, to its next event, to cancel, to die."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from statistics import median

from ltx2.engine.messages import Report, Step


@dataclass(frozen=True)
class Limits:
    """Times in seconds.

    `start`: to load and warm up. `first`: to the first two events of a phase, whose length nobody knows yet. `stall`:
    to any other event, or `slack` times the phase's median step if that is more. `cancel`: to stop at the next event,
    or twice the longest step so far. `kill`: between SIGTERM and SIGKILL. `rest`: before another start, doubled up to
    `longest_rest` while starts or jobs fail one after the other. `deaths` deaths within `within` seconds without a video
    in between mean that there is more to repair than the process.
    """

    start: float = 1200.0
    first: float = 240.0
    stall: float = 60.0
    slack: float = 8.0
    cancel: float = 30.0
    kill: float = 5.0
    rest: float = 1.0
    longest_rest: float = 60.0
    deaths: int = 3
    within: float = 600.0


@dataclass
class Watch:
    """How long the next event of one job may take."""

    limits: Limits
    phase: str = ""
    last: float = field(default_factory=time.monotonic)
    gaps: list[float] = field(default_factory=list[float])
    longest: float = 0.0

    def note(self, report: Report) -> None:
        """An event came."""
        now = time.monotonic()
        self.longest = max(self.longest, now - self.last)
        phase = report.phase if isinstance(report, Step) else ""
        # The steps of one phase say nothing about those of another: a second stage has several times the tokens.
        self.gaps = [*self.gaps, now - self.last] if phase and phase == self.phase else []
        # The last step of a phase is followed by the first of another one.
        self.phase = phase if isinstance(report, Step) and report.step < report.steps else ""
        self.last = now

    def to_event(self) -> float:
        """Seconds for the next event."""
        if not (self.phase and self.gaps):
            return max(self.limits.stall, self.limits.first)
        return max(self.limits.stall, self.limits.slack * median(self.gaps))

    def to_cancel(self) -> float:
        """Seconds for the answer to a cancel."""
        return max(self.limits.cancel, 2 * self.longest)
