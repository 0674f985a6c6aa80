"""Server-sent events (row G4): nothing lost, nothing hung, one look at the database for all readers."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.testclient import TestClient

from ltx2.doors.http import events, hub
from ltx2.doors.http.caller import Caller
from ltx2.doors.http.estimates import Estimates
from ltx2.doors.http.parts import Maker, Parts
from tests.doors.http.fixtures import Make, Names, app_of, client_of, make_service, serving
from tests.doors.http.studio import Studio, wait_for

CAT = {"prompt": "a cat"}
TOKEN = {"Authorization": "Bearer ann"}


def read(text: str) -> list[dict[str, Any]]:
    """The events of a stream."""
    found: list[dict[str, Any]] = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "event" in fields:
            found.append(fields | {"data": json.loads(fields["data"])})
    return found


def stream(api: TestClient, id: str, last: str | None = None) -> list[dict[str, Any]]:  # noqa: A002
    headers = {} if last is None else {"Last-Event-ID": last}
    response = api.get(f"/v1/videos/{id}/events", headers=headers)
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert response.headers["Cache-Control"] == "no-store"
    return read(response.text)


def test_the_whole_story(place: Studio, api: TestClient) -> None:
    place.engine.seconds = 0.5
    id = api.post("/v1/videos", json=CAT).json()["id"]  # noqa: A001
    told = stream(api, id)
    assert [event["event"] for event in told[:-1]] == ["progress"] * (len(told) - 1)
    last = told[-1]
    assert (last["event"], last["data"]["status"], last["data"]["progress"]) == ("completed", "completed", 100)
    versions = [int(event["id"]) for event in told]
    assert versions == sorted(versions)
    progress = [event["data"]["progress"] for event in told]
    assert progress == sorted(progress)
    stages = {event["data"]["stage"] for event in told}
    assert stages & {"text", "stage 1", "stage 2", "upsample"}
    running = next(event["data"] for event in told if event["data"]["stage"] in ("stage 1", "stage 2"))
    assert running["steps"] == 3 and 1 <= running["step"] <= 3


def test_the_end_of_a_failed_and_of_a_deleted_one(place: Studio, api: TestClient, made: Make) -> None:
    failed = made(prompt="fail")
    assert [event["event"] for event in stream(api, failed["id"])] == ["failed"]
    assert api.get("/v1/videos/unknown/events").status_code == 404


def test_G4_coming_back(made: Make, api: TestClient) -> None:
    id = made()["id"]  # noqa: A001
    told = stream(api, id)
    version = told[-1]["id"]
    again = api.get(f"/v1/videos/{id}/events", headers={"Last-Event-ID": version})
    assert (again.status_code, again.content) == (204, b"")
    for last in ("1", "999999", "x", "", "-1", "9" * 5000, "٣"):
        header = last.encode()
        response = api.get(f"/v1/videos/{id}/events", headers={"Last-Event-ID": header})
        assert [event["event"] for event in read(response.text)] == ["completed"], last


def test_G4_a_reset_tells_the_state_to_who_was_elsewhere(place: Studio, address: str) -> None:
    place.engine.go.clear()
    with httpx.Client(base_url=address, headers=TOKEN) as client:
        id = client.post("/v1/videos", json=CAT).json()["id"]  # noqa: A001
        with client.stream("GET", f"/v1/videos/{id}/events", headers={"Last-Event-ID": "77777"}) as response:
            text = ""
            for piece in response.iter_text():
                text += piece
                if "reset" in text and text.endswith("\n\n"):
                    break
        assert read(text)[0]["event"] == "reset"
        assert read(text)[0]["data"]["id"] == id


def test_G4_what_ends_while_an_event_is_sent_is_told(place: Studio, api: TestClient) -> None:
    place.engine.go.clear()
    id = api.post("/v1/videos", json=CAT).json()["id"]  # noqa: A001
    job = place.store.get("ann", id)
    done = replace(job, state="done", version=job.version + 5, result={"seconds": 1.0, "peak_bytes": 1})
    request = Request({"type": "http", "headers": [], "server": ("localhost", 80), "path": "/", "scheme": "http"})

    async def run() -> bytes:
        center = hub.Hub(place.store)
        parts = Parts(make_service(place), center, Estimates(), Maker())
        told = events._stream(request, parts, Caller("ann"), job, None)
        text = await anext(told) + await anext(told)
        # The reader is slow: it still has the first event in its hands.
        center._watches["ann", id].tell(done, None)
        return text + b"".join([piece async for piece in told])

    assert [event["event"] for event in read(asyncio.run(run()).decode())] == ["progress", "completed"]


def test_G4_many_readers_of_one_job_are_one_poller(place: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    place.engine.go.clear()
    job = place.store.submit(_ask()).job
    looks: list[float] = []
    true_get = place.store.get
    monkeypatch.setattr(place.store, "get", lambda *names: looks.append(time.monotonic()) or true_get(*names))

    async def run() -> int:
        center = hub.Hub(place.store)

        async def reader() -> bool:
            async with center.follow(job) as watch:
                while not watch.ended:
                    await watch.next(watch.count, 1.0)
                return watch.job is not None and watch.job.state == "done"

        readers = [asyncio.create_task(reader()) for _ in range(200)]
        await asyncio.sleep(1.0)
        under_way = len(looks)
        place.engine.go.set()
        assert all(await asyncio.gather(*readers))
        assert not center._watches, "nothing is left behind"
        return under_way

    assert 1 <= asyncio.run(run()) <= 1.0 / hub.LOOK + 2


def _ask() -> Any:
    from tests.jobs.asks import ask

    return ask()


def test_pings_and_the_longest_stream(place: Studio, api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PING", 0.1)
    monkeypatch.setattr(events, "LOOK_UP", 0.05)
    monkeypatch.setattr(events, "LONGEST", 1.0)
    place.engine.go.clear()
    id = api.post("/v1/videos", json=CAT).json()["id"]  # noqa: A001
    text = api.get(f"/v1/videos/{id}/events").text
    assert text.startswith("retry: 2000\n\n")
    assert text.count(": ping\n\n") >= 2


def test_draining_and_revoked(place: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LOOK_UP", 0.05)
    place.engine.go.clear()
    names = Names()
    service = make_service(place, keys=names)
    app = app_of(service)
    with client_of(app) as api, serving(app) as address:
        id = api.post("/v1/videos", json=CAT).json()["id"]  # noqa: A001
        for end in ("auth_expired", "server_draining"):
            with httpx.stream("GET", f"{address}/v1/videos/{id}/events", headers=TOKEN, timeout=20) as response:
                pieces = response.iter_text()
                text = next(pieces)
                if end == "auth_expired":
                    names.gone.add("ann")
                else:
                    service.duty.stopping.set()
                text += "".join(pieces)
            assert read(text)[-1]["event"] == end
            names.gone.clear()


def test_G4_who_never_reads_is_dropped_and_harms_nobody(
    place: Studio, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "STALLED", 0.5)
    monkeypatch.setattr(events, "LOOK_UP", 0.01)
    monkeypatch.setattr(events, "KEEPALIVE_COMMENT", b": " + b"x" * 100_000 + b"\n\n")
    monkeypatch.setattr(events, "PING", 0.0)
    place.engine.go.clear()
    with serving(app) as address, httpx.Client(base_url=address, headers=TOKEN) as client:
        id = client.post("/v1/videos", json=CAT).json()["id"]  # noqa: A001
        host, _, port = address.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.sendall(f"GET /v1/videos/{id}/events HTTP/1.1\r\nHost: localhost\r\n{_line()}\r\n\r\n".encode())
            watches = app.state.parts.hub._watches if hasattr(app.state, "parts") else {}
            wait_for(lambda: app.state.parts.hub._watches)
            watches = app.state.parts.hub._watches
            wait_for(lambda: not watches)
            assert client.get(f"/v1/videos/{id}").status_code == 200


def _line() -> str:
    return "Authorization: Bearer ann"


def test_G4_without_keep_alive(place: Studio, address: str) -> None:
    with httpx.Client(base_url=address, headers=TOKEN) as client:
        id = client.post("/v1/videos", json=CAT, headers={"Prefer": "wait=30"}).json()["id"]  # noqa: A001
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as old:
        old.sendall(f"GET /v1/videos/{id}/events HTTP/1.0\r\nHost: localhost\r\n{_line()}\r\n\r\n".encode())
        text = b"".join(iter(lambda: old.recv(4096), b"")).decode()
    assert "event: completed" in text
