"""Disks and files that fail under the queue: read-only, unreadable, no descriptors left, torn pages, a cut-off commit,
a backup under load, and clocks that jump."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from ltx2.jobs import claims, endings, intake, outbox, sweep
from ltx2.jobs import keeper as keeper_module
from ltx2.jobs.database import clock
from ltx2.jobs.errors import StorageFull, StoreUnavailable, WrongStore
from ltx2.jobs.heart import Pace
from ltx2.jobs.job import Ending
from ltx2.jobs.keeper import Calendar, keep
from ltx2.jobs.shelf import Shelf
from ltx2.jobs.store import Store
from ltx2.jobs.worker import Worker
from ltx2.spec.errors import OutOfRoom
from ltx2.spec.events import Event, Progress
from ltx2.spec.plan import Plan
from tests.jobs.asks import add, wait_for
from tests.jobs.test_worker import film, raising
from tests.small_disk import small_disk

QUICK = Pace(beat=0.02, poll=0.02, drain=0.1)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB that can be filled and made read-only."""
    with small_disk(tmp_path / "disk", 8) as folder:
        yield folder


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


@contextlib.contextmanager
def opened(file: Path, patience: float = 1.0) -> Iterator[Store]:
    with contextlib.closing(Store(f"sqlite:///{file}", patience=patience)) as store:
        yield store


@contextlib.contextmanager
def working(worker: Worker) -> Iterator[threading.Thread]:
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join()


def test_f1_a_disk_that_fills_up_refuses_jobs_by_name_and_recovers_without_a_restart(disk: Path) -> None:
    filler = disk / "filler"
    with opened(disk / "jobs.db") as store:
        job = add(store)
        filler.write_bytes(b"x" * (shutil.disk_usage(disk).free))
        with pytest.raises(StorageFull):
            for _ in range(200):
                add(store)
        assert store.get("ann", job.id) == job, "what is there can be read"
        filler.unlink()
        assert add(store).state == "queued"


def test_f1_a_job_without_room_fails_by_name_and_the_worker_goes_on(store: Store, shelf: Shelf) -> None:
    first = add(store)
    with working(Worker(store, raising(OutOfRoom("there was no room for the video")), shelf, pace=QUICK)):
        wait_for(lambda: not store.get("ann", first.id).open)
        assert (store.get("ann", first.id).error or {})["code"] == "storage_full"


def test_f2_a_database_that_became_read_only_is_away_and_comes_back(disk: Path) -> None:
    with opened(disk / "jobs.db", patience=0.2) as store:
        job = add(store)
        # A disk with files open for writing cannot be made read-only from here, as the kernel does on a failing one.
        store.close()
        remount(disk, "ro")
        with pytest.raises(StoreUnavailable) as caught:
            add(store)
        assert caught.value.status == 503
        assert store.get("ann", job.id) == job
        remount(disk, "rw")
        assert add(store).state == "queued"


def test_f2_a_read_only_disk_ends_neither_worker_nor_keeper(disk: Path) -> None:
    shelf = Shelf(disk / "shelf")
    shelf.folder.mkdir()
    with opened(disk / "jobs.db", patience=0.2) as store:
        add(store)
        store.close()
        remount(disk, "ro")
        stop = threading.Event()
        keeper = threading.Thread(target=keep, args=(store, shelf, stop, 0.05))
        keeper.start()
        try:
            with working(Worker(store, film, shelf, pace=QUICK)) as thread:
                time.sleep(1.0)
                assert thread.is_alive() and keeper.is_alive()
                remount(disk, "rw")
                wait_for(lambda: store.counts() == {"done": 1})
        finally:
            stop.set()
            keeper.join()


def test_f2_no_descriptors_left_is_away_too(sqlite_file: Path) -> None:
    script = f"""
import os, resource
from tests.jobs.asks import add
from ltx2.jobs.errors import StoreUnavailable
from ltx2.jobs.store import Store
store = Store("sqlite:///{sqlite_file}", patience=0.2)
add(store)
store.close()
limit = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, limit[1]))
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
try:
    add(store)
    raise SystemExit("it was accepted")
except StoreUnavailable as error:
    assert error.status == 503
for descriptor in held:
    os.close(descriptor)
assert add(store).state == "queued"
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


def test_f3_what_was_accepted_survives_a_process_that_dies_inside_a_transaction(sqlite_file: Path) -> None:
    with opened(sqlite_file) as store:
        ids = {add(store, prompt=f"cat {number}").id for number in range(5)}
    script = f"""
import os, sqlite3
connection = sqlite3.connect({str(sqlite_file)!r}, isolation_level=None)
# A cache of nothing: changed pages go to the file before the commit, and the journal stays hot.
connection.execute("PRAGMA cache_size=1")
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE ltx2_jobs SET token = 'thief', request = hex(zeroblob(20000))")
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert any(path.stat().st_size for path in sqlite_file.parent.glob("jobs.db-*")), "a journal is left"
    with opened(sqlite_file) as store:
        assert {job.id for job in store.page("ann")} == ids and not store.page("thief")


@pytest.mark.parametrize("how", ["flip", "cut"])
def test_f3_torn_pages_are_refused_or_do_no_harm(sqlite_file: Path, how: str) -> None:
    with opened(sqlite_file) as store:
        ids = {add(store, prompt=f"cat {number}").id for number in range(20)}
    good, chance = sqlite_file.read_bytes(), random.Random(7)
    refused = 0
    for _ in range(25):
        torn = bytearray(good)
        if how == "cut":
            del torn[chance.randrange(1, len(torn)) :]
        else:
            begin = chance.randrange(len(torn))
            torn[begin : begin + 64] = chance.randbytes(64)
        for path in sqlite_file.parent.glob("jobs.db*"):
            path.unlink()
        sqlite_file.write_bytes(torn)
        try:
            with opened(sqlite_file, patience=0.1) as store:
                found = {job.id for job in store.page("ann", limit=100)}
        except StoreUnavailable as error:
            assert error.hint, "what to do is said"
            refused += 1
        else:
            # Within a row no check of SQLite's looks; the rows that there are can be read.
            assert len(found) <= len(ids)
    assert refused > 2


@pytest.mark.parametrize("wound", [b"CREA\x95$L", b"\xe7\xfa\xbd\x58\xa4", b"\0" * 40])
def test_f3_a_schema_that_is_not_even_text_is_refused_by_name(sqlite_file: Path, wound: bytes) -> None:
    with opened(sqlite_file) as store:
        add(store)
    content = bytearray(sqlite_file.read_bytes())
    begin = content.index(b"CREATE INDEX ltx2_jobs_queue")
    content[begin : begin + len(wound)] = wound
    sqlite_file.write_bytes(content)
    with pytest.raises(WrongStore, match="damaged") as damaged, opened(sqlite_file):
        pass
    assert damaged.value.hint


def test_f10_a_backup_under_load_is_whole_and_can_be_restored(sqlite_file: Path, tmp_path: Path) -> None:
    with opened(sqlite_file, patience=20.0) as store:
        stop, accepted = threading.Event(), list[str]()

        def load() -> None:
            while not stop.is_set():
                accepted.append(add(store, prompt="cat").id)

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(accepted) > 20)
        before = set(accepted)
        with contextlib.closing(sqlite3.connect(sqlite_file, isolation_level=None, timeout=20.0)) as connection:
            connection.execute("VACUUM INTO ?", (str(tmp_path / "backup.db"),))
        stop.set()
        for thread in threads:
            thread.join()
    with opened(tmp_path / "backup.db") as restored:
        kept = {job.id for job in restored.page("ann", limit=10_000)}
        assert before <= kept <= set(accepted)
        assert restored.database.read(lambda found: found.execute(text("pragma quick_check")).scalar_one()) == "ok"
        assert restored.claim("w")


def test_f2_a_worker_whose_shelf_cannot_be_written_takes_no_jobs_until_it_can(disk: Path, store: Store) -> None:
    shelf = Shelf(disk / "shelf")
    shelf.folder.mkdir()
    job = add(store)
    remount(disk, "ro")
    with working(Worker(store, film, shelf, pace=QUICK)):
        time.sleep(0.3)
        assert store.get("ann", job.id).state == "queued"
        remount(disk, "rw")
        wait_for(lambda: store.get("ann", job.id).state == "done")


def test_f2_a_shelf_that_breaks_under_a_job_fails_it_without_naming_a_place(disk: Path, store: Store) -> None:
    shelf = Shelf(disk / "shelf")
    shelf.folder.mkdir()
    job = add(store)

    def engine(plan: Plan, out: Path) -> Iterator[Event]:
        yield Progress("text", 1, 1)
        remount(disk, "ro")
        out.write_bytes(b"film")

    with working(Worker(store, engine, shelf, pace=QUICK)):
        wait_for(lambda: not store.get("ann", job.id).open)
        error = store.get("ann", job.id).error or {}
        assert error["code"] == "internal" and str(disk) not in error["message"]


class Clock:
    """The database's clock in the hands of a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.ahead = 0.0
        for module in (sweep, claims, endings, outbox, intake):
            monkeypatch.setattr(module, "clock", lambda connection: clock(connection) + self.ahead)


def finish(store: Store, shelf: Shelf) -> None:
    claim = store.claim("w")
    assert claim
    shelf.draft(claim).write_bytes(b"film")
    shelf.publish(claim)
    assert store.finish(claim, Ending("done")) == "done"


@contextlib.contextmanager
def keeping(store: Store, shelf: Shelf) -> Iterator[list[int]]:
    """A keeper at work; the list grows with its rounds."""
    stop, rounds = threading.Event(), list[int]()
    real = store.sweep
    store.sweep = lambda forget=True, at=None: (real(forget, at), rounds.append(1))[0]  # type: ignore[method-assign]
    keeper = threading.Thread(target=keep, args=(store, shelf, stop, 0.02))
    keeper.start()
    try:
        yield rounds
    finally:
        stop.set()
        keeper.join()


def some(rounds: list[int]) -> None:
    begin = len(rounds)
    wait_for(lambda: len(rounds) > begin + 3)


def test_f8_a_clock_that_jumps_ahead_deletes_nothing_until_it_is_believed(
    store: Store, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = Clock(monkeypatch)
    jobs = [add(store, prompt=f"cat {number}") for number in range(3)]
    for _ in jobs:
        finish(store, shelf)
    with keeping(store, shelf) as rounds:
        some(rounds)
        now.ahead = 365 * 86_400.0
        some(rounds)
        assert all(shelf.video(store.get("ann", job.id)) for job in jobs) and "the clock jumped" in caplog.text
        # It was wrong, and is set right: nothing was lost, and what is due goes again.
        now.ahead = 0.0
        some(rounds)
        assert all(shelf.video(store.get("ann", job.id)) for job in jobs)
        store.remove("ann", jobs[0].id)
        wait_for(lambda: len(list(shelf.folder.iterdir())) == 2)
        # It was right: after the grace what is a year old goes.
        monkeypatch.setattr(keeper_module, "GRACE", 0.3)
        now.ahead = 365 * 86_400.0
        wait_for(lambda: not list(shelf.folder.iterdir()))


def test_f8_a_clock_that_jumps_after_the_look_at_it_deletes_nothing(
    store: Store, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, real = Clock(monkeypatch), store.now
    job = add(store)
    finish(store, shelf)

    def look() -> float:
        seen, now.ahead = real(), 365 * 86_400.0
        return seen

    monkeypatch.setattr(store, "now", look)
    with keeping(store, shelf) as rounds:
        some(rounds)
    assert shelf.video(store.get("ann", job.id))


def test_f8_hours_that_pass_as_they_should_are_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = [1000.0]
    monkeypatch.setattr(keeper_module, "_passed", lambda: passed[0])
    calendar, begin = Calendar(), 1_800_000_000.0
    assert calendar.believe(begin)
    # A machine that slept: the clock went on, and so did the time that counts sleep.
    passed[0] += 50_000
    assert calendar.believe(begin + 50_000)
    # Summer time does not touch seconds since 1970; small corrections do not matter.
    assert calendar.believe(begin + 50_000 + 30)
    assert not calendar.believe(begin + 54_000)
    passed[0] += 3599
    assert not calendar.believe(begin + 57_599)
    passed[0] += 2
    assert calendar.believe(begin + 57_601)


def test_f8_a_clock_that_is_set_back_leaves_no_job_with_a_dead_worker(
    store: Store, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = Clock(monkeypatch)
    job = add(store)
    assert store.claim("a worker that dies")
    assert store.sweep().lost == 0
    now.ahead = -86_400.0
    assert store.sweep().lost == 1
    assert store.get("ann", job.id).state == "queued"
    claim = store.claim("another")
    assert claim and store.sweep().lost == 0 and store.beat(claim) == "go"
