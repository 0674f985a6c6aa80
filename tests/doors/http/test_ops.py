"""Probes, metrics, logs, and the frame around every answer."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.testclient import TestClient

from ltx2 import __version__
from ltx2.doors.http import logs, ops
from ltx2.doors.http.app import ROUTERS, create_app
from ltx2.doors.http.service import Duty
from ltx2.jobs.errors import StoreUnavailable
from tests.doors.http.fixtures import Make, client_of, make_service
from tests.doors.http.studio import Studio

HEAVY = ("torch", "diffusers", "transformers")


def test_probes_follow_the_duty(place: Studio) -> None:
    duty = Duty(waiting="the engine starts")
    with TestClient(create_app(make_service(place, duty=duty))) as client:

        def said(path: str) -> tuple[int, dict[str, Any]]:
            response = client.get(path)
            return response.status_code, response.json()

        assert said("/livez") == (200, {"status": "alive"})
        assert said("/readyz") == (503, {"status": "waiting", "reason": "the engine starts"})
        duty.waiting = None
        assert said("/readyz") == (200, {"status": "ready"})
        duty.defunct = "workers die"
        assert said("/livez")[0] == 500
        assert said("/readyz") == (503, {"status": "defunct", "reason": "workers die"})
        duty.stopping.set()
        assert said("/readyz")[1]["status"] == "draining"
        assert said("/version") == (200, {"version": __version__})
        assert client.head("/livez").status_code == 405


def test_an_absent_database_is_told_soon(place: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "STORE_SECONDS", 0.2)
    gone = threading.Event()

    def away() -> dict[str, int]:
        gone.wait(1.0)
        raise StoreUnavailable("host=db.internal does not answer")

    monkeypatch.setattr(place.store, "counts", away)
    with client_of(create_app(make_service(place))) as api:
        began = time.monotonic()
        answer = api.get("/readyz")
        assert answer.status_code == 503 and answer.json()["status"] == "store"
        assert time.monotonic() - began < 3
        assert api.get("/livez").status_code == 200
        gone.set()
        monkeypatch.setattr(place.store, "get", lambda *_: away())
        answer = api.get("/v1/videos/video_1")
        assert answer.status_code == 503 and answer.headers["x-should-retry"] == "true"
        assert "db.internal" not in answer.text, "where the database is is nobody's business"


def test_I5_metrics_are_bounded_and_name_no_prompt(place: Studio) -> None:
    app = create_app(make_service(place))
    with client_of(app, "admin") as api:
        made = api.post("/v1/videos", json={"prompt": "a secret garden"}, headers={"Prefer": "wait=20"}).json()
        api.get("/metrics")
        with client_of(app) as other:
            other.get("/v1/videos/video_x")
            other.request("M", "/v1/x")
            before = series(api.get("/metrics").text)
            for number in range(100):
                other.get(f"/v1/videos/video_{number}", headers={"x-api-key": "ann"})
                other.request(f"M{number}", f"/v1/{number}")
        found: list[str] = []
        readers = [threading.Thread(target=lambda: found.append(api.get("/metrics").text)) for _ in range(8)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
    assert len(found) == 8
    for text in found:
        assert "secret garden" not in text and made["id"] not in text and "ann" not in re.findall(r'="([^"]*)"', text)
        assert len(series(text)) == len(before), "a hundred ids, paths and methods made no series"
    assert 'ltx2_jobs{state="done"} 1.0' in found[0]
    assert "ltx2_ready 1.0" in found[0] and "ltx2_disk_free_bytes" in found[0]
    assert 'route="/v1/videos/{id}"' in found[0]


def series(text: str) -> set[str]:
    return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What the log writes, with the root logger put back afterwards."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    text = io.StringIO()
    monkeypatch.setattr("sys.stderr", text)
    logs.configure()
    yield text
    root.handlers[:], level = before
    root.setLevel(level)


def test_G8_a_log_line_is_one_line_of_json(app: FastAPI, written: io.StringIO) -> None:
    with client_of(app) as api:
        evil = 'x\n{"event": "forged", "level": "error"}\r\n\x1b[31m'
        assert api.post("/v1/videos", json={"prompt": "a cat"}, headers={"x-request-id": "r1"}).status_code == 200
        api.post("/v1/videos", json={"prompt": evil})
        api.get("/v1/videos/a%0Ab", headers={"x-request-id": "a\tb"})
        logging.getLogger("ltx2.test").warning("%s", evil, extra={"prompt": "the prompt", "secret": "s3cr3t"})
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [line["event"] for line in lines].count("forged") == 0
    requests = [line for line in lines if line["event"] == "request"]
    assert {"request", "method", "route", "status", "seconds", "token", "level", "timestamp"} <= requests[0].keys()
    assert requests[0]["token"] == "ann" and requests[0]["route"] == "/v1/videos"
    assert "the prompt" not in written.getvalue() and "s3cr3t" not in written.getvalue()
    accepted = next(line for line in lines if line["event"] == "job accepted")
    assert accepted["token"] == "ann" and accepted["job"].startswith("video_") and accepted["prompt"] == "(hidden)"
    assert accepted["request"] == "r1" == requests[0]["request"], "one id from the answer to the queue"
    assert "a cat" not in written.getvalue()


def test_prompts_are_logged_when_asked_for(written: io.StringIO) -> None:
    logs.configure(prompts=True)
    handler = logging.getLogger().handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(written)
    logging.getLogger("ltx2.test").info("asked", extra={"prompt": "a cat"})
    assert json.loads(written.getvalue())["prompt"] == "a cat"


def test_every_answer_has_an_id_and_safe_headers(api: TestClient, made: Make) -> None:
    job = made()["id"]
    for path in ("/livez", "/v1/videos", f"/v1/videos/{job}/content", "/v1/videos/none", "/nothing"):
        answer = api.get(path)
        assert answer.headers["x-content-type-options"] == "nosniff", path
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])
    assert api.get("/livez", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert api.get("/livez", headers={"x-request-id": "not mine"}).headers["x-request-id"] != "not mine"
    assert "server" not in api.get("/livez").headers


def test_what_nobody_caught_is_a_500_that_tells_nothing(place: Studio, written: io.StringIO) -> None:
    router = APIRouter()

    @router.get("/breaks")
    def breaks() -> None:
        raise RuntimeError("/home/operator/secret.txt")

    with client_of(create_app(make_service(place), router)) as api:
        answer = api.get("/breaks", headers={"x-request-id": "r1"})
    assert answer.status_code == 500
    assert answer.json()["error"] == {
        "message": "something broke; its record is r1", "type": "server_error", "param": None, "code": "internal"
    }  # fmt: skip
    assert answer.headers["x-should-retry"] == "false" and answer.headers["x-request-id"] == "r1"
    record = next(line for line in map(json.loads, written.getvalue().splitlines()) if line["level"] == "error")
    assert record["request"] == "r1" and "secret.txt" in record["exception"]


def test_errors_of_the_framework_have_the_same_form(api: TestClient) -> None:
    for method, path, status, code in (
        ("GET", "/nothing", 404, "not_found"),
        ("PATCH", "/v1/videos", 405, "method_not_allowed"),
        ("GET", "/v1/videos?limit=many", 400, "invalid_request"),
    ):
        answer = api.request(method, path)
        assert answer.status_code == status
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["code"] == code
        assert answer.headers["x-should-retry"] == "false"
    assert api.get("/v1/videos?limit=many").json()["error"]["param"] == "limit"


def test_the_server_and_all_its_routes_import_no_torch() -> None:
    names = ", ".join(f"ltx2.doors.http.{name}" for name in (*ROUTERS, "adapter"))
    script = f"import sys, ltx2.doors.serve, {names}; print([n for n in {HEAVY} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
