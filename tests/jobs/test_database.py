"""Opening, versions, locks, and patience with a database that is away."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, select, text, update
from sqlalchemy.exc import OperationalError

from ltx2.jobs.database import Database, clock, file_system, journal_mode
from ltx2.jobs.errors import StorageFull, StoreUnavailable, WrongStore
from ltx2.jobs.job import Ending, Rules
from ltx2.jobs.store import Store
from ltx2.jobs.tables import JOBS, SCHEMA, STEPS, migrate
from tests.jobs.asks import HOOK, add, ask, letters
from tests.jobs.conftest import MakeStore
from tests.jobs.server import Server


def test_f5_wal_only_where_the_log_is_reset_safely() -> None:
    assert [journal_mode(version) for version in [(3, 40, 1), (3, 51, 2), (3, 51, 3), (3, 53, 0)]] == [
        "TRUNCATE",
        "TRUNCATE",
        "WAL",
        "WAL",
    ]


def test_sqlite_is_opened_for_safety(sqlite_url: str) -> None:
    def pragmas(connection: Connection) -> list[Any]:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names]

    assert Database(sqlite_url).read(pragmas) == [journal_mode().lower(), 2, 1, 5000]


def test_postgresql_ends_sessions_that_idle_in_a_transaction(server: Server) -> None:
    database = Database(server.fresh())
    query = text("show idle_in_transaction_session_timeout")
    assert database.read(lambda connection: connection.execute(query).scalar_one()) == "10s"
    database.close()


def test_f7_network_file_systems_are_told_apart() -> None:
    mounts = "/dev/a / ext4 rw 0 0\nsrv:/x /data nfs4 rw 0 0\n/dev/b /data/local xfs rw 0 0\n"
    kinds = [
        file_system(Path(path), mounts) for path in ("/jobs.db", "/data/jobs.db", "/data/local/jobs.db", "/database")
    ]
    assert kinds == ["ext4", "nfs4", "xfs", "ext4"]


@pytest.mark.parametrize("url", ["mysql://host/jobs", "sqlite://", "sqlite:///:memory:"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(Exception, match=r"not a database for jobs|mysql"):
        Database(url)


def test_f3_a_damaged_file_is_refused_with_a_hint(sqlite_url: str, sqlite_file: Path) -> None:
    sqlite_file.write_bytes(b"this is no database" * 100)
    with pytest.raises(WrongStore, match="move the file aside"):
        Database(sqlite_url)


def test_f3_a_newer_schema_is_refused(open_store: MakeStore) -> None:
    store = open_store()
    store.database.write(lambda connection: connection.execute(update(SCHEMA).values(version=len(STEPS) + 1)).rowcount)
    with pytest.raises(WrongStore, match="newer version"):
        open_store()


def test_an_older_schema_is_brought_up_to_date_once(store: Store) -> None:
    def more(connection: Connection) -> None:
        connection.execute(text("alter table ltx2_jobs add column colour text"))

    job = add(store)
    assert [store.database.write(migrate, [*STEPS, more]) for _ in range(2)] == [len(STEPS), len(STEPS) + 1]
    query = text("select id, colour from ltx2_jobs")
    assert store.database.read(lambda connection: list(connection.execute(query))) == [(job.id, None)]


def test_many_processes_may_open_a_new_database_at_once(url: str) -> None:
    threads = [threading.Thread(target=lambda: Database(url).close()) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    versions = Database(url).read(lambda connection: list(connection.execute(select(SCHEMA.c.version)).scalars()))
    assert versions == [len(STEPS)]


def test_the_clock_is_the_databases_and_moves(store: Store) -> None:
    def twice(connection: Connection) -> tuple[float, float]:
        first = clock(connection)
        time.sleep(0.02)
        return first, clock(connection)

    first, second = store.database.write(twice)
    assert 0.015 < second - first < 5 and first == pytest.approx(time.time(), abs=5)


def test_f4_a_locked_file_is_waited_for_then_reported(sqlite_url: str, sqlite_file: Path) -> None:
    store = Store(sqlite_url, patience=0.1)
    holder = sqlite3.connect(sqlite_file, isolation_level=None)
    with store.database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=100")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreUnavailable):
        add(store)
    holder.execute("ROLLBACK")
    assert add(store).state == "queued"


def test_f1_a_full_disk_is_reported_by_name_and_passes(sqlite_url: str) -> None:
    store = Store(sqlite_url, patience=5.0)
    add(store)

    def allow(connection: Connection, pages: int) -> int:
        return connection.exec_driver_sql(f"PRAGMA max_page_count={pages}").scalar_one()

    used = store.database.read(lambda connection: connection.exec_driver_sql("PRAGMA page_count").scalar_one())
    store.database.read(allow, used)
    with pytest.raises(StorageFull):
        for _ in range(200):
            add(store)
    held = len(store.page("ann", limit=300))
    store.database.read(allow, used + 1000)
    add(store)
    assert len(store.page("ann", limit=300)) == held + 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_database_refuses_to_cross_a_fork(sqlite_url: str) -> None:
    store = Store(sqlite_url)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def child() -> None:
        try:
            store.counts()
        except RuntimeError as error:
            queue.put(str(error))

    process = context.Process(target=child)
    process.start()
    assert "fork" in queue.get(timeout=10)
    process.join()


def lose_the_next_answer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next write commits, and then its connection breaks before the answer comes."""
    monkeypatch.undo()
    honest, answers = store.database._once, []

    def once(kind: str, act: Any) -> Any:
        answer = honest(kind, act)
        if kind == "write" and not answers:
            answers.append(answer)
            raise OperationalError("commit", None, sqlite3.OperationalError("database is locked"))
        return answer

    monkeypatch.setattr(store.database, "_once", once)


def test_bug_3_no_act_is_done_twice_when_the_answer_to_its_commit_is_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_the_next_answer(store, monkeypatch)
    job = store.submit(ask(webhook=HOOK)).job
    other = add(store)
    lose_the_next_answer(store, monkeypatch)
    claim = store.claim("w")
    assert claim and (claim.number, claim.attempt) == (job.number, 1)
    lose_the_next_answer(store, monkeypatch)
    assert store.finish(claim, Ending("done")) == "done"
    assert len(letters(store, job)) == 1
    lose_the_next_answer(store, monkeypatch)
    assert store.cancel("ann", other.id).state == "cancelled"
    assert store.counts() == {"done": 1, "cancelled": 1}


def test_bug_3_a_restart_of_the_server_is_waited_for(server: Server) -> None:
    store = Store(server.fresh(), patience=30.0)
    job = add(store)
    server.kill()
    starter = threading.Timer(0.7, server.start)
    starter.start()
    assert store.get("ann", job.id).state == "queued"
    starter.join()
    assert add(store).number > job.number
    store.close()


def test_bug_2_a_sweep_does_not_wait_for_a_row_that_somebody_holds(server: Server) -> None:
    store = Store(server.fresh(), Rules(lease=-1.0))
    held, free = add(store), add(store)
    store.claim("w1"), store.claim("w2")
    with store.database.engine.connect() as connection, connection.begin():
        connection.execute(select(JOBS).where(JOBS.c.number == held.number).with_for_update())
        begin = time.monotonic()
        assert store.sweep().lost == 1
        assert time.monotonic() - begin < 2
    states = [store.get("ann", job.id).state for job in (held, free)]
    assert states == ["running", "queued"]
    assert store.sweep().lost == 1
    store.close()


def test_f9_a_hundred_thousand_jobs_are_still_listed_and_claimed_quickly(sqlite_url: str) -> None:
    store = Store(sqlite_url)
    copy = """
        insert into ltx2_jobs (id, token, digest, request, plan, priority, turn, state, attempt, tries, cancel_asked,
            version, removed, created, finished)
        with recursive n(i) as (select 1 union all select i + 1 from n where i < 100000)
        select 'v' || i, 't' || (i % 10), 'd', '{}', '{}', 0, i, case when i % 100 then 'done' else 'queued' end, 1, 1,
            0, 1, 0, 1e9, 4e9 from n"""
    store.database.write(lambda connection: connection.execute(text(copy)).rowcount)
    times = []
    for index in range(20):
        begin = time.perf_counter()
        page = store.page(f"t{index % 10}", limit=20)
        claim = store.claim(f"w{index}")
        assert len(page) == 20 and claim
        times.append(time.perf_counter() - begin)
    assert sorted(times)[18] < 0.25
