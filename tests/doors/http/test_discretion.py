"""No answer holds a path of the server, a secret or a traceback, whatever breaks; the log has all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ltx2.jobs.errors import StoreUnavailable, WrongStore
from ltx2.jobs.job import Ask
from ltx2.spec.errors import CheckpointError
from tests.doors.http.engines import PLANTED, SECRET
from tests.doors.http.fixtures import app_of, client_of, make_service
from tests.doors.http.running import serve
from tests.doors.http.studio import Studio, wait_for

URL = f"postgresql://ltx2:s3cr3t@db{SECRET}"
WORDS = ("secret", "s3cr3t", "sssss", "Traceback", "File ")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StoreUnavailable(f"connection to {URL} failed"), 503),
        (WrongStore(f"the database is damaged: {SECRET}"), 503),
        (CheckpointError(f"{SECRET} has no config"), 400),
        (OSError(5, "Input/output error", SECRET), 500),
        (RuntimeError(f"{URL}\nTraceback"), 500),
    ],
)
def test_what_breaks_in_a_route_stays_in_the_log(
    place: Studio, error: Exception, status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(*_: Any, **__: Any) -> Any:
        raise error

    service = make_service(place)
    for name in ("submit", "get", "page"):
        monkeypatch.setattr(type(place.store), name, breaks)
    with client_of(app_of(service)) as api:
        answers = [
            api.post("/v1/videos", json={"prompt": "x"}),
            api.put("/v1/videos/x", json={"prompt": "x"}),
            api.get("/v1/videos"),
            *(api.get(f"/v1/videos/x{part}") for part in ("", "/content", "/events")),
            api.get("/generate_web", params={"prompt": "x"}),
        ]
    assert {answer.status_code for answer in answers} == {status}
    for answer in answers:
        assert not any(word in answer.text + str(answer.headers) for word in WORDS), answer.text
    assert isinstance(error, CheckpointError) or SECRET in caplog.text
    assert Ask.__doc__


def test_what_breaks_in_an_engine_stays_in_the_log(tmp_path: Path) -> None:
    with serve(tmp_path, engine="tests.doors.http.engines:planted") as server:
        jobs = {prompt: server.post(prompt) for prompt in [*PLANTED, "a cat"]}
        wait_for(lambda: all(server.state(job) in ("failed", "done") for job in jobs.values()))
        said = {prompt: server.ask("GET", f"/v1/videos/{job['id']}") for prompt, job in jobs.items()}
        errors = {prompt: answer.json()["error"] for prompt, answer in said.items()}
        assert (
            errors["checkpoint"]["code"] == "invalid_checkpoint"
            and "a key is missing" in errors["checkpoint"]["message"]
        )
        assert errors["file"]["message"] == "the engine broke: FileNotFoundError"
        assert errors["text"]["message"] == "the engine broke: RuntimeError"
        assert said["a cat"].json()["warnings"] == ["slow: … does not compile"]
        events = [server.ask("GET", f"/v1/videos/{job['id']}/events") for job in jobs.values()]
        listed = [
            server.ask("GET", "/v1/videos"),
            server.ask("GET", f"/v1/videos/{jobs['a cat']['id']}/content?variant=metadata"),
        ]
        for answer in [*said.values(), *events, *listed]:
            assert answer.status_code == 200
            assert not any(word in answer.text for word in WORDS) and str(tmp_path) not in answer.text, answer.text
        log = server.log.read_text()
        assert f"{SECRET}/x.safetensors" in log and f"{SECRET}/out.mp4" in log and f"{SECRET}/x.py" in log


def test_E8_why_no_engine_can_be_made_is_told_without_its_folder(tmp_path: Path) -> None:
    with serve(tmp_path, engine="tests.doors.http.engines:unloadable", ready=False) as server:
        waiting = wait_for(
            lambda: (said := server.ask("GET", "/readyz").json())["reason"] != "the engine starts" and said
        )
        assert waiting["status"] == "waiting" and "a key is missing" in waiting["reason"]
        assert "secret" not in waiting["reason"] and f"{SECRET}/x.safetensors" in server.log.read_text()
