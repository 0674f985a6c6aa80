"""The engine behind the pipe: every way in which a child can break in a job, and that the next job works after it."""

from __future__ import annotations

import logging
import resource
import time
from pathlib import Path

import pytest

from ltx2.engine.process import Limits, ProcessEngine
from ltx2.spec.errors import (
    GenerationFailed,
    InvalidOutput,
    Ltx2Error,
    OutOfMemory,
    WorkerCrashed,
)
from ltx2.spec.events import Finished, Progress, Retrying
from tests.engine.children import Make, is_gone, run, works
from tests.jobs.asks import plan, wait_for


def test_events_cross_the_pipe_as_they_are(steady: ProcessEngine, tmp_path: Path) -> None:
    out = tmp_path / "clip.mp4"
    events = [event for event in run(steady, out) if event != Progress("load", 0, 1)]
    steps = [Progress("stage 1", step, 4) for step in (1, 2, 3, 3, 4)]
    finished = Finished(out, 1, 0.5, 1 << 40, {"stage 1": 0.25}, ("a warning",))
    assert events == [Progress("text", 1, 1), *steps, finished]
    assert out.read_text() == "half" and steady.state == "READY"


def test_the_child_stays_warm_from_job_to_job(steady: ProcessEngine, tmp_path: Path) -> None:
    works(steady, tmp_path)
    pid = steady.pid
    works(steady, tmp_path)
    assert pid and steady.pid == pid


@pytest.mark.parametrize(
    "prompt", ["die", "die SIGABRT", "exit 0", "segfault", "sticky", "grandchild"], ids=lambda text: text.split()[-1]
)
def test_e2_e5_a_child_that_dies_is_a_crash_and_is_replaced(steady: ProcessEngine, prompt: str, tmp_path: Path) -> None:
    works(steady, tmp_path)
    pid = steady.pid
    with pytest.raises(WorkerCrashed):
        run(steady, tmp_path / "clip.mp4", prompt)
    assert pid and is_gone(pid), "dead before the caller hears of it: nothing it writes can come later"
    works(steady, tmp_path)
    assert steady.pid != pid
    if prompt == "grandchild":
        grandchild = int((tmp_path / "grandchild").read_text())
        wait_for(lambda: is_gone(grandchild), 10)


@pytest.mark.parametrize(
    ("prompt", "kind", "message"),
    [
        ("memory", OutOfMemory, "the device ran out of memory (ask for less)"),
        ("nan", InvalidOutput, "the decoded picture has values that are not finite (another seed)"),
        ("unforeseen", GenerationFailed, "the engine broke: KeyError"),
    ],
)
def test_e4_e9_errors_keep_code_knob_and_hint_and_the_child_lives(
    steady: ProcessEngine, prompt: str, kind: type[Ltx2Error], message: str, tmp_path: Path
) -> None:
    works(steady, tmp_path)
    pid, events = steady.pid, []
    with pytest.raises(kind) as caught:
        for event in steady(plan(prompt), tmp_path / "clip.mp4"):
            events.append(event)
    assert type(caught.value) is kind and str(caught.value) == message
    assert caught.value.knob == ("seed" if prompt == "nan" else None)
    assert (Retrying("the device ran out of memory") in events) == (prompt == "memory")
    assert "/secret" not in str(caught.value)
    works(steady, tmp_path)
    assert steady.pid == pid and not list(tmp_path.glob("*.part"))


def test_closing_cancels_within_a_step_and_keeps_the_child(make: Make, tmp_path: Path) -> None:
    engine = make(step=0.2)
    works(engine, tmp_path)
    pid, out = engine.pid, tmp_path / "clip.mp4"
    events = engine(plan(), out)
    next(event for event in events if event == Progress("stage 1", 1, 4))
    begin = time.monotonic()
    events.close()
    assert time.monotonic() - begin < 2, "one step takes 0.2 s, the job 0.8 s"
    assert not out.exists() and not out.with_suffix(".part").exists()
    works(engine, tmp_path)
    assert engine.pid == pid


def test_a_cancel_that_comes_too_late_is_a_finished_job(steady: ProcessEngine, tmp_path: Path) -> None:
    events = steady(plan(), tmp_path / "clip.mp4")
    next(event for event in events if event == Progress("stage 1", 4, 4))
    time.sleep(0.2)
    events.close()
    works(steady, tmp_path)


def test_a_cancel_that_is_not_heard_kills_the_child(make: Make, tmp_path: Path) -> None:
    engine = make(Limits(start=30, cancel=0.2, kill=0.2, rest=0.01), step=0.01)
    events = engine(plan("sleep 60"), tmp_path / "clip.mp4")
    next(event for event in events if event == Progress("stage 1", 2, 4))
    time.sleep(0.1)
    pid = engine.pid
    events.close()
    assert pid and is_gone(pid)
    works(engine, tmp_path)


@pytest.mark.parametrize("prompt", ["sleep 60", "stop"])
def test_e6_a_child_that_hangs_is_killed_at_the_limit(make: Make, prompt: str, tmp_path: Path) -> None:
    engine = make(Limits(start=30, first=0.6, stall=0.6, kill=0.3, rest=0.01))
    assert engine.wait(30) == "READY"
    pid, begin = engine.pid, time.monotonic()
    with pytest.raises(WorkerCrashed, match="no sign of life"):
        run(engine, tmp_path / "clip.mp4", prompt)
    assert 0.6 < time.monotonic() - begin < 20
    assert pid and is_gone(pid)
    works(engine, tmp_path)


@pytest.mark.parametrize(
    "prompt",
    [
        "garbage",
        "huge",
        "partial",
        "endless",
        'wrong {"kind":"step","job":1}',
        'wrong {"kind":"done","job":999,"seed":1,"seconds":1,"peak_bytes":1,"timings":{},"warnings":[]}',
        'wrong {"kind":"again","job":"1","reason":"x"}',
        'wrong {"kind":"make","job":1,"plan":{},"out":"/"}',
    ],
)
def test_e7_nonsense_on_the_pipe_is_a_crash_and_the_child_is_replaced(
    steady: ProcessEngine, prompt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltx2.engine.process.MAX_WAITING", 500)
    works(steady, tmp_path)
    pid = steady.pid
    events = steady(plan(prompt), tmp_path / "clip.mp4")
    with pytest.raises(WorkerCrashed):
        if prompt == "endless":
            # A caller that takes its time: what waits for it is bounded.
            next(event for event in events if event == Progress("stage 1", 2, 4))
            wait_for(lambda: steady.pid != pid)
        list(events)
    works(steady, tmp_path)
    assert steady.pid != pid


def test_e7_a_flood_of_output_is_logged_in_part_and_holds_nothing_up(
    steady: ProcessEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with caplog.at_level(logging.INFO, "ltx2.engine.child"):
        run(steady, tmp_path / "clip.mp4", "chatter 1600")  # 100 MiB
    assert len(caplog.records) < 200 and all(len(record.getMessage()) <= 2000 for record in caplog.records)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024, "KiB"
    works(steady, tmp_path)
