"""docs/04-http.md is true: its examples run against a server, its tables are what the code says."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from ltx2.doors import fetch
from ltx2.doors.fetch import Outside
from ltx2.doors.http import adapter, classic, errors, formats, refusals, tally
from ltx2.doors.http.app import create_app
from ltx2.doors.http.schemas import Asked, Video
from ltx2.doors.http.variants import FORMATS, VARIANTS
from ltx2.jobs import outbox
from ltx2.jobs.courier import headers
from ltx2.spec.errors import Ltx2Error
from ltx2.spec.presets import PRESETS
from ltx2.spec.service import ServiceSettings
from ltx2.spec.shapes import original
from tests.doors.http.fixtures import app_of, client_of, make_service, serving
from tests.doors.http.studio import CARDS, Studio
from tests.test_docs import rows

PAGE = (Path(__file__).parents[3] / "docs" / "04-http.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def server(shared_place: Studio) -> Iterator[str]:
    with serving(app_of(make_service(shared_place))) as found:
        yield found


def test_the_shell_examples(server: str, tmp_path: Path) -> None:
    environment = os.environ | {"VIDEOS_URL": server, "VIDEOS_TOKEN": "ann"}
    for block in blocks("sh"):
        run = subprocess.run(["bash", "-euc", block], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
    assert b"ftyp" in (tmp_path / "circle.mp4").read_bytes()[:12]
    assert "event: completed" in (tmp_path / "events.txt").read_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_python_examples(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks("python"):
        exec(compile(block, "04-http.md", "exec"), {"VIDEOS_URL": server, "VIDEOS_TOKEN": "ann"})
    assert (tmp_path / "circle.webp").read_bytes()[8:12] == b"WEBP"


def test_every_route_is_there(shared_place: Studio) -> None:
    settings = ServiceSettings(min_free_gib=0, adapter=True)
    paths: dict[str, Any] = create_app(make_service(shared_place, settings=settings)).openapi()["paths"]
    known = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    told = set(re.findall(r"`((?:GET|PUT|POST|DELETE) /[\w/{}]+)`", PAGE))
    told |= {f"POST /v1/videos{rest}" for rest in re.findall(r"`(/extensions|/characters)`", PAGE)}
    refused = {"POST /v1/videos/edits", "POST /v1/videos/extensions", "POST /v1/videos/characters"}
    # Operations have a page of their own.
    others = {route for route in known if not re.search(r" /(v1/|enqueue|status|result|generate)", route)}
    assert told - refused == known - others - {"GET /v1/models/{name}"}
    assert {route.path for route in adapter.router.routes} <= {route.split()[1] for route in told}  # type: ignore[attr-defined]


def test_every_field_is_there() -> None:
    told = " ".join(cells[0] for cells in rows(PAGE, "| field |"))
    for name in Asked.model_fields:
        assert name in told or f"{name.partition('_')[0]}_…" in told or name == "loras", name
    section = PAGE.split("## The video object")[1].split("## ")[0]
    openai_fields = {
        "id",
        "object",
        "created_at",
        "completed_at",
        "expires_at",
        "status",
        "progress",
        "model",
        "prompt",
    }
    openai_fields |= {"seconds", "size", "remixed_from_video_id", "error", "polling_url"}
    for name in Video.model_fields.keys() - openai_fields:
        assert f"`{name}`" in section, name


def test_every_form_is_there() -> None:
    table = str(rows(PAGE, "| query |"))
    assert all(f"variant={name}" in table for name in (*VARIANTS, "metadata"))
    assert all(name in table for name in FORMATS)
    assert all(name in PAGE for name in formats.RESOLUTIONS)


def test_every_error_is_there() -> None:
    def below(kind: type[Ltx2Error]) -> Iterator[type[Ltx2Error]]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    told = {cells[0]: cells[1:] for cells in rows(PAGE, "| code |")}
    for kind in below(Ltx2Error):
        if kind.__module__ in (refusals.__name__, fetch.__name__):
            assert kind.code in told, kind
            assert str(kind.status) in " ".join(told[kind.code]), kind
    # No route of this service is one of another server's (421).
    for status, code in errors.CODES.items():
        assert status == 421 or str(status) in " ".join(told[code]), code
    assert "500" in told["internal"]
    assert all(f"`{code}`" in PAGE for code in tally.CODES), "what a failed job can say"


def test_the_webhook_is_as_it_is_told(place: Studio) -> None:
    (told,) = (json.loads(block) for block in blocks("json"))
    with client_of(app_of(make_service(place, outside=Outside(frozenset({"http://127.0.0.1:9"}))))) as api:
        asked = {"prompt": "x", "webhook": "http://127.0.0.1:9/"}
        assert api.post("/v1/videos", json=asked, headers={"Prefer": "wait=30"}).json()["status"] == "completed"
    letter = place.store.take_letter()
    assert letter
    sent = json.loads(letter.body)
    assert (sent.keys(), sent["data"].keys()) == (told.keys(), told["data"].keys())
    assert (sent["type"], sent["object"], sent["data"]["state"]) == (
        told["type"],
        told["object"],
        told["data"]["state"],
    )
    words = [f"{pause / 3600:g} h" if pause >= 3600 else f"{pause / 60:g} min" if pause >= 60 else f"{pause:g} s"
             for pause in outbox.PAUSES]  # fmt: skip
    assert ", ".join(words[:-1]) + f" and {words[-1]}" in " ".join(PAGE.split())
    for name in headers(letter, [], 0).keys() - {"content-type"}:
        assert f"`{name}`" in PAGE


def test_the_original_routes_are_as_they_are_told(shared_api: TestClient) -> None:
    section = PAGE.split("## The original routes")[1].split("## ")[0]
    assert all(f"`{name}`" in section for name in classic.FIELDS)
    usual = original(CARDS["dev"])
    assert usual["preset"] == "classic" and PRESETS["2.0"]["classic"].steps == 10
    for name, value in (("width", usual["width"]), ("height", usual["height"]), ("num_frames", usual["frames"])):
        assert f"`{name}` {value}" in section
    answer = shared_api.get("/generate_web", params={"prompt": "x", "num_inference_steps": 3, "model": "small"})
    told = {name.lower() for name in re.findall(r"`(X-[\w-]+|Server-Timing)`", section)}
    assert told <= answer.headers.keys(), answer.headers


def test_examples_of_refusals(shared_api: TestClient) -> None:
    for fields, code in (
        ({"n": 2}, "not_offered"),
        ({"loras": ["x"]}, "not_offered"),
        ({"last_frame": "x"}, "not_offered"),
    ):
        answer = shared_api.post("/v1/videos", json={"prompt": "x"} | fields)
        assert answer.json()["error"]["code"] == code


def test_the_fault_matrix_names_tests_that_exist() -> None:
    root = Path(__file__).parents[2]
    table = {cells[0]: cells[2] for cells in rows(PAGE, "| row | what |")}
    assert len(table) == 108
    for row, where in table.items():
        for file in re.findall(r"[\w/]+\.py", where):
            found = re.search(rf"def test_(?:[a-k]\d+_)*{row}_", (root / file).read_text(), re.IGNORECASE)
            assert found, (row, file)
