"""Fixtures of the API's tests; `conftest.py` makes them known."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from ltx2.doors.http.app import create_app
from ltx2.doors.http.caller import SCOPES, Caller
from ltx2.doors.http.service import Service
from ltx2.spec.service import ServiceSettings
from tests.doors.http.studio import CARDS, Studio, studio, wait_for

SECRET = b"a secret of the tests"


@dataclass
class Names:
    """Keys without secrets: a token is its name; `admin` may everything, `gone` are revoked."""

    gone: set[str] = field(default_factory=set[str])

    def find(self, presented: str) -> Caller | None:
        if presented in self.gone or not presented.isalpha():
            return None
        return Caller(presented, frozenset(SCOPES) if presented == "admin" else frozenset({"generate", "read"}))

    def is_live(self, caller: Caller) -> bool:
        return caller.name not in self.gone


def make_service(place: Studio, **fields: Any) -> Service:
    settings = ServiceSettings(min_free_gib=0, rpm=100_000)
    given: dict[str, Any] = {"settings": settings, "keys": Names(), "models": CARDS} | fields
    return Service(queue=place.store, files=place.shelf, folder=place.folder, secret=SECRET, **given)


@contextmanager
def a_place(folder: Path, **rules: Any) -> Iterator[Studio]:
    """A store, a shelf and one worker; the database in memory where there is such a folder."""
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else folder) as quick,
        studio(folder / "data", Path(quick) / "jobs.db", **rules) as found,
    ):
        yield found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Studio]:
    with a_place(tmp_path) as found:
        yield found


def app_of(service: Service) -> FastAPI:
    return create_app(service)


@pytest.fixture
def app(place: Studio) -> FastAPI:
    return app_of(make_service(place))


@contextmanager
def client_of(app: FastAPI, token: str = "ann") -> Iterator[TestClient]:
    headers = {"Authorization": f"Bearer {token}"}
    with TestClient(app, "http://localhost", headers=headers, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def api(app: FastAPI) -> Iterator[TestClient]:
    """A client of token `ann`, without a network."""
    with client_of(app) as client:
        yield client


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The address of a real server for an application."""
    config = uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=2, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def address(app: FastAPI) -> Iterator[str]:
    with serving(app) as found:
        yield found


Make = Callable[..., dict[str, Any]]


def making(api: TestClient) -> Make:
    """A function that makes a finished video and returns its object."""

    def make(**fields: Any) -> dict[str, Any]:
        response = api.post("/v1/videos", json={"prompt": "a cat"} | fields, headers={"Prefer": "wait=60"})
        assert response.status_code == 200, response.text
        return response.json()

    return make


@pytest.fixture
def made(api: TestClient) -> Make:
    return making(api)


@pytest.fixture(scope="module")
def shared_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """For tests that do not mind each other's jobs."""
    with a_place(tmp_path_factory.mktemp("place")) as found:
        yield found


@pytest.fixture(scope="module")
def shared_api(shared_place: Studio) -> Iterator[TestClient]:
    with client_of(app_of(make_service(shared_place))) as client:
        yield client
