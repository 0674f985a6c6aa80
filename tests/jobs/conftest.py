"""Stores to test: every test that asks for one runs on SQLite and on a PostgreSQL server that the session starts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ltx2.jobs.job import Rules
from ltx2.jobs.shelf import Shelf
from ltx2.jobs.store import Store
from tests.jobs.server import Server, started

MakeStore = Callable[..., Store]


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    yield from started()


@pytest.fixture
def sqlite_file(tmp_path: Path) -> Iterator[Path]:
    """A place for a database; in memory where there is such a folder, since every commit waits for the disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder) / "jobs.db"


@pytest.fixture
def sqlite_url(sqlite_file: Path) -> str:
    return f"sqlite:///{sqlite_file}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        return request.getfixturevalue("sqlite_url")
    return request.getfixturevalue("server").fresh()


@pytest.fixture
def open_store(url: str) -> Iterator[MakeStore]:
    """A function that opens the test's database, with rules to taste."""
    opened: list[Store] = []

    def make(**rules: float) -> Store:
        opened.append(Store(url, Rules(**rules), patience=20.0))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: MakeStore) -> Store:
    return open_store()


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    folder = tmp_path / "shelf"
    folder.mkdir()
    return Shelf(folder)
