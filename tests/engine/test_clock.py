"""What the phases of a run took, by the GPU's clock where it has one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ltx2.engine import engine
from ltx2.spec.events import Progress


class Gpu:
    """A GPU that is done with all that it was given at `free`, in seconds; `now` is the host's clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.free = 0.0
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event(self))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self)
        monkeypatch.setattr(engine.time, "perf_counter", lambda: self.now)

    def record_event(self, event: Event) -> Event:
        event.at = max(self.free, self.now)
        return event

    def given(self, seconds: float) -> None:
        self.free = max(self.free, self.now) + seconds


class Event:
    def __init__(self, gpu: Gpu):
        self.gpu, self.at = gpu, 0.0

    def synchronize(self) -> None:
        self.gpu.now = max(self.gpu.now, self.at)

    def elapsed_time(self, later: Any) -> float:
        return 1000 * (later.at - self.at)


def test_phases_are_timed_where_the_gpu_ends_them_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch)
    clock = engine._Clock(torch.device("cuda", 0))
    for step in (1, 2):
        gpu.given(3.0)
        clock.mark(Progress("stage 1", step, 2, skipped=step - 1))
    gpu.given(1.0)
    gpu.now = 0.5
    clock.mark(Progress("decode", 1, 1))
    # Beside it, on another stream.
    clock.mark(Progress("sound", 1, 1))
    assert gpu.now == 0.5, "nothing has waited"
    gpu.now = 9.0
    clock.mark(Progress("write", 1, 1))
    assert clock.timings() == {"stage 1": 6.0, "decode": 1.0, "sound": 0.0, "write": 2.0}
    assert clock.total() == 9.0 and clock.skipped == {"stage 1": 1}


def test_a_phase_that_is_tried_again_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 3.0])
    monkeypatch.setattr(engine.time, "perf_counter", lambda: next(now))
    clock = engine._Clock(torch.device("cpu"))
    clock.mark(Progress("text", 1, 1))
    clock.mark(Progress("text", 1, 1))
    assert clock.timings() == {"text": 3.0}
