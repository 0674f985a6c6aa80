"""One SQLite file or one PostgreSQL database: how it is opened, its clock, its locks, and patience when it is away."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import tenacity
from sqlalchemy import URL, Connection, Double, Engine, cast, create_engine, event, extract, func, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, InternalError, OperationalError

from ltx2.jobs.errors import StorageFull, StoreUnavailable, WrongStore
from ltx2.jobs.tables import migrate, version

P = ParamSpec("P")
T = TypeVar("T")

EXAMPLES = "sqlite:///jobs.db or postgresql://host/name"
# Before 3.51.3 two connections in WAL mode can corrupt the file when the log is reset.
WAL_IS_SAFE = (3, 51, 3)
NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "lustre", "ceph", "glusterfs", "fuse.sshfs"}
# What SQLite says of a file that others hold, and of a disk that is read-only, failing, or out of descriptors.
READ_ONLY = "readonly database"
AWAY = ("locked", "busy", READ_ONLY, "disk I/O error", "unable to open database file")
DAMAGED = ("malformed", "not a database", "unsupported file format", "Could not decode to UTF-8")
# A worker that is stopped inside a transaction must not hold its locks for ever.
POSTGRES_OPTIONS = "-c idle_in_transaction_session_timeout=10s -c lock_timeout=10s -c synchronous_commit=on"


class Database:
    """Transactions with retries; one object for each process, never carried across a fork.

    `url` is `sqlite:///path` or `postgresql://…`; `patience` the seconds for which a failing transaction is tried
    again; without `prepare` tables are taken as they are. Raises WrongStore for a file that is damaged, newer, or on a
    network file system.
    """

    def __init__(self, url: str, patience: float = 30.0, prepare: bool = True):
        self.url = _read_url(url)
        self.patience = patience
        self.process = os.getpid()
        self.engine = _sqlite(self.url) if self.is_sqlite else _postgres(self.url)
        try:
            if self.is_sqlite:
                self.read(_check_file)
            if prepare:
                self.write(_prepare)
        except DBAPIError as error:
            if self.is_sqlite:
                raise _wreck(str(error.orig)) from error
            raise

    @property
    def is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    def write(self, act: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `act` in one transaction that may write, again and again until it commits.

        The answer of a commit can be lost: `act` must recognise what it has done before. Raises StoreUnavailable when
        patience is over, StorageFull at once.
        """
        return self._patiently("write", lambda connection: act(connection, *args, **kwargs))

    def read(self, act: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `act` in one transaction that only reads. Raises StoreUnavailable when patience is over."""
        return self._patiently("read", lambda connection: act(connection, *args, **kwargs))

    def close(self) -> None:
        """Close the connections of the pool."""
        self.engine.dispose()

    def _patiently(self, kind: str, act: Callable[[Connection], T]) -> T:
        if os.getpid() != self.process:
            raise RuntimeError("a Database does not survive a fork: open another one in the child")
        patient = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_passing),
            stop=tenacity.stop_after_delay(self.patience),
            wait=tenacity.wait_exponential(multiplier=0.02, max=1.0) + tenacity.wait_random(0.0, 0.05),
            reraise=True,
        )
        try:
            return patient(self._once, kind, act)
        except (DBAPIError, sqlite3.Error) as error:
            cause = _cause(error)
            if _full(error):
                raise StorageFull("the database is full", hint="free some space; nothing was written") from error
            if _damaged(error):
                raise _wreck(str(cause)) from error
            if _passing(error):
                raise StoreUnavailable(f"the database does not answer: {cause}") from error
            raise
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            # Only what stands in the database is decoded in a transaction (also what its driver says of a damaged
            # schema), and it was JSON and UTF-8 when it was written.
            raise _wreck("it cannot be read") from error

    def _once(self, kind: str, act: Callable[[Connection], T]) -> T:
        try:
            with self.engine.connect().execution_options(ltx2=kind) as connection, connection.begin():
                return act(connection)
        except (DBAPIError, sqlite3.Error) as error:
            if READ_ONLY in str(_cause(error)):
                # A connection that was opened while the disk could not be written stays like that.
                self.engine.dispose()
            raise


def peek(url: str, patience: float = 5.0) -> int | None:
    """The schema version of a database, None where there are no tables yet; nothing is made or changed.

    Raises WrongStore and StoreUnavailable.
    """
    place = _read_url(url)
    if place.get_backend_name() == "sqlite" and not Path(place.database or "").exists():
        return None
    database = Database(url, patience, prepare=False)
    try:
        return database.read(version)
    finally:
        database.close()


def clock(connection: Connection) -> float:
    """Seconds since 1970 by the database's clock, so that workers on several machines agree."""
    if connection.dialect.name == "sqlite":
        now = (func.julianday("now") - 2440587.5) * 86400.0
    else:
        now = cast(extract("epoch", func.clock_timestamp()), Double)
    return float(connection.execute(select(now)).scalar_one())


def serialise(connection: Connection, name: str) -> None:
    """Hold every other transaction of the same name back until this one ends; writers of SQLite already wait."""
    if connection.dialect.name != "sqlite":
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended("ltx2 " + name, 0))))


def seize(connection: Connection, name: str) -> bool:
    """As `serialise`, but does not wait: False when another transaction of that name is under way."""
    if connection.dialect.name == "sqlite":
        return True
    key = func.hashtextextended("ltx2 " + name, 0)
    return bool(connection.execute(select(func.pg_try_advisory_xact_lock(key))).scalar_one())


def journal_mode(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> str:
    """WAL where this SQLite resets its log safely, else TRUNCATE."""
    return "WAL" if version >= WAL_IS_SAFE else "TRUNCATE"


def file_system(path: Path, mounts: str) -> str:
    """Type of the file system that holds `path`, by a table of mounts in the form of /proc/self/mounts."""
    best, kind = "", ""
    for line in mounts.splitlines():
        _, point, found = line.split(" ")[:3]
        if path.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, found
    return kind


def _read_url(text: str) -> URL:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # What was meant as a URL may hold a password.
        raise WrongStore("the database's URL cannot be read", knob="db", hint=EXAMPLES) from None
    backend = url.get_backend_name()
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite" or not url.database or url.database == ":memory:":
        raise WrongStore(f"{url.render_as_string()}: not a database for jobs", knob="db", hint=EXAMPLES)
    return url


def _sqlite(url: URL) -> Engine:
    path = Path(url.database or "").resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    mounts = Path("/proc/self/mounts")
    kind = file_system(path, mounts.read_text()) if mounts.exists() else ""
    if kind in NETWORK_FILE_SYSTEMS:
        raise WrongStore(
            f"{path} is on {kind}, where SQLite's locks do not hold", hint="use a local disk, or PostgreSQL"
        )
    engine = create_engine(url, connect_args={"timeout": 5.0})
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin)
    return engine


def _set_pragmas(connection: sqlite3.Connection, _: Any) -> None:
    # The driver's own BEGIN comes too late and is deferred: two writers would both read before either locks.
    connection.isolation_level = None
    for pragma in (f"journal_mode={journal_mode()}", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("ltx2") == "write"
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _postgres(url: URL) -> Engine:
    try:
        return create_engine(url, pool_pre_ping=True, connect_args={"options": POSTGRES_OPTIONS, "connect_timeout": 5})
    except ModuleNotFoundError:
        raise WrongStore("PostgreSQL needs psycopg", hint="pip install 'ltx2[postgresql]'") from None


def _check_file(connection: Connection) -> None:
    # A file with several wounds has a row for each; the first one is enough.
    found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
    if found != "ok":
        raise _wreck(found)


def _prepare(connection: Connection) -> None:
    serialise(connection, "schema")
    migrate(connection)


def _cause(error: BaseException) -> BaseException | None:
    """The driver's error; one while a connection is opened comes without SQLAlchemy around it."""
    return error.orig if isinstance(error, DBAPIError) else error


def _passing(error: BaseException) -> bool:
    """Whether the same transaction may work a moment later."""
    cause = _cause(error)
    if _full(error) or _damaged(error):
        return False
    if isinstance(cause, sqlite3.Error):
        return any(words in str(cause) for words in AWAY)
    if not isinstance(error, DBAPIError):
        return False
    # Restart, lost connection, deadlock, serialisation failure, a session ended by its timeout.
    return error.connection_invalidated or isinstance(error, (OperationalError, InterfaceError, InternalError))


def _full(error: BaseException) -> bool:
    cause = _cause(error)
    return "disk is full" in str(cause) or getattr(cause, "sqlstate", None) == "53100"


def _damaged(error: BaseException) -> bool:
    cause = _cause(error)
    return isinstance(cause, sqlite3.DatabaseError) and any(words in str(cause) for words in DAMAGED)


def _wreck(what: str) -> WrongStore:
    return WrongStore(f"the database is damaged: {what}", hint="move the file aside and restore a backup")
