"""The original service's routes: its parameters, its defaults, its header, and what it never had."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from ltx2.doors.http import classic
from ltx2.doors.http.app import create_app
from ltx2.doors.http.keys import Keyring
from ltx2.models.describe import Source, read_card
from ltx2.spec.card import Card
from tests.doors.http.fixtures import client_of, make_service
from tests.doors.http.studio import Studio, wait_for

BIG = {"LTX-2": Card(name="LTX-2")}
DISTILLED = {"LTX-2-distilled": Card(name="LTX-2-distilled", kind="distilled", upsampler=True)}


def app_of(place: Studio, models: dict[str, Card], **fields: Any) -> FastAPI:
    service = make_service(place, **fields)
    from dataclasses import replace

    return create_app(replace(service, models=models))


@pytest.fixture
def big(place: Studio) -> Any:
    with client_of(app_of(place, BIG, keys=Keyring(list, enter="sesame"))) as client:
        client.headers = {"x-enter-token": "sesame", "Host": "localhost"}  # type: ignore[assignment]
        yield client


def plan_of(place: Studio, response: Any) -> dict[str, Any]:
    return place.store.get("enter", response.headers["X-Job-Id"]).plan


def test_the_original_request_and_its_defaults(big: TestClient, place: Studio) -> None:
    response = big.get("/generate_web", params={"prompt": "A cat walking through a garden"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "video/mp4" and b"ftyp" in response.content[:16]
    plan = plan_of(place, response)
    assert (plan["width"], plan["height"], plan["frames"], plan["fps"]) == (768, 512, 97, "24")
    assert plan["preset"] == "classic" and len(plan["stages"][0]["sigmas"]) == 11
    assert plan["stages"][0]["video"]["cfg"] == 4.0
    assert plan["negative_prompt"] == "worst quality, inconsistent motion, blurry, jittery, distorted"
    assert response.headers["X-Seed"] == str(plan["seed"]) and response.headers["X-Model"] == "LTX-2"
    assert response.headers["X-Video"] == "768x512; frames=97; fps=24; steps=10; preset=classic"
    assert "queue;dur=" in response.headers["Server-Timing"] and "X-Warning" not in response.headers
    again = big.get("/generate_web", params={"prompt": "A cat walking through a garden"})
    assert again.headers["X-Seed"] != response.headers["X-Seed"], "drawn anew"


def test_every_parameter_in_query_json_and_form(big: TestClient, place: Studio) -> None:
    sent = {
        "prompt": "a cat",
        "width": 512,
        "height": 320,
        "num_frames": 49,
        "fps": 30,
        "num_inference_steps": 4,
        "seed": 7,
    }
    answers = [
        big.get("/generate_web", params=sent),
        big.post("/generate_post", params=sent),
        big.post("/generate_post", json=sent),
        big.post("/generate_post", files={name: (None, str(value)) for name, value in sent.items()}),
        big.post("/generate_post", params={"seed": 7}, json=sent),
    ]
    for response in answers:
        assert response.status_code == 200, response.text
        plan = plan_of(place, response)
        assert (plan["width"], plan["height"], plan["frames"], plan["fps"]) == (512, 320, 49, "30")
        assert plan["seed"] == 7 and len(plan["stages"][0]["sigmas"]) == 5
        assert plan["fps"] == "30", "sound and picture keep the same time"


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({"prompt": ""}, "prompt"), ({}, "prompt"), ({"prompt": "x\0"}, "prompt"), ({"prompt": "x" * 8001}, "prompt"),
        ({"prompt": "x", "width": "33"}, "width"), ({"prompt": "x", "height": "big"}, "height"),
        ({"prompt": "x", "num_frames": "96"}, "num_frames"), ({"prompt": "x", "fps": "0"}, "fps"),
        ({"prompt": "x", "num_inference_steps": "0"}, "num_inference_steps"), ({"prompt": "x", "seed": "abc"}, "seed"),
        ({"prompt": "x", "output": "/etc/passwd"}, "output"), ({"prompt": "x", "image": "/etc/passwd"}, "image"),
        ({"prompt": ["x", "y"]}, "prompt"),
    ],
)  # fmt: skip
def test_B19_refusals_name_the_parameter(big: TestClient, place: Studio, sent: dict[str, Any], param: str) -> None:
    response = big.get("/generate_web", params=sent)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert place.store.counts() == {}, "nothing was queued"


def test_B19_methods_and_queries(big: TestClient, place: Studio) -> None:
    assert big.get("/generate_web?prompt=a+cat").status_code == 200
    assert place.engine.started[-1] == "a cat"
    assert big.get("/generate_web?prompt=a%20%2B%20cat").status_code == 200
    assert place.engine.started[-1] == "a + cat"
    assert big.get("/generate_web?prompt=a%00cat").status_code == 400
    long = big.get("/generate_web?prompt=" + "x" * 16_384)
    assert long.status_code == 414 and long.json()["error"]["code"] == "uri_too_long"
    assert big.head("/generate_web?prompt=x").status_code == 405
    assert big.post("/generate_web?prompt=x").status_code == 405
    for path in ("/generate_web", "/generate_post"):
        options = big.options(path)
        assert options.status_code == 204 and not options.content
    assert big.get("/generate_web?prompt=x", headers={"x-enter-token": "open"}).status_code == 401
    assert big.get("/generate_web?prompt=x&model=other").status_code == 404


def test_a_distilled_model_takes_its_own_steps_and_says_so(place: Studio) -> None:
    with client_of(app_of(place, DISTILLED)) as api:
        response = api.get("/generate_web", params={"prompt": "a cat", "num_inference_steps": 40})
        assert response.status_code == 200
        assert response.headers["X-Video"] == "768x512; frames=97; fps=24; steps=8; preset=distilled"
        assert "num_inference_steps: 40 was asked" in response.headers["X-Warning"]
        assert "X-Warning" not in api.get("/generate_web", params={"prompt": "a cat"}).headers


def test_the_embedded_model_has_its_own_sizes(place: Studio) -> None:
    with client_of(app_of(place, {"tiny": read_card(Source("tiny"))})) as api:
        response = api.get("/generate_web", params={"prompt": "a red ball"})
        assert response.status_code == 200, response.text
        assert response.headers["X-Video"].startswith("256x192; frames=49; fps=24;")
        too_large = api.get("/generate_web", params={"prompt": "a red ball", "width": 768})
        assert too_large.status_code == 400 and too_large.json()["error"]["param"] == "width"


def test_a_failed_job_is_an_error_with_its_code(big: TestClient) -> None:
    response = big.get("/generate_web", params={"prompt": "fail"})
    assert response.status_code == 500 and response.json()["error"]["code"] == "failed"
    assert response.headers["x-should-retry"] == "false" and response.headers["X-Job-Id"]


def test_who_waits_too_long_gets_the_job(big: TestClient, place: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classic, "LONGEST_WAIT", 0.2)
    place.engine.go.clear()
    response = big.get("/generate_web", params={"prompt": "a cat"})
    assert response.status_code == 202
    assert response.headers["Location"] == f"/v1/videos/{response.json()['id']}"
    assert response.json()["status"] in ("queued", "in_progress") and int(response.headers["Retry-After"]) <= 120
    place.engine.go.set()
    wait_for(lambda: big.get(response.headers["Location"]).json()["status"] == "completed")
    assert big.get(response.headers["Location"] + "/content").status_code == 200
