"""How long a process may be silent, by what is known of its steps."""

from __future__ import annotations

import pytest

from ltx2.engine.messages import Again, Step
from ltx2.engine.process import Limits
from ltx2.engine.watch import Watch


def test_a_step_may_take_longer_where_steps_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("ltx2.engine.watch.time.monotonic", lambda: now[0])
    watch = Watch(Limits(first=240, stall=60, slack=8, cancel=30))
    watch.last = 0.0

    def step(seconds: float, phase: str, number: int) -> None:
        now[0] += seconds
        watch.note(Step(job=1, phase=phase, step=number, steps=4))

    assert watch.to_event() == 240
    step(1, "text", 4)
    step(20, "stage 1", 1)
    assert watch.to_event() == 240, "the first step of a phase says nothing: it may hold a compilation"
    step(2, "stage 1", 2)
    assert watch.to_event() == 60
    step(20, "stage 1", 3)
    step(20, "stage 1", 4)
    assert watch.to_event() == 240, "the next phase is another story"
    step(90, "stage 2", 1)
    step(50, "stage 2", 2)
    assert watch.to_event() == 400 and watch.to_cancel() == 180
    watch.note(Again(job=1, reason="memory"))
    assert watch.to_event() == 240
