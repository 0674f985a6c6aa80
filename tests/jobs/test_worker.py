"""The worker in this process: what becomes of a job, its files and its engine in every kind of end."""

from __future__ import annotations

import errno
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ltx2.jobs.heart import Heart, Pace
from ltx2.jobs.job import Job
from ltx2.jobs.shelf import Shelf
from ltx2.jobs.store import Store
from ltx2.jobs.worker import Engine, Worker, unique_name
from ltx2.spec.errors import CheckpointError, DoesNotFit, GenerationFailed, InvalidOutput
from ltx2.spec.events import Event, Finished, Progress, Retrying
from ltx2.spec.plan import Plan
from tests.jobs.asks import add, plan, wait_for
from tests.jobs.conftest import MakeStore

QUICK = Pace(beat=0.02, poll=0.02, drain=0.1)


class Crashed(GenerationFailed):
    code = "worker_crashed"


def film(plan: Plan, out: Path) -> Iterator[Event]:
    yield Progress("text", 1, 1)
    out.write_bytes(b"film of " + plan.prompt.encode())
    yield Finished(out, plan.seed, 0.5, 7, {"text": 0.1}, ("dark",))


def endless(plan: Plan, out: Path) -> Iterator[Event]:
    """As good as: longer than any test waits."""
    out.write_bytes(b"half")
    try:
        for step in range(10**4):
            time.sleep(0.005)
            yield Progress("stage 1", step, 10**4)
    finally:
        out.with_name("closed").touch()


def raising(error: Exception) -> Engine:
    def engine(plan: Plan, out: Path) -> Iterator[Event]:
        out.write_bytes(b"half")
        yield Retrying("a smaller tile")
        raise error

    return engine


def work(store: Store, engine: Engine, shelf: Shelf, **fields: object) -> None:
    """Let a worker make the next job."""
    worker = Worker(store, engine, shelf, pace=QUICK, **fields)  # type: ignore[arg-type]
    claim = store.claim(worker.name)
    assert claim
    worker.work(claim, threading.Event())


def during(job: Job, store: Store, act: Callable[[], object]) -> threading.Thread:
    """Do something as soon as the job shows progress."""

    def wait() -> None:
        wait_for(lambda: store.get(job.token, job.id).progress is not None)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def left(shelf: Shelf) -> list[str]:
    return sorted(str(path.relative_to(shelf.folder)) for path in shelf.folder.rglob("*") if path.is_file())


def test_a_done_job_has_its_file_in_place_and_its_figures_in_the_result(store: Store, shelf: Shelf) -> None:
    job = add(store)
    work(store, film, shelf, inspect=lambda plan, path: ("silent",))
    done = store.get("ann", job.id)
    video = shelf.video(done)
    assert done.state == "done" and video and video.read_bytes() == b"film of a cat"
    assert done.result == {
        "seed": plan().seed,
        "seconds": 0.5,
        "peak_bytes": 7,
        "timings": {"text": 0.1},
        "warnings": ["dark", "silent"],
        "skipped": 0,
        "bytes": 13,
        "sha256": hashlib.sha256(b"film of a cat").hexdigest(),
    }
    assert left(shelf) == [f"{job.number}/1/out.mp4"]


def wrapped(error: Exception) -> GenerationFailed:
    """As the engine raises what nobody foresaw."""
    failed = GenerationFailed(f"{type(error).__name__}: {error}")
    failed.__cause__ = error
    return failed


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DoesNotFit("too large"), "exceeds_capacity"),
        (InvalidOutput("not finite"), "invalid_output"),
        (OSError(errno.ENOSPC, "full", "/secret/place"), "storage_full"),
        (RuntimeError("in /secret/place"), "internal"),
        (CheckpointError("/secret/place has no config", hint="/secret/place/config.json"), "invalid_checkpoint"),
        (wrapped(FileNotFoundError(2, "no such file", "/secret/place")), "failed"),
    ],
)
def test_a_failed_job_says_why_and_leaves_no_file(
    store: Store, shelf: Shelf, error: Exception, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    job = add(store)
    work(store, raising(error), shelf)
    assert ("/secret/place" in caplog.text) == ("/secret/place" in str(error) and code != "storage_full")
    failed = store.get("ann", job.id)
    assert failed.state == "failed" and failed.error and failed.error["code"] == code
    assert "secret" not in failed.error["message"]
    assert failed.tries == 1 and left(shelf) == []


def test_e9_what_the_inspection_refuses_is_not_published(store: Store, shelf: Shelf) -> None:
    def refuse(plan: Plan, path: Path) -> tuple[str, ...]:
        raise InvalidOutput("black")

    job = add(store)
    work(store, film, shelf, inspect=refuse)
    failed = store.get("ann", job.id)
    assert failed.error and failed.error["code"] == "invalid_output" and failed.published is None and left(shelf) == []


@pytest.mark.parametrize("events", [[], [Progress("text", 1, 1)], [Finished(Path("x"), 1, 0.0, 0)]])
def test_an_engine_without_a_result_or_a_file_fails(store: Store, shelf: Shelf, events: list[Event]) -> None:
    job = add(store)
    work(store, lambda plan, out: iter(events), shelf)
    assert (store.get("ann", job.id).error or {})["code"] == "failed"


def test_e5_a_dead_engine_process_is_tried_once_more(store: Store, shelf: Shelf) -> None:
    job = add(store)
    work(store, raising(Crashed("the engine died")), shelf)
    assert store.get("ann", job.id).state == "queued"
    work(store, film, shelf)
    done = store.get("ann", job.id)
    assert (done.state, done.published) == ("done", 2) and left(shelf) == [f"{job.number}/2/out.mp4"]


def test_d5_cancelling_closes_the_engine_within_a_beat(store: Store, shelf: Shelf) -> None:
    job = add(store)
    thread = during(job, store, lambda: store.cancel("ann", job.id))
    closed: list[bool] = []

    def engine(plan: Plan, out: Path) -> Iterator[Event]:
        yield from endless(plan, out)

    def watched(plan: Plan, out: Path) -> Iterator[Event]:
        try:
            yield from engine(plan, out)
        finally:
            closed.append(out.with_name("closed").exists())

    work(store, watched, shelf)
    thread.join()
    assert store.get("ann", job.id).state == "cancelled" and closed == [True] and left(shelf) == []


def test_d9_a_running_job_past_its_deadline_fails_by_name(store: Store, shelf: Shelf) -> None:
    job = add(store, deadline=3.0)
    work(store, endless, shelf)
    failed = store.get("ann", job.id)
    assert (failed.state, (failed.error or {})["code"]) == ("failed", "deadline_exceeded") and left(shelf) == []


def test_a_worker_that_lost_its_job_stops_and_publishes_nothing(open_store: MakeStore, shelf: Shelf) -> None:
    store = open_store(lease=-1.0)
    job = add(store)
    # A row that a heartbeat holds at the moment waits for the next round.
    thread = during(job, store, lambda: wait_for(lambda: store.sweep().lost == 1))
    work(store, endless, shelf)
    thread.join()
    assert store.get("ann", job.id).state == "queued" and left(shelf) == []


def test_i1_a_job_under_way_goes_back_to_the_queue_after_the_drain(store: Store, shelf: Shelf) -> None:
    job = add(store)
    stop = threading.Event()
    thread = during(job, store, stop.set)
    begin = time.monotonic()
    Worker(store, endless, shelf, pace=QUICK).run(stop)
    thread.join()
    again = store.get("ann", job.id)
    assert (again.state, again.tries, again.attempt) == ("queued", 0, 1) and left(shelf) == []
    assert time.monotonic() - begin < 10


def test_i1_a_short_job_is_finished_within_the_drain(store: Store, shelf: Shelf) -> None:
    job = add(store)
    stop = threading.Event()
    stop_in = threading.Event()

    def engine(plan: Plan, out: Path) -> Iterator[Event]:
        stop.set()
        stop_in.set()
        yield from film(plan, out)

    Worker(store, engine, shelf, pace=QUICK).run(stop)
    assert stop_in.is_set() and store.get("ann", job.id).state == "done"


def test_e6_a_hung_engine_loses_its_lease_and_ends_its_process(open_store: MakeStore) -> None:
    store = open_store(lease=0.4)
    job = add(store)
    claim = store.claim("w")
    stalled = threading.Event()
    assert claim
    pace = Pace(beat=0.02, stall=0.1, on_stall=stalled.set)
    with Heart(store, claim, pace):
        assert stalled.wait(10)
        wait_for(lambda: store.sweep().lost == 1)
    assert store.get("ann", job.id).state == "queued"


def test_a_broken_job_does_not_stop_the_worker(store: Store, shelf: Shelf) -> None:
    jobs = [add(store, prompt=prompt) for prompt in ("bad", "good")]
    stop = threading.Event()

    def engine(plan: Plan, out: Path) -> Iterator[Event]:
        if plan.prompt == "bad":
            raise RuntimeError("boom")
        yield from film(plan, out)

    thread = threading.Thread(target=Worker(store, engine, shelf, pace=QUICK).run, args=(stop,))
    thread.start()
    wait_for(lambda: not store.get("ann", jobs[1].id).open)
    stop.set()
    thread.join()
    assert [store.get("ann", job.id).state for job in jobs] == ["failed", "done"]


def test_a_plan_of_another_version_fails_as_such(store: Store, shelf: Shelf) -> None:
    from sqlalchemy import update

    from ltx2.jobs.tables import JOBS

    job = add(store)
    store.database.write(lambda connection: connection.execute(update(JOBS).values(plan={"model": "x"})).rowcount)
    work(store, film, shelf)
    assert (store.get("ann", job.id).error or {})["code"] == "invalid_request"


def test_worker_names_are_never_given_twice() -> None:
    assert len({unique_name() for _ in range(100)}) == 100


def test_a_worker_that_is_not_ready_leaves_the_jobs_to_others(store: Store, shelf: Shelf) -> None:
    job, stop, ready = add(store), threading.Event(), threading.Event()
    asked = threading.Semaphore(0)

    def is_ready() -> bool:
        asked.release()
        return ready.is_set()

    worker = Worker(store, film, shelf, pace=QUICK, ready=is_ready)
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    for _ in range(3):
        assert asked.acquire(timeout=30)
    assert store.get("ann", job.id).state == "queued"
    ready.set()
    wait_for(lambda: store.get("ann", job.id).state == "done")
    stop.set()
    thread.join()
