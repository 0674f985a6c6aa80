"""Jobs from the outside: accepted once, cancelled, listed, waited for, deleted; the rows D of the fault matrix."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from sqlalchemy import update
from starlette.testclient import TestClient

from ltx2.doors.http.estimates import Estimates
from ltx2.doors.http.view import View
from ltx2.doors.inspection import inspect
from ltx2.jobs.tables import JOBS
from ltx2.jobs.worker import Worker
from ltx2.pipeline.mux import writing
from ltx2.spec.events import Event, Finished
from ltx2.spec.plan import Plan
from tests.doors.http.fixtures import Make, a_place, app_of, client_of, make_service, making
from tests.doors.http.studio import Studio, studio, wait_for

CAT = {"prompt": "a cat"}


def ids(api: TestClient, **query: Any) -> list[str]:
    return [video["id"] for video in api.get("/v1/videos", params=query).json()["data"]]


def ended_one(api: TestClient, id: str) -> dict[str, Any] | None:  # noqa: A002
    """A video that has come to its end."""
    video = api.get(f"/v1/videos/{id}").json()
    return None if video["state"] in ("queued", "running") else video


def test_D1_one_key_is_one_job(place: Studio, api: TestClient) -> None:
    place.engine.go.clear()
    with ThreadPoolExecutor(10) as pool:
        answers = list(
            pool.map(lambda _: api.post("/v1/videos", json=CAT, headers={"Idempotency-Key": "k"}), range(50))
        )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("Idempotency-Replayed" in answer.headers for answer in answers) == 49
    assert len(ids(api)) == 1


def test_D2_a_key_for_another_request(api: TestClient) -> None:
    headers = {"Idempotency-Key": "k"}
    first = api.post("/v1/videos", json={"prompt": "a cat", "seconds": 2}, headers=headers)
    # Said in another way, it is the same.
    same = api.post("/v1/videos", files=[("prompt", (None, "a cat")), ("seconds", (None, "2"))], headers=headers)
    assert same.json()["id"] == first.json()["id"]
    other = api.post("/v1/videos", json={"prompt": "a dog"}, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_mismatch")
    assert other.headers["x-should-retry"] == "false"


def test_D3_the_retries_of_an_SDK(api: TestClient) -> None:
    first = api.post("/v1/videos", json=CAT, headers={"x-stainless-retry-count": "0"}).json()["id"]
    assert api.post("/v1/videos", json=CAT, headers={"x-stainless-retry-count": "1"}).json()["id"] == first
    assert api.post("/v1/videos", json=CAT, headers={"x-stainless-retry-count": "0"}).json()["id"] != first
    assert len(ids(api)) == 2


def test_D4_keys_belong_to_a_token_and_a_day(place: Studio, app: FastAPI, api: TestClient) -> None:
    headers = {"Idempotency-Key": "k"}
    first = api.post("/v1/videos", json=CAT, headers=headers).json()["id"]
    with client_of(app, "bob") as bob:
        assert bob.post("/v1/videos", json={"prompt": "other"}, headers=headers).json()["id"] != first
        assert bob.get(f"/v1/videos/{first}").status_code == 404
    place.store.database.write(lambda c: c.execute(update(JOBS).values(created=JOBS.c.created - 90_000)))
    assert api.post("/v1/videos", json=CAT, headers=headers).json()["id"] != first


def test_PUT_is_accepted_once_under_the_clients_own_name(api: TestClient) -> None:
    first = api.put("/v1/videos/mine-1", json=CAT)
    assert (first.status_code, first.json()["id"]) == (200, "mine-1")
    assert first.headers["Location"] == "/v1/videos/mine-1"
    assert api.put("/v1/videos/mine-1", json=CAT).headers["Idempotency-Replayed"] == "true"
    assert api.put("/v1/videos/mine-1", json={"prompt": "other"}).status_code == 422
    for name in ("a b", "-x", "x" * 65, "ü"):
        response = api.put(f"/v1/videos/{name}", json=CAT)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "id"), name
    assert ids(api) == ["mine-1"]


def test_D5_cancel(place: Studio, api: TestClient) -> None:
    place.engine.go.clear()
    running, queued = (api.post("/v1/videos", json=CAT).json()["id"] for _ in range(2))
    wait_for(lambda: api.get(f"/v1/videos/{running}").json()["state"] == "running")
    waiting = api.get(f"/v1/videos/{queued}").json()
    assert (waiting["status"], waiting["queue_position"]) == ("queued", 0)
    at_once = api.post(f"/v1/videos/{queued}/cancel").json()
    assert (at_once["status"], at_once["state"], at_once["error"]["code"]) == ("failed", "cancelled", "cancelled")
    assert api.post(f"/v1/videos/{running}/cancel").status_code == 200
    ended = wait_for(lambda: (found := api.get(f"/v1/videos/{running}").json())["state"] == "cancelled" and found)
    assert ended["error"] == {"code": "cancelled", "message": "the job was cancelled"}
    for _ in range(2):
        assert api.post(f"/v1/videos/{running}/cancel").json()["state"] == "cancelled"
    assert api.post("/v1/videos/unknown/cancel").status_code == 404
    place.engine.go.set()
    done = making(api)()
    assert api.post(f"/v1/videos/{done['id']}/cancel").json()["state"] == "done"


def test_D6_cancel_against_completion(place: Studio, api: TestClient) -> None:
    for round_ in range(20):
        id = api.post("/v1/videos", json=CAT).json()["id"]  # noqa: A001
        time.sleep(round_ * 0.004)
        api.post(f"/v1/videos/{id}/cancel")
        ended = wait_for(partial(ended_one, api, id))
        content = api.get(f"/v1/videos/{id}/content")
        assert (ended["state"], content.status_code) in (("done", 200), ("cancelled", 409))
        assert (ended["progress"] == 100) is (ended["state"] == "done")


def test_D7_delete_while_running_and_while_downloading(place: Studio, app: FastAPI, api: TestClient) -> None:
    video = making(api)()
    path = place.shelf.video(place.store.get("ann", video["id"]))
    assert path is not None
    whole = path.read_bytes()
    with api.stream("GET", f"/v1/videos/{video['id']}/content") as download:
        pieces = download.iter_bytes(1000)
        begun = next(pieces)
        assert api.delete(f"/v1/videos/{video['id']}").json() == {
            "id": video["id"], "object": "video.deleted", "deleted": True,
        }  # fmt: skip
        place.sweep()
        assert not path.exists()
        assert begun + b"".join(pieces) == whole
    assert api.get(f"/v1/videos/{video['id']}").status_code == 404
    assert api.delete(f"/v1/videos/{video['id']}").status_code == 404
    place.engine.go.clear()
    running = api.post("/v1/videos", json=CAT).json()["id"]
    wait_for(lambda: api.get(f"/v1/videos/{running}").json()["state"] == "running")
    assert api.delete(f"/v1/videos/{running}").status_code == 200
    assert api.get(f"/v1/videos/{running}/content").status_code == 404
    # The worker hears of it and takes the next one.
    place.engine.go.set()
    making(api)()


@pytest.mark.parametrize("cancels", [False, True])
def test_D8_a_waiting_client_goes_away(place: Studio, address: str, cancels: bool) -> None:
    place.engine.go.clear()
    body = CAT | ({"cancel_on_disconnect": True} if cancels else {})
    with httpx.Client(base_url=address, headers={"Authorization": "Bearer ann"}) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/videos", json=body, headers={"Prefer": "wait=60"}, timeout=1.0)
        id = client.get("/v1/videos").json()["data"][0]["id"]  # noqa: A001
        if cancels:
            wait_for(lambda: client.get(f"/v1/videos/{id}").json()["state"] == "cancelled")
        else:
            place.engine.go.set()
            wait_for(lambda: client.get(f"/v1/videos/{id}").json()["state"] == "done")


def test_prefer_wait(place: Studio, api: TestClient) -> None:
    place.engine.go.clear()
    begun = time.monotonic()
    late = api.post("/v1/videos", json=CAT, headers={"Prefer": "respond-async, wait=1"})
    assert 1 <= time.monotonic() - begun < 20
    assert (late.status_code, late.headers["Preference-Applied"]) == (202, "wait=1")
    assert late.json()["status"] in ("queued", "in_progress")
    assert int(late.headers["openai-poll-after-ms"]) > 0
    assert api.post("/v1/videos", json=CAT, headers={"Prefer": "wait=0"}).status_code == 202
    place.engine.go.set()
    done = api.post("/v1/videos", json=CAT, headers={"Prefer": "wait=999"})
    assert (done.status_code, done.headers["Preference-Applied"]) == (200, "wait=120")
    assert done.json()["status"] == "completed"


def test_D9_deadlines(place: Studio, api: TestClient) -> None:
    place.engine.go.clear()
    # Long enough to be claimed on a slow machine: only then it is late while running.
    running = api.post("/v1/videos", json=CAT, headers={"Cancel-After": "3s"}).json()["id"]
    wait_for(lambda: place.engine.started)
    queued = api.post("/v1/videos", json={"prompt": "never", "deadline_seconds": 0.2}).json()["id"]
    wait_for(lambda: place.sweep() or api.get(f"/v1/videos/{queued}").json()["state"] == "expired")
    late = wait_for(lambda: (v := api.get(f"/v1/videos/{running}").json())["status"] == "failed" and v)
    for found in (late, api.get(f"/v1/videos/{queued}").json()):
        assert (found["status"], found["error"]["code"]) == ("failed", "deadline_exceeded")
    assert "never" not in place.engine.started
    for bad in ("0", "-1", "soon", "25h", "1d", ""):
        assert api.post("/v1/videos", json=CAT, headers={"Cancel-After": bad}).status_code == 400, bad
    both = api.post("/v1/videos", json=CAT | {"deadline_seconds": 5}, headers={"Cancel-After": "6"})
    assert both.json()["error"]["code"] == "conflicting_parameters"


def test_D12_pages(place: Studio, api: TestClient) -> None:
    place.engine.go.clear()
    old = [api.post("/v1/videos", json=CAT).json()["id"] for _ in range(7)]
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = api.get("/v1/videos", params={"limit": 2, **after}).json()
        assert page["object"] == "list"
        seen += [video["id"] for video in page["data"]]
        if not page["has_more"]:
            break
        assert page["last_id"] == page["data"][-1]["id"]
        after = {"after": page["last_id"]}
        # Newer ones and deleted ones do not disturb what is still to come.
        api.post("/v1/videos", json=CAT)
        if len(seen) == 2:
            api.delete(f"/v1/videos/{old[3]}")
    assert seen == [id for id in reversed(old) if id != old[3]]  # noqa: A001
    assert ids(api, order="asc", limit=3) == old[:3]
    assert ids(api, order="asc", after=old[5], limit=1) == [old[6]]
    for query in ({"limit": 0}, {"limit": 101}, {"limit": "x"}, {"order": "up"}):
        response = api.get("/v1/videos", params=query)
        assert (response.status_code, response.json()["error"]["param"]) == (400, next(iter(query)))
    assert api.get("/v1/videos", params={"after": "unknown"}).status_code == 404
    assert api.get("/v1/videos", params={"after": old[3]}).status_code == 404


def test_D13_completed_means_that_the_content_is_there(place: Studio, api: TestClient) -> None:
    stop, wrong = threading.Event(), list[str]()
    for _ in range(60):
        id = api.post("/v1/videos", json=CAT).json()["id"]  # noqa: A001
        last = -1
        while not stop.is_set():
            found = api.get(f"/v1/videos/{id}").json()
            if found["progress"] < last or (found["progress"] == 100) is not (found["status"] == "completed"):
                wrong.append(f"{last} {found['progress']} {found['status']}")
            last = found["progress"]
            if found["status"] == "completed":
                answer = api.get(f"/v1/videos/{id}/content")
                if answer.status_code != 200 or not answer.content:
                    wrong.append(f"{answer.status_code}")
                break
    assert not wrong


def test_D14_what_clients_see_only_ever_moves_forward(place: Studio, api: TestClient) -> None:
    """Random acts of clients on random jobs: only legal changes of state, and ended ones stay."""
    import random

    draw = random.Random(5)
    order = {"queued": 0, "running": 1}
    seen: dict[str, str] = {}
    for _ in range(150):
        act = draw.choice(("make", "cancel", "look", "look", "fail"))
        if act in ("make", "fail") or not seen:
            response = api.post("/v1/videos", json={"prompt": "fail" if act == "fail" else "a cat"})
            seen[response.json()["id"]] = "queued"
            continue
        id = draw.choice(list(seen))  # noqa: A001
        found = (api.post(f"/v1/videos/{id}/cancel") if act == "cancel" else api.get(f"/v1/videos/{id}")).json()
        before, now = seen[id], found["state"]
        assert before == now or order.get(now, 2) > order.get(before, 2), (before, now)
        assert (found["status"] in ("completed", "failed")) is (now not in order)
        assert (found["error"] is not None) is (found["status"] == "failed")
        seen[id] = now
    assert {"done", "cancelled", "failed"} <= {api.get(f"/v1/videos/{id}").json()["state"] for id in seen} | {"done"}  # noqa: A001


def test_D16_remix(tmp_path: Path) -> None:
    with a_place(tmp_path, files=0.0) as place:
        app = app_of(make_service(place))
        with client_of(app) as api, client_of(app, "bob") as bob:
            source = making(api)(seconds=1, seed=7)
            remixed = api.post(
                f"/v1/videos/{source['id']}/remix", json={"prompt": "a dog"}, headers={"Prefer": "wait=30"}
            )
            found = remixed.json()
            assert (found["prompt"], found["seed"], found["frames"]) == ("a dog", 7, source["frames"])
            assert found["remixed_from_video_id"] == source["id"]
            assert bob.post(f"/v1/videos/{source['id']}/remix", json={"prompt": "x"}).status_code == 404
            for body in ({}, {"prompt": ""}, {"prompt": "x", "seed": 1}, {"prompt": None}):
                assert api.post(f"/v1/videos/{source['id']}/remix", json=body).status_code == 400, body
            place.sweep()
            gone = api.post(f"/v1/videos/{source['id']}/remix", json={"prompt": "x"})
            assert (gone.status_code, gone.json()["error"]["code"]) == (410, "gone")
            place.engine.go.clear()
            open_ = api.post("/v1/videos", json=CAT).json()["id"]
            early = api.post(f"/v1/videos/{open_}/remix", json={"prompt": "x"})
            assert (early.status_code, early.headers["x-should-retry"]) == (409, "false")
            api.delete(f"/v1/videos/{open_}")
            assert api.post(f"/v1/videos/{open_}/remix", json={"prompt": "x"}).status_code == 404


def test_D16_edits_extensions_and_characters_are_refused_by_name(api: TestClient) -> None:
    for kind in ("edits", "extensions", "characters"):
        response = api.post(f"/v1/videos/{kind}", json=CAT)
        assert (response.status_code, response.json()["error"]["code"]) == (501, "not_offered")
        assert response.headers["x-should-retry"] == "false"
    assert api.get("/v1/videos/characters/char_1").status_code == 501
    assert api.post("/v1/videos/something", json=CAT).status_code == 400


def test_a_failed_job_is_a_successful_answer(made: Make, api: TestClient) -> None:
    video = made(prompt="fail please")
    assert (video["status"], video["progress"], video["usage"]) == ("failed", 0, None)
    assert video["error"] == {"code": "failed", "message": "it was asked to"}
    assert api.get(f"/v1/videos/{video['id']}").status_code == 200


def test_priorities(place: Studio, app: FastAPI, api: TestClient) -> None:
    assert api.post("/v1/videos", json=CAT | {"priority": 1}).json()["error"]["code"] == "insufficient_scope"
    assert api.post("/v1/videos", json=CAT | {"priority": -1}).status_code == 200
    with client_of(app, "admin") as admin:
        assert admin.post("/v1/videos", json=CAT | {"priority": 1}).status_code == 200


def test_webhooks_are_checked_when_they_are_named(api: TestClient) -> None:
    for knob in ("webhook", "callback_url"):
        for url in ("http://receiver.example/", "https://127.0.0.1/", "ftp://x/", "https://u:p@receiver.example/", "x"):
            response = api.post("/v1/videos", json=CAT | {knob: url})
            assert response.status_code == 400, url
            assert response.json()["error"]["code"] == "url_not_allowed"
            assert response.json()["error"]["param"] == knob


def test_usage(made: Make) -> None:
    video = made()
    assert video["usage"] == {
        "gpu_seconds": 0.25, "megapixel_frames": pytest.approx(256 * 192 * 49 / 1e6), "peak_memory_mb": 50.0,
        "skipped_steps": 0, "cost": pytest.approx(0.25 / 3600 * 4.54, abs=1e-6), "currency": "USD",
    }  # fmt: skip


def test_usage_of_a_worker_that_counts_its_own_cost(place: Studio, made: Make) -> None:
    job = place.store.get("ann", made()["id"])
    view = View(make_service(place), Estimates(), "")
    for cost in (0.0, 0.0123):
        usage = view.video(replace(job, result=(job.result or {}) | {"cost": cost})).usage
        assert usage is not None and usage.cost == cost


def test_E9_a_black_and_silent_video_is_published_with_warnings_and_a_wrong_one_is_not(tmp_path: Path) -> None:
    def dark(plan: Plan, out: Path) -> Iterator[Event]:
        frames = plan.frames - ("short" in plan.prompt)
        with writing(plan, out, 24_000) as muxer:
            muxer.sound(np.zeros((2, round(24_000 * plan.seconds)), np.float32))
            muxer.frames(np.zeros((frames, plan.height, plan.width, 3), np.uint8))
        yield Finished(out, plan.seed, 0.25, 0)

    with studio(tmp_path, tmp_path / "jobs.db", workers=0) as place, client_of(app_of(make_service(place))) as api:
        small = {"width": 64, "height": 64, "frames": 9}
        jobs = [api.post("/v1/videos", json={"prompt": prompt} | small).json()["id"] for prompt in ("night", "short")]
        worker = Worker(place.store, dark, place.shelf, inspect=inspect)
        for _ in jobs:
            claim = place.store.claim("w")
            assert claim
            worker.work(claim, place.stop)
        good, wrong = (api.get(f"/v1/videos/{job}").json() for job in jobs)
        assert (good["status"], good["warnings"]) == ("completed", ["the picture is black", "the sound is silent"])
        assert api.get(f"/v1/videos/{jobs[0]}/content").status_code == 200
        assert (wrong["status"], wrong["error"]["code"]) == ("failed", "invalid_output")
        assert api.get(f"/v1/videos/{jobs[1]}/content").status_code == 409
