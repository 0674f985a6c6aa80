"""Lossy extras over HTTP: fields of a request, counted in estimates, told in usage, refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from ltx2.doors.http.estimates import Estimates
from ltx2.doors.http.view import View
from tests.doors.http.fixtures import Make, make_service
from tests.doors.http.studio import Studio

BODY = {"prompt": "x", "model": "dev", "preset": "classic", "steps": 40}


def estimate(api: TestClient, **fields: Any) -> dict[str, Any]:
    answer = api.post("/v1/estimate", json=BODY | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("interval", [[0, 0.5], "0:0.5"])
def test_an_interval_is_a_pair_or_text_and_makes_it_cheaper(shared_api: TestClient, interval: Any) -> None:
    whole, half = estimate(shared_api), estimate(shared_api, guidance_interval=interval, strict=True)
    assert (whole["passes"], half["passes"]) == (80, 60)
    assert half["cost"] < whole["cost"] and half["warnings"] == []
    assert half["plan"]["stages"][0]["extras"] == {"guided": [0.0, 0.5], "cache": 0.0}


def test_an_estimate_with_a_cache_is_an_upper_bound(shared_api: TestClient) -> None:
    plain, cached = estimate(shared_api), estimate(shared_api, step_cache=0.1)
    assert (plain["at_most"], cached["at_most"]) == (False, True)
    assert cached["passes"] == plain["passes"]


def test_a_form_can_say_both(shared_api: TestClient) -> None:
    files = {name: (None, str(value)) for name, value in BODY.items()}
    files |= {"guidance_interval": (None, "0:0.5"), "step_cache": (None, "0.1")}
    answer = shared_api.post("/v1/estimate", files=files)
    assert answer.status_code == 200, answer.text
    assert answer.json()["plan"]["stages"][0]["extras"] == {"guided": [0.0, 0.5], "cache": 0.1}


@pytest.mark.parametrize(
    "fields",
    [
        {"guidance_interval": [0.5]}, {"guidance_interval": [0.5, 0.5]}, {"guidance_interval": "half"},
        {"guidance_interval": [0, True]}, {"guidance_interval": {"from": 0}}, {"step_cache": 0.6},
        {"step_cache": "0.1"}, {"step_cache": 0.1, "sampler": "res_2s"},
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(shared_api: TestClient, fields: dict[str, Any]) -> None:
    answer = shared_api.post("/v1/estimate", json=BODY | fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == next(iter(fields))


def test_the_form_of_a_preset_offers_what_it_can(shared_api: TestClient) -> None:
    presets = shared_api.get("/v1/capabilities").json()["models"]["dev"]["presets"]
    offered = {name: {"guidance_interval", "step_cache"} & set(facts["fields"]) for name, facts in presets.items()}
    assert offered["dev"] == offered["classic"] == {"guidance_interval", "step_cache"}
    assert offered["hq"] == {"guidance_interval"} and offered["distilled"] == set()


def test_usage_tells_the_skipped_steps(place: Studio, made: Make) -> None:
    job = place.store.get("ann", made()["id"])
    assert job.result is not None
    view = View(make_service(place), Estimates(), "")
    for result, skipped in ((job.result, 0), (job.result | {"skipped": 7}, 7)):
        usage = view.video(replace(job, result=result)).usage
        assert usage is not None and usage.skipped_steps == skipped
