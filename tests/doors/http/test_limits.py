"""What is refused before a job is made, and connections that would hold others up."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from ltx2.doors import serve
from ltx2.doors.http import connection
from ltx2.doors.http.app import create_app
from ltx2.doors.http.caller import Caller
from ltx2.doors.http.keys import Keyring
from ltx2.doors.http.limits import BUCKETS, Buckets
from ltx2.doors.premises import Premises
from ltx2.doors.serve import make_server
from ltx2.spec.service import ServiceSettings
from ltx2.spec.settings import Settings
from tests.doors.http.fixtures import Names, client_of, make_service
from tests.doors.http.studio import Studio, studio, wait_for


@contextmanager
def served(place: Studio, **knobs: object) -> Iterator[str]:
    """A service behind the server that `ltx2 serve` runs."""
    settings = ServiceSettings(**{"min_free_gib": 0, "rpm": 100_000} | knobs)  # type: ignore[arg-type]
    server = make_server(create_app(make_service(place, settings=settings)), settings)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        wait_for(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


def opened(address: str) -> socket.socket:
    host, _, port = address.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side closes it within 20 seconds, politely or not."""
    try:
        return connection.recv(100) == b""
    except ConnectionError:
        return True


def knob_app(place: Studio, **knobs: object) -> FastAPI:
    settings = ServiceSettings(**{"min_free_gib": 0, "rpm": 100_000} | knobs)  # type: ignore[arg-type]
    return create_app(make_service(place, settings=settings))


ANN = {"Authorization": "Bearer ann"}


def test_A1_the_body_of_a_stranger_is_not_read(place: Studio) -> None:
    with served(place) as address:
        for head in (b"Content-Length: 1073741824", b"Transfer-Encoding: chunked"):
            with opened(address) as stranger:
                stranger.sendall(b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n\r\n")
                assert b"HTTP/1.1 4" in stranger.recv(64)
                sent, piece = 0, b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
                with pytest.raises(OSError):
                    while sent < 1 << 30:
                        sent += stranger.send(piece)
                assert sent < 1 << 26, "the connection was closed early"
        for headers in ({}, {"Authorization": ""}, {"Authorization": "Bearer"}, {"Authorization": "bearer"}):
            response = httpx.post(f"{address}/v1/videos", json={"prompt": "x"}, headers=headers)
            assert response.status_code == 401 and response.json()["error"]["code"] == "unauthorized"
            assert response.headers["WWW-Authenticate"].startswith("Bearer")
            assert response.headers["Connection"] == "close"


def test_A3_heads_that_are_too_large_or_strange(place: Studio) -> None:
    with served(place) as address:
        # The parser gives up on what is too large and not whole yet (400); what is there at once, the service refuses (431).
        for value, statuses in (
            (b"x" * 65_536, {b"431"}),
            (b"x" * 200_000, {b"400", b"431"}),
            ("Bearer tökén".encode(), {b"401"}),
            (b"a\0b", {b"400"}),
        ):
            with opened(address) as client:
                client.sendall(b"GET /v1/videos HTTP/1.1\r\nHost: localhost\r\nAuthorization: " + value + b"\r\n\r\n")
                assert client.recv(64).split()[1] in statuses, value[:10]
        twice = [("Authorization", "Bearer ann"), ("Authorization", "Bearer bob")]
        assert httpx.get(f"{address}/v1/videos", headers=twice).status_code == 401
        both = [("Authorization", "Bearer ann"), ("x-api-key", "ann")]
        assert httpx.get(f"{address}/v1/videos", headers=both).status_code == 200


def test_G5_slow_heads_and_idle_connections_hold_nobody_up(place: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 2.0)
    with served(place) as address:
        idle = [opened(address) for _ in range(200)]
        slow = opened(address)
        slow.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        stop = threading.Event()

        def drip() -> None:
            try:
                while not stop.wait(0.1):
                    slow.sendall(b"x")
            except OSError:
                return

        threading.Thread(target=drip, daemon=True).start()
        times = list[float]()
        with httpx.Client() as client:
            for _ in range(40):
                began = time.monotonic()
                assert client.get(f"{address}/livez").status_code == 200
                times.append(time.monotonic() - began)
            assert sorted(times)[-2] < 0.5
            assert is_closed(slow), "though it went on sending"
            assert is_closed(idle[0])
            # A connection that is used goes on.
            assert client.get(f"{address}/livez").status_code == 200
        stop.set()
        for each in [*idle, slow]:
            each.close()


@pytest.mark.slow
def test_G5_ten_thousand_idle_connections_hold_nobody_up(place: Studio) -> None:
    script = """
import socket, sys, time
host, port = sys.argv[1].rsplit(":", 1)
idle = []
for number in range(10_000):
    idle.append(socket.create_connection((host, int(port)), timeout=60))
print(len(idle), flush=True)
sys.stdin.read()
"""
    with served(place) as address, httpx.Client() as client:
        words = [sys.executable, "-c", script, address.removeprefix("http://")]
        crowd = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert crowd.stdout
        try:
            times, here, closed = list[float](), False, 0
            while not here or len(times) < 200:
                begun = time.monotonic()
                try:
                    assert client.get(f"{address}/livez").status_code == 200
                except httpx.TransportError:
                    # It was the one that had been idle longest; clients connect again.
                    closed += 1
                times.append(time.monotonic() - begun)
                here = here or bool(select.select([crowd.stdout], [], [], 0)[0])
            assert crowd.stdout.readline() == "10000\n"
            p50, p99 = (sorted(times)[int(share * len(times))] for share in (0.5, 0.99))
            print(f"/livez: p50 {p50:.4f} s, p99 {p99:.4f} s of {len(times)}, {closed} closed")
            assert p99 < 5.0 and closed < 5
            assert client.post(f"{address}/v1/videos", json={"prompt": "a cat"}, headers=ANN).status_code == 200
        finally:
            crowd.kill()
            crowd.wait()


def test_G11_a_proxy_is_believed_only_when_it_is_trusted(place: Studio) -> None:
    spoof = ANN | {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9"}
    with served(place, root_path="/video/") as address:
        job = httpx.post(f"{address}/v1/videos", json={"prompt": "a cat"}, headers=spoof | {"Prefer": "wait=20"})
        assert job.headers["Location"] == f"/video/v1/videos/{job.json()['id']}"
        assert "https://" not in job.text, "nobody was trusted"
        assert f"{address}/video/v1/videos" in job.text
        assert httpx.get(job.json()["urls"]["signed_video"].replace("/video/v1", "/v1", 1)).status_code == 200
    with served(place, trusted_proxies=("127.0.0.1",)) as address:
        found = httpx.get(f"{address}/v1/videos/{job.json()['id']}", headers=spoof)
        assert f"{address.replace('http', 'https')}/v1/videos" in found.text


def test_D11_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    with studio(tmp_path, tmp_path / "jobs.db", workers=0, depth=3) as place, client_of(knob_app(place)) as api:
        jobs = [api.post("/v1/videos", json={"prompt": f"a cat {number}"}).json()["id"] for number in range(3)]
        full = api.post("/v1/videos", json={"prompt": "x"})
        assert full.status_code == 429 and full.json()["error"]["code"] == "queue_full"
        assert 0 < int(full.headers["Retry-After"]) <= 120 and full.headers["x-should-retry"] == "true"
        assert len(api.get("/v1/videos").json()["data"]) == 3, "nothing was half accepted"
        assert api.delete(f"/v1/videos/{jobs[0]}").status_code == 200
        assert api.post("/v1/videos", json={"prompt": "x"}).status_code == 200


def test_a_token_has_so_many_open_jobs(tmp_path: Path) -> None:
    with studio(tmp_path, tmp_path / "jobs.db", workers=0) as place:
        app = knob_app(place, open_jobs=2)
        with client_of(app) as api:
            assert [api.post("/v1/videos", json={"prompt": p}).status_code for p in "abc"] == [200, 200, 429]
        with client_of(app, "bob") as api:
            assert api.post("/v1/videos", json={"prompt": "a"}).status_code == 200


def test_a_token_has_so_many_jobs_a_minute(place: Studio) -> None:
    app = knob_app(place, rpm=12)
    with client_of(app) as api:
        found = [api.post("/v1/videos", json={"prompt": f"{n}"}) for n in range(4)]
        assert [response.status_code for response in found] == [200, 200, 429, 429]
        assert found[2].json()["error"]["code"] == "rate_limited"
        assert 1 <= int(found[2].headers["Retry-After"]) <= 5
        assert api.get("/v1/videos").status_code == 200, "looking is free"
    with client_of(app, "bob") as api:
        assert api.post("/v1/videos", json={"prompt": "x"}).status_code == 200


@dataclass
class Generous(Names):
    """Keys whose own limits are looser than those of the service."""

    def find(self, presented: str) -> Caller | None:
        found = super().find(presented)
        return found and replace(found, rpm=100_000, limit=100_000)


@pytest.mark.parametrize("knobs", [{"open_jobs": 2}, {"rpm": 12}], ids=str)
def test_limits_of_a_token_do_not_widen_those_of_the_service(place: Studio, knobs: dict[str, int]) -> None:
    place.engine.go.clear()
    settings = ServiceSettings(**{"min_free_gib": 0, "rpm": 100_000} | knobs)  # type: ignore[arg-type]
    with client_of(create_app(make_service(place, settings=settings, keys=Generous()))) as api:
        assert [api.post("/v1/videos", json={"prompt": p}).status_code for p in "abc"] == [200, 200, 429]


def test_a_full_disk_takes_nothing_new_and_shows_what_is_there(place: Studio) -> None:
    with client_of(knob_app(place)) as api:
        assert api.post("/v1/videos", json={"prompt": "x"}).status_code == 200
    with client_of(knob_app(place, min_free_gib=1e12)) as api:
        full = api.post("/v1/videos", json={"prompt": "x"})
        assert full.status_code == 503 and full.json()["error"]["code"] == "storage_full"
        assert full.headers["Retry-After"] == "60"
        assert len(api.get("/v1/videos").json()["data"]) == 1


def test_a_body_that_says_it_is_too_large_is_refused_unread(api: TestClient) -> None:
    for length in ("33554433", "9" * 30, "-1", "x"):
        refused = api.post("/v1/videos", content=b"{}", headers={"Content-Length": length})
        assert refused.status_code == 413
        assert refused.json()["error"]["code"] == "request_too_large"


def test_buckets_fill_again_and_forget_old_names(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    buckets = Buckets()
    assert [buckets.take("ann", 60, 3) for _ in range(3)] == [0, 0, 0]
    assert buckets.take("ann", 60, 3) == pytest.approx(1.0)
    assert buckets.take("ann", 60, 3) == pytest.approx(1.0), "asking costs nothing"
    now += 1.0
    assert buckets.take("ann", 60, 3) == 0
    now += 100.0
    assert [buckets.take("ann", 60, 3) for _ in range(4)] == [0, 0, 0, pytest.approx(1.0)]
    for number in range(BUCKETS + 5):
        buckets.take(f"{number}", 60, 1)
    assert len(buckets._full) == BUCKETS and "ann" not in buckets._full


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no such option")
def test_G5_a_reader_that_vanished_keeps_no_connection() -> None:
    with serve._listening(ServiceSettings(port=0)) as listener:  # pyright: ignore[reportPrivateUsage]
        listener.listen()
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000


def test_pictures_go_after_the_records_that_name_them(place: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "FORGET_SECONDS", 0.02)
    service, stop, before = make_service(place), threading.Event(), set(threading.enumerate())
    pictures = {days: place.folder / f"inputs/{days}.png" for days in (29, 30.9, 31.1)}
    for days, path in pictures.items():
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (0, time.time() - days * 86_400))
    house = Premises(service.settings, Settings(), place.store, place.shelf)
    serve._watch_house(house, service, Keyring(list), stop)  # pyright: ignore[reportPrivateUsage]
    try:
        wait_for(lambda: not pictures[31.1].exists())
        time.sleep(0.1)
        assert pictures[29].exists() and pictures[30.9].exists()
    finally:
        stop.set()
        for thread in set(threading.enumerate()) - before:
            thread.join(10)
