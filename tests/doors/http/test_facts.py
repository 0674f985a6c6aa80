"""What the service says about itself, and the adapter for another gateway."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from starlette.testclient import TestClient

from ltx2.doors.http.estimates import Estimates, share_done
from ltx2.spec.events import Progress
from ltx2.spec.plan import Plan, resolve
from ltx2.spec.request import request
from ltx2.spec.service import ServiceSettings
from tests.doors.http.fixtures import Make, app_of, client_of, make_service
from tests.doors.http.studio import CARDS, Studio, wait_for

SCALES = [f"{side}_{name}" for side in ("video", "audio") for name in ("cfg", "stg", "modality", "rescale")]
# Values that some preset takes; where the capabilities do not name a field, it is refused when asked strictly.
KNOBS: dict[str, Any] = dict.fromkeys(SCALES, 0.5) | {
    "sampler": "euler", "negative_prompt": "x", "steps": 4, "schedule": "diffusers", "guidance_scale": 2,
    "guidance_interval": [0, 0.5], "step_cache": 0.1, "stg_blocks": [1], "lora_strength": 0.5,
}  # fmt: skip


def test_capabilities_are_enough_for_a_form(shared_api: TestClient) -> None:
    found = shared_api.get("/v1/capabilities").json()
    assert list(found["models"]) == ["small", "dev"]
    for name, model in found["models"].items():
        assert model["default_preset"] in model["presets"]
        for preset, facts in model["presets"].items():
            # Whatever the form offers is possible.
            body = {"prompt": "x", "model": name, "preset": preset} | {
                k: facts[k] for k in ("width", "height", "frames")
            }
            made = shared_api.post("/v1/estimate", json=body)
            assert made.status_code == 200, made.text
            assert facts["width"] % facts["step_of_sides"] == 0
            assert facts["fields"][0] == "sampler" and facts["fields"] == [*dict.fromkeys(facts["fields"])]
            for field, value in KNOBS.items():
                answer = shared_api.post("/v1/estimate", json=body | {field: value, "strict": True})
                assert (answer.status_code == 200) == (field in facts["fields"]), (preset, field, answer.text)
    assert "dev" not in found["models"]["small"]["presets"], "a distilled model has no guided preset"
    for size in found["sizes"]["resolution"]:
        assert (
            shared_api.post("/v1/estimate", json={"prompt": "x", "model": "dev", "resolution": size}).status_code == 200
        )
    assert "thumbnail" in found["variants"] and "webm" in found["formats"]


def test_estimates_learn_from_jobs(place: Studio, api: TestClient, made: Make) -> None:
    before = api.post("/v1/estimate", json={"prompt": "x"}).json()
    assert (before["basis"], before["seconds"], before["cost"]) == ("none", None, None)
    other = api.post("/v1/estimate", json={"prompt": "x", "model": "dev"}).json()
    assert other["basis"] == "h200" and other["seconds"] > 1
    made()
    after = api.post("/v1/estimate", json={"prompt": "x"}).json()
    assert (after["basis"], after["seconds"]) == ("jobs", 0.25)
    longer = api.post("/v1/estimate", json={"prompt": "x", "frames": 97}).json()
    assert longer["seconds"] > 0.25
    place.engine.go.clear()
    running = api.post("/v1/videos", json={"prompt": "x"}).json()["id"]
    wait_for(lambda: place.engine.started[1:])
    ahead, queued = (api.post("/v1/videos", json={"prompt": "x"}).json() for _ in range(2))
    assert (ahead["queue_position"], queued["queue_position"]) == (0, 1)
    assert queued["eta_seconds"] > ahead["eta_seconds"] > 0
    assert api.get(f"/v1/videos/{running}").json()["eta_seconds"] is not None


def test_an_estimate_makes_nothing(shared_place: Studio, shared_api: TestClient) -> None:
    before = sum(shared_place.store.counts().values())
    files = {"input_reference": ("x.png", b"not looked at", "image/png")}
    answer = shared_api.post("/v1/estimate", data={"prompt": "x"}, files=files)
    assert answer.status_code == 200
    assert sum(shared_place.store.counts().values()) == before
    assert not (shared_place.folder / "inputs").exists()


def test_the_share_of_the_work_only_grows() -> None:
    plan = resolve(request(prompt="x", preset="distilled-two-stage", seed=1), CARDS["small"])
    phases = [("text", 1), ("stage 1", 8), ("upsample", 1), ("stage 2", 3), ("decode", 1), ("sound", 1)]
    shares = [
        share_done(plan, {"phase": phase, "step": step, "steps": steps})
        for phase, steps in phases
        for step in range(1, steps + 1)
    ]
    shares += [share_done(plan, {"phase": "write", "step": step, "steps": 49}) for step in (16, 32, 49)]
    assert shares == sorted(shares)
    assert len({round(share, 6) for share in shares}) == len(shares), "each is a step forward"
    assert shares[0] > 0 and abs(shares[-1] - 1) < 1e-9
    assert share_done(plan, None) == 0
    assert share_done(plan, {"phase": "something new", "step": 1, "steps": 2}) == 0


def test_the_share_grows_with_what_the_engine_tells(tmp_path: Path) -> None:
    from ltx2.engine.engine import Engine
    from ltx2.models.small import small

    engine = Engine(small("2.0"))
    asked = request(prompt="x", preset="distilled-two-stage", seed=1, width=64, height=64, frames=49)
    plan = resolve(asked, engine.models.card)
    told = [event for event in engine.generate(plan, tmp_path / "x.mp4") if isinstance(event, Progress)]
    shares = [share_done(plan, {"phase": one.phase, "step": one.step, "steps": one.steps}) for one in told]
    assert {one.phase for one in told} >= {"text", "stage 1", "upsample", "stage 2", "decode", "sound", "write"}
    assert shares == sorted(shares) and shares[0] > 0 and abs(shares[-1] - 1) < 1e-9


def test_estimates_forget_and_take_the_median(made: Make, place: Studio) -> None:
    estimates, card = Estimates(), CARDS["small"]
    job = place.store.get("ann", made()["id"])
    plan = Plan.from_dict(job.plan)
    for number, seconds in enumerate((1.0, 100.0, 3.0)):
        estimates.learn(replace(job, number=number, result=(job.result or {}) | {"seconds": seconds}), card)
        estimates.learn(replace(job, number=number, result=(job.result or {}) | {"seconds": 999}), card)
    assert estimates.seconds(plan, card) == 3.0


def test_the_adapter(place: Studio) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(picture, "PNG")
    settings = ServiceSettings(min_free_gib=0, adapter=True)
    token = {"x-backend-token": "gateway"}
    with client_of(app_of(make_service(place, settings=settings))) as client:
        api = TestClient(client.app, "http://localhost", headers=token)
        place.engine.go.clear()
        body: dict[str, Any] = {"prompt": "a cat", "width": 250, "height": 200, "frame_count": 50}
        image = {"image_b64": base64.b64encode(picture.getvalue()).decode(), "image_mime": "image/png"}
        id = api.post("/enqueue", json=body | image).json()["prompt_id"]  # noqa: A001
        job = place.store.get("gateway", id)
        assert (job.plan["width"], job.plan["height"], job.plan["frames"]) == (256, 192, 49)
        assert job.plan["image"]
        assert api.get("/status", params={"prompt_id": id}).json()["status"] in ("queued", "running")
        early = api.get("/result", params={"prompt_id": id})
        assert (early.status_code, early.headers["Retry-After"]) == (202, "2")
        place.engine.go.set()
        wait_for(lambda: api.get("/status", params={"prompt_id": id}).json()["status"] == "done")
        video = api.get("/result", params={"prompt_id": id})
        assert (video.status_code, video.headers["Content-Type"]) == (200, "video/mp4")
        failed = api.post("/enqueue", json={"prompt": "fail"}).json()["prompt_id"]
        status = wait_for(
            lambda: (s := api.get("/status", params={"prompt_id": failed}).json())["status"] == "error" and s
        )
        assert status["error"] == "it was asked to"
        assert api.get("/status", params={"prompt_id": "nobody"}).status_code == 404
        assert api.post("/enqueue", json={"prompt": "x", "evil": 1}).status_code == 400
        assert client.get("/status", params={"prompt_id": id}).status_code == 404, "another token's"


def test_no_adapter_unless_wanted(shared_api: TestClient) -> None:
    assert shared_api.post("/enqueue", json={"prompt": "x"}).status_code == 404
