"""One job on a GPU container, with an engine of the test: every way in which it can end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from modal.exception import InputCancellation

from ltx2.doors.modal.board import Board, Record
from ltx2.doors.modal.outputs import Copies, Outputs
from ltx2.doors.modal.render import Renderer
from ltx2.jobs.job import CANCELLED, Job
from ltx2.spec.errors import InvalidOutput, WorkerCrashed
from ltx2.spec.events import Event, Finished, Progress, Retrying
from ltx2.spec.plan import Plan
from tests.doors.modal.fakes import MemoryCalls, MemoryVolume, board
from tests.jobs.asks import ask

Make = Callable[[Plan, Path], Iterator[Event]]


def record(**fields: object) -> Record:
    asked = ask(prompt="a cat")
    values = {
        "number": time.time_ns(), "id": "video_1", "token": "ann", "key": None, "digest": asked.digest,
        "request": asked.request, "plan": asked.plan.as_dict(), "deadline": None, "created": time.time(), "dollars": 0.1,
    }  # fmt: skip
    return Record(**(values | fields))  # type: ignore[arg-type]


class Stage:
    """A board with one job, a volume, and a container with the engine of the test."""

    def __init__(self, tmp_path: Path, engine: Make, volume: MemoryVolume | None = None, **fields: object):
        self.board: Board = board()
        self.record = record(**fields)
        self.board.accept(self.record)
        self.volume = volume or MemoryVolume()
        self.outputs = Outputs(tmp_path / "outputs", self.volume, pauses=(0.0, 0.0, 0.0))
        self.left = 0
        self.renderer = Renderer(
            self.board,
            self.outputs,
            engine,
            lambda plan, path: ("the picture is black",),
            0.01,
            "ta-1",
            leave=self._leave,
        )

    def _leave(self) -> None:
        self.left += 1
        raise SystemExit(70)

    def make(self) -> dict[str, object]:
        return self.renderer.make("ann", "video_1")

    @property
    def files(self) -> list[Path]:
        return [path for path in self.outputs.folder.rglob("*") if path.is_file()]


def engine(plan: Plan, out: Path) -> Iterator[Event]:
    for step in range(3):
        yield Progress("stage 1", step + 1, 3)
    yield Retrying("once more with less")
    out.write_bytes(b"video of " + plan.prompt.encode())
    yield Finished(out, plan.seed, 2.0, 1 << 20, {"stage 1": 1.5}, ("told by the engine",))


def test_a_job_is_made_stored_committed_and_then_done(tmp_path: Path):
    stage = Stage(tmp_path, engine)
    ending = stage.make()
    assert ending["state"] == "done" and stage.volume.commits == 1
    result = ending["result"]
    assert isinstance(result, dict) and result["warnings"] == ["told by the engine", "the picture is black"]
    assert (
        result["bytes"] == len(b"video of a cat")
        and result["cost"] >= 0
        and result["currency"] == "USD"
        and "path" not in result
    )
    assert stage.files == [stage.outputs.place(stage.record.number, 1)]
    assert not stage.board.open() and stage.board.begun(stage.record.number) == 1


def test_a_job_that_has_ended_is_not_made_again(tmp_path: Path):
    """A preempted input can be given out once more after its result was written."""
    stage = Stage(tmp_path, engine)
    first = stage.make()
    assert stage.make() == first and stage.board.begun(stage.record.number) == 1


@pytest.mark.parametrize("what", ["removed", "cancelled"])
def test_a_job_that_nobody_wants_any_more_is_not_begun(tmp_path: Path, what: str):
    def never(plan: Plan, out: Path) -> Iterator[Event]:
        raise AssertionError("the engine was asked")
        yield

    stage = Stage(tmp_path, never)
    stage.board.forget(stage.record) if what == "removed" else stage.board.end(stage.record.number, CANCELLED)
    assert stage.make()["state"] == what and not stage.files


def test_an_error_is_the_jobs_own_and_the_next_one_is_made(tmp_path: Path):
    def broken(plan: Plan, out: Path) -> Iterator[Event]:
        yield Progress("text", 1, 1)
        raise InvalidOutput("values that are not finite")

    stage = Stage(tmp_path, broken)
    ending = stage.make()
    assert ending["state"] == "failed" and ending["error"] == {
        "code": "invalid_output",
        "message": "values that are not finite",
    }
    assert not stage.files and stage.left == 0


def test_a_builtin_timeout_of_the_engine_does_not_look_like_still_running(tmp_path: Path):
    def slow(plan: Plan, out: Path) -> Iterator[Event]:
        raise TimeoutError("a read timed out")
        yield

    ending = Stage(tmp_path, slow).make()
    assert ending["state"] == "failed" and ending["error"] == {
        "code": "internal",
        "message": "the worker broke: TimeoutError",
    }


def test_a_lost_gpu_ends_the_container_so_that_modal_begins_the_input_anew(tmp_path: Path):
    def lost(plan: Plan, out: Path) -> Iterator[Event]:
        yield Progress("text", 1, 1)
        raise WorkerCrashed("an illegal memory access")

    stage = Stage(tmp_path, lost)
    for attempt in (1, 2, 3):
        with pytest.raises(SystemExit):
            stage.make()
        assert stage.left == attempt and stage.board.ending(stage.record.number) is None
    # Begun three times, and the container died each time.
    ending = stage.make()
    assert ending["state"] == "failed" and ending["error"]["code"] == "worker_crashed"  # type: ignore[index]


def test_a_preempted_attempt_does_not_count(tmp_path: Path):
    closed: list[bool] = []

    def preempted(plan: Plan, out: Path) -> Iterator[Event]:
        try:
            yield Progress("text", 1, 1)
            raise KeyboardInterrupt
        finally:
            closed.append(True)

    stage = Stage(tmp_path, preempted)
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            stage.make()
    assert (
        stage.board.begun(stage.record.number) == 0
        and stage.board.ending(stage.record.number) is None
        and len(closed) == 5
    )
    stage.renderer = Renderer(stage.board, stage.outputs, engine, lambda plan, path: (), 0.01, "ta-2")
    assert stage.make()["state"] == "done" and len(stage.files) == 1


def test_a_cancelled_input_leaves_the_engine_and_no_file(tmp_path: Path):
    closed: list[bool] = []

    def cancelled(plan: Plan, out: Path) -> Iterator[Event]:
        try:
            yield Progress("stage 1", 1, 8)
            raise InputCancellation("cancelled by its client")
        finally:
            closed.append(True)

    stage = Stage(tmp_path, cancelled)
    with pytest.raises(InputCancellation):
        stage.make()
    assert closed and not stage.files


def test_a_cancel_that_modal_does_not_pass_on_is_heard_within_a_step(tmp_path: Path):
    stage: Stage

    def long(plan: Plan, out: Path) -> Iterator[Event]:
        stage.board.end(stage.record.number, CANCELLED)
        for step in range(1000):
            time.sleep(0.01)
            yield Progress("stage 1", step + 1, 1000)
        raise AssertionError("never stopped")

    stage = Stage(tmp_path, long)
    assert stage.make()["state"] == "cancelled"


def test_a_cancel_during_the_last_step_wins_and_the_file_goes(tmp_path: Path):
    stage: Stage

    def at_the_end(plan: Plan, out: Path) -> Iterator[Event]:
        yield from engine(plan, out)

    stage = Stage(tmp_path, at_the_end)
    stage.renderer = Renderer(
        stage.board,
        stage.outputs,
        engine,
        lambda plan, path: stage.board.end(stage.record.number, CANCELLED) and (),
        0.01,
        "t",
    )  # type: ignore[arg-type,return-value]
    assert stage.make()["state"] == "cancelled" and not stage.files


def test_a_deadline_ends_a_job_before_and_while_it_runs(tmp_path: Path):
    late = Stage(tmp_path, engine, deadline=time.time() - 1)
    assert late.make()["state"] == "expired"

    def long(plan: Plan, out: Path) -> Iterator[Event]:
        for step in range(1000):
            time.sleep(0.01)
            yield Progress("stage 1", step + 1, 1000)

    running = Stage(tmp_path, long, deadline=time.time() + 0.2)
    ending = running.make()
    assert ending["state"] == "failed" and ending["error"]["code"] == "deadline_exceeded"  # type: ignore[index]


def test_progress_is_posted_while_the_gpu_works(tmp_path: Path):
    seen: list[int] = []
    stage: Stage

    def watched(plan: Plan, out: Path) -> Iterator[Event]:
        for step in range(4):
            yield Progress("stage 1", step + 1, 4)
            deadline = time.monotonic() + 10
            while (stage.board.progress(stage.record.number) or {}).get("step") != step + 1:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            seen.append((stage.board.progress(stage.record.number) or {})["count"])
        yield from engine(plan, out)

    stage = Stage(tmp_path, watched)
    assert stage.make()["state"] == "done" and seen == sorted(set(seen))


def test_a_first_frame_comes_from_the_board(tmp_path: Path):
    paths: list[str] = []

    def looking(plan: Plan, out: Path) -> Iterator[Event]:
        paths.append(plan.image)
        assert Path(plan.image).read_bytes() == b"PNG"
        yield from engine(plan, out)

    asked = ask().plan.as_dict() | {"image": "/somewhere/on/the/web/inputs/abc.png"}
    stage = Stage(tmp_path, looking, plan=asked)
    assert stage.make()["error"]["code"] == "invalid_request"  # type: ignore[index]
    stage = Stage(tmp_path, looking, plan=asked)
    stage.board.put_picture("abc.png", b"PNG")
    assert stage.make()["state"] == "done" and not Path(paths[0]).exists()


def test_J4_a_commit_that_fails_is_tried_again_and_nothing_is_done_before(tmp_path: Path):
    volume = MemoryVolume(failing=2)
    stage = Stage(tmp_path, engine, volume)
    states: list[object] = []
    original = volume.commit

    def commit() -> None:
        states.append(stage.board.ending(stage.record.number))
        original()

    volume.commit = commit  # type: ignore[method-assign]
    assert stage.make()["state"] == "done" and volume.commits == 1
    assert states == [None, None, None]


def test_J4_a_volume_that_takes_nothing_fails_the_job(tmp_path: Path):
    ending = Stage(tmp_path, engine, MemoryVolume(failing=99)).make()
    assert ending["state"] == "failed" and "could not be stored" in ending["error"]["message"]  # type: ignore[index]


def published(number: int) -> Job:
    from ltx2.doors.modal.queue import DictQueue
    from ltx2.jobs.job import Ending

    queue = DictQueue(board(), MemoryCalls(), lambda asked, promised: 0.0)
    job = queue.submit(ask()).job
    queue.board.end(job.number, Ending("done", result={}), 1)
    queue._seen.clear()
    from dataclasses import replace

    return replace(queue.get(job.token, job.id), number=number)


def test_J4_a_video_is_served_as_soon_as_the_volume_shows_it(tmp_path: Path):
    volume = MemoryVolume(busy=2)
    outputs = Outputs(tmp_path / "outputs", volume, pauses=(0.0, 0.0, 0.0))
    copies, job = Copies(outputs, tmp_path / "cache"), published(7)

    def appear() -> None:
        place = outputs.place(7, 1)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"video")

    volume.on_reload.append(appear)
    path = copies.video(job)
    assert path is not None and path.read_bytes() == b"video" and path.is_relative_to(tmp_path / "cache")
    assert volume.reloads == 1 and copies.video(job) == path and volume.reloads == 1


def test_a_video_that_is_not_there_is_none(tmp_path: Path):
    copies = Copies(Outputs(tmp_path, MemoryVolume(busy=99), pauses=(0.0,)), tmp_path / "cache")
    assert copies.video(published(7)) is None


def test_the_copies_make_room(tmp_path: Path):
    outputs = Outputs(tmp_path / "outputs", MemoryVolume())
    copies = Copies(outputs, tmp_path / "cache", most=250)
    for number in (1, 2, 3):
        place = outputs.place(number, 1)
        place.parent.mkdir(parents=True)
        place.write_bytes(b"x" * 100)
        assert copies.video(published(number)) is not None
        time.sleep(0.01)
    held = sorted(path.parts[-3] for path in (tmp_path / "cache").rglob("out.mp4"))
    assert held == ["2", "3"] and copies.video(published(1)) is not None
