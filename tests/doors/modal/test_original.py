"""The defects of the service that this one descends from, one test for each, by its number in the list of them.

1 does not deploy on today's client: test_deploy.py. 2 does not run on today's Diffusers: test_containers.py makes videos.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from ltx2.doors.http import classic
from ltx2.doors.http.keys import Keyring
from ltx2.doors.modal import deploy, web
from ltx2.doors.modal.outputs import Outputs
from ltx2.doors.modal.queue import FRESH
from ltx2.doors.modal.web import Shelves, make_app
from ltx2.jobs.job import Ending
from ltx2.models.describe import Source, read_card
from ltx2.spec.deployment import Deployment
from ltx2.spec.errors import RefusedRequest
from ltx2.spec.plan import resolve
from ltx2.spec.request import request
from tests.doors.modal.fakes import MemoryCalls, MemoryDict, MemoryVolume, board

TOKEN = "the-token"
ASKED = {"prompt": "a cat", "width": "64", "height": "64", "num_frames": "9"}


class Place:
    """The web function of a deployment, in this process, with calls that nobody answers."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **settings: object):
        monkeypatch.setenv("ENTER_TOKEN", TOKEN)
        monkeypatch.setattr(web.logs, "configure", lambda: None)
        self.board, self.calls, self.ledger = board(), MemoryCalls(), MemoryDict()
        deployment = Deployment(**({"model": "tiny", "root": str(tmp_path)} | settings))  # type: ignore[arg-type]
        shelves = Shelves(self.board, self.ledger, MemoryVolume(), MemoryVolume())
        self.app: FastAPI = make_app(deployment, shelves, self.calls, tmp_path / "scratch")

    def ask(self, method: str, path: str, **more: object) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://service.test") as client:
                return await client.request(method, path, **more)  # type: ignore[arg-type]

        return asyncio.run(send())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


@pytest.mark.parametrize("fps", ["12", "24", "29.97", "30000/1001"])
def test_3_the_frame_rate_reaches_the_model_and_the_sound(fps: str):
    card = read_card(Source("ltx-2", weights="random"))
    plan = resolve(request(prompt="x", preset="classic", fps=fps), card)
    assert plan.grid(plan.stages[0]).audio_tokens == round(plan.frames / plan.fps * 25)


def test_4_nothing_depends_on_defaults_of_a_library():
    card = read_card(Source("ltx-2", weights="random"))
    plan = resolve(request(prompt="x", preset="classic"), card)
    guidance = plan.stages[0].video
    assert (guidance.cfg, guidance.stg, guidance.modality, guidance.rescale) == (4.0, 0.0, 1.0, 0.0)
    # Two passes a step, as when it was published: not the four that newer pipelines run by default.
    assert plan.evaluations == 2 * 10
    assert (plan.width, plan.height, plan.frames, plan.fps) == (768, 512, 97, 24)


def test_5_a_request_without_a_token_costs_no_gpu(place: Place):
    for method, path in (("GET", "/generate_web"), ("POST", "/generate_post"), ("POST", "/v1/videos")):
        for headers in ({}, {"x-enter-token": "wrong"}, {"authorization": "Bearer "}):
            assert place.ask(method, path, params=ASKED, headers=headers).status_code == 401
    assert place.calls.begun == []


def test_J1_6_a_long_wait_ends_in_a_job_before_modals_limit(place: Place, monkeypatch: pytest.MonkeyPatch):
    assert classic.LONGEST_WAIT < 150 - 20  # and an upload counts as well
    monkeypatch.setattr(classic, "LONGEST_WAIT", 0.3)
    answer = place.ask("GET", "/generate_web", params=ASKED, headers={"x-enter-token": TOKEN})
    assert answer.status_code == 202 and answer.headers["location"] == f"/v1/videos/{answer.json()['id']}"
    assert len(place.calls.begun) == 1
    # The job goes on, and can be asked for.
    later = place.ask("GET", answer.headers["location"], headers={"x-enter-token": TOKEN})
    assert later.status_code == 200 and later.json()["status"] == "queued"


def test_7_a_job_has_an_id_a_seed_and_says_what_became_of_it(place: Place, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(classic, "LONGEST_WAIT", 0.3)
    headers = {"x-enter-token": TOKEN}
    answer = place.ask("POST", "/generate_post", params=ASKED, headers=headers)
    assert answer.headers["x-job-id"] == answer.json()["id"] and int(answer.headers["x-seed"]) == answer.json()["seed"]
    number = next(iter(place.board.open()))
    place.board.end(number, Ending.of("failed", "out_of_memory", "the device ran out of memory"))
    time.sleep(FRESH)
    failed = place.ask("GET", f"/v1/videos/{answer.json()['id']}", headers=headers)
    assert failed.status_code == 200 and failed.json()["error"]["code"] == "out_of_memory"
    for path in ("/livez", "/readyz", "/version", "/openapi.json"):
        assert place.ask("GET", path).status_code == 200
    assert place.ask("GET", "/metrics", headers=headers).status_code == 200


def test_8_what_is_made_has_a_place_of_its_own(tmp_path: Path):
    outputs = Outputs(tmp_path, MemoryVolume())
    assert len({outputs.place(number, attempt) for number in (1, 2) for attempt in (1, 2)}) == 4


def test_8_tokens_are_compared_in_constant_time_and_a_missing_one_is_no_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compared: list[object] = []
    monkeypatch.setattr("hmac.compare_digest", lambda one, other: compared.append(one) or one == other)
    ring = Keyring(list, enter=TOKEN)
    assert ring.find("tökén\udcff") is None and ring.find(TOKEN) is not None and len(compared) >= 2
    monkeypatch.delenv("ENTER_TOKEN", raising=False)
    with pytest.raises(KeyError):
        make_app(
            Deployment(model="tiny", root=str(tmp_path)),
            Shelves(board(), MemoryDict(), MemoryVolume(), MemoryVolume()), MemoryCalls(), tmp_path,
        )  # fmt: skip


def test_the_spend_cap_refuses_before_a_gpu_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = Place(tmp_path, monkeypatch, daily_cap=1e-9)
    answer = place.ask("POST", "/v1/videos", json={"prompt": "x"}, headers={"x-enter-token": TOKEN})
    assert answer.status_code == 429 and answer.json()["error"]["code"] == "spend_cap_reached"
    assert int(answer.headers["retry-after"]) <= 120 and place.calls.begun == []


def test_links_are_signed_with_a_key_of_the_token():
    assert web.link_secret("a") == hashlib.sha256(b"ltx2 links a").digest() != web.link_secret("b")


def test_nothing_is_begun_while_the_weights_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = Place(tmp_path, monkeypatch, model="ltx-2")
    headers = {"x-enter-token": TOKEN}
    ready = place.ask("GET", "/readyz")
    assert ready.status_code == 503 and "ltx2_video.py::download" in ready.json()["reason"]
    answer = place.ask("POST", "/v1/videos", json={"prompt": "x"}, headers=headers)
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "not_ready" and place.calls.begun == []
    # What needs no weights is answered: a plan, and a refusal.
    assert place.ask("POST", "/v1/estimate", json={"prompt": "x"}, headers=headers).status_code == 200
    assert place.ask("POST", "/v1/videos", json={"prompt": "x", "width": 33}, headers=headers).status_code == 400


def test_a_video_that_no_gpu_of_the_list_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = Place(tmp_path, monkeypatch, model="ltx-2", gpus=("T4",))
    answer = place.ask("POST", "/v1/videos", json={"prompt": "x"}, headers={"x-enter-token": TOKEN})
    assert (
        answer.status_code == 422 and answer.json()["error"]["code"] == "exceeds_capacity" and place.calls.begun == []
    )


def test_the_preset_of_the_settings_is_that_of_requests_that_name_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = Place(tmp_path, monkeypatch, preset="distilled")
    headers = {"x-enter-token": TOKEN}
    made = place.ask("POST", "/v1/videos", json={"prompt": "x", "width": 64, "height": 64}, headers=headers)
    job = place.board.record("enter", made.json()["id"])
    assert job is not None and job.plan["preset"] == "distilled"
    with pytest.raises(RefusedRequest, match="no 'draft'"):
        Place(tmp_path, monkeypatch, preset="draft")


def test_the_originals_parameters_of_modal_run():
    dev = Deployment()
    fields = deploy.fields_of(dev, "a cat", 0, 0, 0, 0.0, 40, 7)
    assert fields == {"prompt": "a cat", "preset": "classic", "steps": 40, "seed": 7}
    with pytest.raises(SystemExit, match="width: 33"):
        deploy.fields_of(dev, "a cat", 33, 0, 0, 0.0, 0, -1)
