"""Crowds: what many requests of one client, or many silent connections, may not take from everybody else."""

from __future__ import annotations

import io
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from ltx2.doors.fetch import Outside
from ltx2.doors.http import connection, inputs, load
from ltx2.doors.http.app import create_app
from ltx2.doors.http.load import Scales
from ltx2.doors.http.refusals import Busy
from ltx2.spec.service import ServiceSettings
from tests.doors.http.fixtures import client_of, make_service
from tests.doors.http.studio import Studio, wait_for
from tests.doors.http.test_limits import ANN, is_closed, opened, served


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(out, "PNG")
    return out.getvalue()


class Gate:
    """Holds whoever comes until it is opened, and counts them."""

    def __init__(self) -> None:
        self.inside, self._open = 0, threading.Event()

    def wait(self) -> None:
        self.inside += 1
        assert self._open.wait(30)

    def open(self) -> None:
        self._open.set()


def crowd(app: FastAPI, number: int, ask: Any, gate: Gate, threads: int) -> list[int]:
    """Statuses of many requests that are held at a gate; while they are, everybody else is answered at once."""
    with client_of(app) as api, ThreadPoolExecutor(number) as pool:
        asked = [pool.submit(ask, api, index) for index in range(number)]
        wait_for(lambda: sum(one.done() for one in asked) == number - load.WAITING and gate.inside == threads)
        began = time.monotonic()
        assert api.get("/v1/videos").status_code == 200
        assert api.get("/readyz").status_code == 200
        assert api.post("/v1/videos", json={"prompt": "without a picture"}).status_code == 200
        assert time.monotonic() - began < 5
        gate.open()
        return sorted(one.result(30).status_code for one in asked)


def test_C12_pictures_that_take_long_hold_nobody_else_up(place: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, data = Gate(), picture()

    def slow(*_: Any) -> bytes:
        gate.wait()
        return data

    monkeypatch.setattr(inputs, "plain_png", slow)
    # More than the server has threads for everybody.
    monkeypatch.setattr(load, "WAITING", 45)

    def ask(api: TestClient, index: int) -> httpx.Response:
        return api.post("/v1/videos", data={"prompt": f"{index}"}, files={"input_reference": ("x.png", data)})  # type: ignore[return-value]

    found = crowd(create_app(make_service(place)), 50, ask, gate, 4)
    assert found == [200] * 45 + [503] * 5


def test_H3_hosts_that_take_long_to_look_up_hold_nobody_else_up(place: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()

    def find(host: str, port: int, seconds: float) -> Any:
        gate.wait()
        raise OSError

    monkeypatch.setattr(load, "WAITING", 45)

    def ask(api: TestClient, index: int) -> httpx.Response:
        return api.post("/v1/videos", json={"prompt": f"{index}", "webhook": "https://slow.example"})  # type: ignore[return-value]

    found = crowd(create_app(make_service(place, outside=Outside(find=find))), 48, ask, gate, 8)
    assert found == [400] * 45 + [503] * 3


def test_bodies_have_a_weight_until_their_job_is_accepted() -> None:
    def said(**headers: str) -> Headers:
        return Headers({name.replace("_", "-"): value for name, value in headers.items()})

    scales = Scales(most=100_000)
    small = scales.weigh(said(content_length="60000"), 0)
    assert (small.bytes, scales.held) == (0, 0), "JSON is not counted"
    first = scales.weigh(said(content_length="90000"), 0)
    for heavy in (said(content_length="70000"), said(transfer_encoding="chunked")):
        with pytest.raises(Busy):
            scales.weigh(heavy, 70_000)
    first.let_go()
    first.let_go()
    assert scales.held == 0
    assert scales.weigh(said(content_length="900000"), 0).bytes == 900_000, "alone, anything that is allowed may come"


def test_a_waiting_client_holds_no_body(place: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "MOST", 0)
    place.engine.go.clear()
    padding = b" " * 70_000
    files = {"input_reference": ("x.png", picture() + padding)}
    app = create_app(make_service(place))
    with client_of(app) as api, ThreadPoolExecutor(1) as pool:
        first = pool.submit(api.post, "/v1/videos", data={"prompt": "a"}, files=files, headers={"Prefer": "wait=60"})
        wait_for(lambda: place.engine.started)
        second = api.post("/v1/videos", data={"prompt": "b"}, files=files)
        assert second.status_code == 200 and not first.done()
        place.engine.go.set()
        assert first.result(60).status_code == 200


def test_G5_silent_connections_make_room_for_those_that_speak(place: Studio) -> None:
    with served(place, connections=5) as address:
        with httpx.Client(base_url=address, headers=ANN) as early:
            assert early.get("/v1/videos").status_code == 200
            silent = [opened(address) for _ in range(20)]
            for path in ("/livez", "/v1/videos"):
                assert httpx.get(address + path, headers=ANN).status_code == 200, path
        # Those that waited longest are the ones that went.
        assert is_closed(silent[0])
        silent[-1].sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert silent[-1].recv(100).startswith(b"HTTP/1.1 200")
        for one in silent:
            one.close()


def test_G5_too_many_requests_are_refused_in_our_form_and_probes_are_not(
    place: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SPARE", 3)
    place.engine.go.clear()
    with served(place, connections=3) as address, httpx.Client(base_url=address, headers=ANN, timeout=60) as api:
        job = api.post("/v1/videos", json={"prompt": "x"}).json()["id"]
        readers: list[socket.socket] = []
        for _ in range(3):
            reader = opened(address)
            reader.sendall(
                f"GET /v1/videos/{job}/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ann\r\n\r\n".encode()
            )
            assert reader.recv(100).startswith(b"HTTP/1.1 200")
            readers.append(reader)
        refused = api.get("/v1/videos")
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "not_ready"
        assert 0 < int(refused.headers["Retry-After"]) <= 120 and refused.headers["x-should-retry"] == "true"
        assert api.get("/livez").status_code == 200
        assert api.get("/readyz").status_code == 200
        for reader in readers:
            reader.close()
        wait_for(lambda: api.get("/v1/videos").status_code == 200)
        place.engine.go.set()


def test_PUT_takes_no_name_that_is_a_route(api: TestClient) -> None:
    for name in ("edits", "extensions", "characters"):
        refused = api.put(f"/v1/videos/{name}", json={"prompt": "x"})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "id", name
    assert api.put("/v1/videos/characters-1", json={"prompt": "x"}).status_code == 200


def test_a_refused_url_is_refused_under_the_name_of_its_field(place: Studio, tmp_path: Path) -> None:
    settings = ServiceSettings(min_free_gib=0, url_inputs=True)
    with client_of(create_app(make_service(place, settings=settings))) as api:
        for field in ("image", "input_reference"):
            error = api.post("/v1/videos", json={"prompt": "x", field: "https://127.0.0.1/x"}).json()["error"]
            assert error["code"] == "url_not_allowed" and error["param"] == field
            assert error["message"].startswith(f"{field}:")
