"""The service in the client's own container runtime, with the embedded model on the CPU, end to end over HTTP."""

from __future__ import annotations

import io
import json
import signal
import time
from pathlib import Path

import av
import httpx
import openai
import pytest

from tests.doors.modal.conftest import TOKEN, Deployed
from tests.fake_modal.machine import ROOT
from tests.jobs.server import Server

SMALL = {"prompt": "a red ball bounces", "width": 64, "height": 64, "frames": 9, "seed": 3}
LONG = SMALL | {"width": 256, "height": 192, "frames": 49}


def streams(data: bytes) -> tuple[int, int, int, float, float]:
    """Width, height, frames, and the seconds of picture and sound of an mp4 that can be decoded."""
    with av.open(io.BytesIO(data), format="mp4") as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        size = video.width, video.height, video.frames
        seconds = [float(stream.duration * stream.time_base) for stream in (video, audio)]  # type: ignore[operator]
        assert sum(1 for _ in file.decode(video=0)) == size[2]
    return *size, *seconds  # type: ignore[return-value]


def started(service: Deployed) -> int:
    return len(service.gpu.containers)


def test_J5_polling_listing_and_refusals_start_no_gpu(deployed: Deployed):
    before = started(deployed)
    with httpx.Client(base_url=deployed.web.url, timeout=60) as stranger:
        assert stranger.post("/v1/videos", json=SMALL).status_code == 401
        assert stranger.get("/generate_web", params={"prompt": "x"}).status_code == 401
        assert (
            stranger.get("/generate_web", params={"prompt": "x"}, headers={"x-enter-token": "wrong"}).status_code == 401
        )
        assert stranger.post("/generate_post", params={"prompt": "x"}).status_code == 401
    with deployed.client as client:
        assert client.get("/readyz").json()["status"] == "ready"
        assert client.get("/v1/videos").json()["data"] == []
        assert client.get("/v1/videos/video_0123").status_code == 404
        assert client.get("/v1/models").status_code == 200
        assert client.post("/v1/estimate", json=SMALL).status_code == 200
        for bad in ({"width": 33}, {"promt": "x"}, {"frames": 10}, {"model": "sora"}):
            assert client.post("/v1/videos", json=SMALL | bad).status_code in (400, 404)
        for field in ({"webhook": "https://8.8.8.8/hook"}, {"priority": 2}):
            answer = client.post("/v1/videos", json=SMALL | field)
            assert answer.status_code == 501 and "database_secret" in answer.json()["error"]["message"], answer.text
    assert started(deployed) == before


def test_a_job_goes_from_202_to_a_playable_video(deployed: Deployed):
    with deployed.client as client:
        sent = client.post("/v1/videos", json=SMALL | {"frames": 25, "fps": 12.5}).json()
        assert sent["status"] == "queued" and sent["seed"] == 3
        seen: list[tuple[int, int]] = []

        def look() -> dict[str, object] | None:
            job = client.get(f"/v1/videos/{sent['id']}").json()
            if job["status"] == "in_progress" and job["step"]:
                seen.append((job["progress"], job["step"]))
            return job if job["status"] in ("completed", "failed") else None

        job = deployed.until(look)
        assert job["status"] == "completed", deployed.logs()
        assert job["progress"] == 100 and job["usage"]["cost"] > 0 and job["usage"]["currency"] == "USD"
        answer = client.get(f"/v1/videos/{sent['id']}/content")
        assert answer.status_code == 200 and answer.headers["content-type"] == "video/mp4"
        width, height, frames, picture, sound = streams(answer.content)
        assert (width, height, frames) == (64, 64, 25)
        # The frame rate reaches the model: picture and sound last equally long.
        assert picture == pytest.approx(2.0, abs=0.01) and sound == pytest.approx(2.0, abs=0.1)
        part = client.get(f"/v1/videos/{sent['id']}/content", headers={"Range": "bytes=0-99"})
        assert part.status_code == 206 and part.content == answer.content[:100]
    assert [progress for progress, _ in seen] == sorted(progress for progress, _ in seen)
    assert deployed.machine.cloud.volumes["ltx2-video-outputs"].commits >= 1


def test_progress_rises_by_steps(deployed: Deployed):
    # So many steps and passes that they last for seconds: steps are posted, and looked for, twice a second at most.
    slow = LONG | {"width": 192, "height": 128, "preset": "dev", "num_inference_steps": 80}
    with deployed.client as client:
        sent = client.post("/v1/videos", json=slow).json()
        seen: list[int] = []

        def look() -> bool:
            job = client.get(f"/v1/videos/{sent['id']}").json()
            if (job["stage"] or "stage").startswith("stage"):
                seen.append(job["progress"])
            return job["status"] == "completed"

        deployed.until(look)
    assert seen == sorted(seen) and len(set(seen)) >= 3 and seen[-1] == 100


def test_the_original_contract(deployed: Deployed):
    with httpx.Client(base_url=deployed.web.url, timeout=130, headers={"x-enter-token": TOKEN}) as client:
        asked = {
            "prompt": "a blue square",
            "width": "64",
            "height": "64",
            "num_frames": "9",
            "num_inference_steps": "10",
        }
        answer = client.get("/generate_web", params=asked)
        assert answer.status_code == 200 and answer.headers["content-type"] == "video/mp4", answer.text
        assert streams(answer.content)[:3] == (64, 64, 9)
        assert answer.headers["x-job-id"] and int(answer.headers["x-seed"]) >= 0 and answer.headers["x-model"] == "tiny"
        assert "generation;dur=" in answer.headers["server-timing"]
        again = client.post("/generate_post", params=asked | {"seed": answer.headers["x-seed"]})
        assert again.status_code == 200 and again.content == answer.content


def test_a_cancel_stops_within_a_step_and_the_container_serves_the_next_job(deployed: Deployed):
    with deployed.client as client:
        sent = client.post("/v1/videos", json=LONG | {"seed": 11}).json()
        call = deployed.call_of()
        deployed.until(lambda: client.get(f"/v1/videos/{sent['id']}").json()["status"] == "in_progress")
        container = call.container
        assert client.post(f"/v1/videos/{sent['id']}/cancel").json()["error"]["code"] == "cancelled"
        deployed.until(lambda: call.output is not None, 20)
        assert client.get(f"/v1/videos/{sent['id']}").json()["state"] == "cancelled"
        assert client.get(f"/v1/videos/{sent['id']}/content").status_code == 409
        following = client.post("/v1/videos", json=SMALL | {"seed": 12}).json()
        assert deployed.ended(following["id"], client)["status"] == "completed"
    assert deployed.call_of().container is container and container.alive


def test_an_error_on_the_gpu_reaches_the_client_as_a_failed_job(deployed: Deployed):
    """A picture that was lost on its way is found out where the video is made."""
    png = (ROOT / "tests" / "data").rglob("*.png")
    picture = next(png, None)
    if picture is None:
        from PIL import Image

        drawn = io.BytesIO()
        Image.new("RGB", (64, 64), "red").save(drawn, "PNG")
        data = drawn.getvalue()
    else:
        data = picture.read_bytes()
    with deployed.client as client:
        # Waits behind another job, while its picture is taken away.
        first = client.post("/v1/videos", json=LONG | {"seed": 21}).json()
        sent = client.post(
            "/v1/videos", data=SMALL | {"seed": "22"}, files={"input_reference": ("a.png", data, "image/png")}
        )
        assert sent.status_code == 200, sent.text
        jobs = deployed.machine.cloud.dicts[deployed.machine.cloud.dict_names["ltx2-video-jobs"]]
        for key in [key for key in jobs if b"picture/" in key]:
            del jobs[key]
        broken = deployed.call_of()
        client.post(f"/v1/videos/{first['id']}/cancel")
        failed = deployed.ended(sent.json()["id"], client)
        assert failed["status"] == "failed" and "picture" in failed["error"]["message"]
        with_picture = client.post(
            "/v1/videos", data=SMALL, files={"input_reference": ("a.png", data, "image/png")}
        ).json()
        assert deployed.ended(with_picture["id"], client)["status"] == "completed"
    assert deployed.call_of().container is broken.container


def test_J2_a_container_that_dies_gives_its_job_to_the_next_and_it_is_published_once(deployed: Deployed):
    with deployed.client as client:
        for how in (signal.SIGKILL, signal.SIGINT):
            sent = client.post("/v1/videos", json=LONG | {"seed": 31 + how}).json()
            deployed.until(lambda: client.get(f"/v1/videos/{sent['id']}").json()["status"] == "in_progress")  # noqa: B023
            call, dying = deployed.call_of(), deployed.gpu.living[-1]
            deployed.machine.kill(dying, how)
            job = deployed.ended(sent["id"], client)
            assert job["status"] == "completed", deployed.logs()
            deployed.until(lambda: call.output is not None)  # noqa: B023
            # A crash counts as an attempt, a preemption does not.
            assert call.starts == 2 and call.ends == 1 and job["attempt"] == (2 if how == signal.SIGKILL else 1)
            assert client.get(f"/v1/videos/{sent['id']}/content").status_code == 200
    published = list((deployed.root / "outputs").rglob("out.mp4"))
    assert len({path.parent.parent for path in published}) == len(published)


def test_J4_a_busy_volume_is_waited_for(deployed: Deployed):
    volume = deployed.machine.cloud.volumes["ltx2-video-outputs"]
    volume.failing, commits = 2, volume.commits
    with deployed.client as client:
        sent = client.post("/v1/videos", json=SMALL | {"seed": 41}).json()
        assert deployed.ended(sent["id"], client)["status"] == "completed"
        assert volume.failing == 0 and volume.commits > commits
        assert client.get(f"/v1/videos/{sent['id']}/content").status_code == 200


def test_J6_an_expired_call_is_410_and_its_job_can_be_removed(deployed: Deployed):
    with deployed.client as client:
        blocking = client.post("/v1/videos", json=LONG | {"seed": 51}).json()
        sent = client.post("/v1/videos", json=SMALL | {"seed": 52}).json()
        call = deployed.call_of()
        deployed.gpu.pending.clear()
        deployed.machine.expire(call.id)
        time.sleep(0.5)
        answer = client.get(f"/v1/videos/{sent['id']}")
        assert answer.status_code == 410 and answer.json()["error"]["code"] == "gone"
        assert answer.headers["x-should-retry"] == "false"
        assert client.delete(f"/v1/videos/{sent['id']}").status_code == 200
        assert client.get(f"/v1/videos/{sent['id']}").status_code == 404
        client.post(f"/v1/videos/{blocking['id']}/cancel")


def test_the_official_openai_client(deployed: Deployed, recwarn: pytest.WarningsRecorder):
    client = openai.OpenAI(base_url=f"{deployed.web.url}/v1", api_key=TOKEN, max_retries=0)
    video = client.videos.create_and_poll(
        prompt="a green circle", model="tiny", extra_body={"width": 64, "height": 64, "frames": 9, "seed": 5}  # type: ignore[arg-type]
    )  # fmt: skip
    assert video.status == "completed", video
    assert streams(client.videos.download_content(video.id).content)[:3] == (64, 64, 9)
    assert video.id in [other.id for other in client.videos.list(limit=5)]
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{deployed.web.url}/v1", api_key="wrong", max_retries=0).videos.retrieve("x")


def test_metrics_and_readiness_tell_money_and_phases(deployed: Deployed):
    with deployed.client as client:
        made = client.post("/v1/videos", json=SMALL | {"seed": 91}).json()
        assert deployed.ended(made["id"], client)["status"] == "completed"

        def phased() -> str | None:
            text = client.get("/metrics").text
            return text if 'phase="weights"' in text else None

        # A web container looks every 20 seconds.
        text = deployed.until(phased)
        assert "ltx2_daily_cap_dollars 20.0" in text and "ltx2_spent_today_dollars" in text and "ltx2_jobs{" in text
        last = client.get("/readyz").json()["last_start"]
    phases = {"imports", "weights", "warm-up 64x64x9"}
    assert set(last["phases"]) == phases and last["seconds"] > 0 and last["phases"]["warm-up 64x64x9"] > 0
    assert all(f'ltx2_cold_start_seconds{{phase="{phase}"}}' in text for phase in phases), text
    # What the warm-up compiled is there for the next container.
    assert deployed.machine.cloud.volumes["ltx2-video-compiled"].commits >= 1
    log = deployed.machine.output(deployed.gpu.containers[0])
    events = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert "ready" in {event["event"] for event in events}
    assert all(any(event["event"].startswith(f"{phase} took ") for event in events) for phase in phases)
    assert not any("a red ball" in line for line in log.splitlines())


def test_smoke_on_the_deployed_service(deployed: Deployed, tmp_path: Path):
    out = tmp_path / "smoke.mp4"
    done = deployed.machine.on_host(
        "-m", "ltx2", "modal", "smoke", deployed.web.url, "--wait", "60", "-o", str(out), ENTER_TOKEN=TOKEN
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["usage"]["cost"] > 0 and streams(out.read_bytes())[0] == 256
    wrong = deployed.machine.on_host("-m", "ltx2", "modal", "smoke", deployed.web.url, ENTER_TOKEN="wrong")
    assert wrong.returncode == 1 and "401" in wrong.stderr


def test_modal_run_writes_a_playable_video(deployed: Deployed, tmp_path: Path):
    out = tmp_path / "cat.mp4"
    done = deployed.machine.command(
        "run", "ltx2_video.py", "--prompt", "A cat walking through a garden", "--num-inference-steps", "40",
        "--width", "64", "--height", "64", "--num-frames", "9", "--output", str(out), **deployed.settings,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert streams(out.read_bytes())[:3] == (64, 64, 9)
    assert "has its own steps" in done.stdout + done.stderr


def test_a_redeploy_keeps_the_queue_and_the_running_job(deployed: Deployed):
    with deployed.client as client:
        running = client.post("/v1/videos", json=LONG | {"seed": 61}).json()
        waiting = client.post("/v1/videos", json=SMALL | {"seed": 62}).json()
        deployed.until(lambda: client.get(f"/v1/videos/{running['id']}").json()["status"] == "in_progress")
        old, url = deployed.call_of(-2).container, deployed.web.url
        assert deployed.deploy(LTX2_MODAL_SCALEDOWN_WINDOW="90").returncode == 0
        assert deployed.web.url == url and deployed.gpu.definition.autoscaler_settings.scaledown_window == 90
        later = client.post("/v1/videos", json=SMALL | {"seed": 63}).json()
        for job in (running, waiting, later):
            assert deployed.ended(job["id"], client)["status"] == "completed", deployed.logs()
    assert deployed.call_of(-3).container is old and deployed.call_of().container is not old


def test_jobs_in_postgresql_have_webhooks_and_priorities(deployed: Deployed, server: Server):
    deployed.machine.cloud.secret("jobs-database", LTX2_DB=server.fresh())
    own = {"LTX2_MODAL_APP": "ltx2-database", "LTX2_MODAL_DATABASE_SECRET": "jobs-database"}
    place = Deployed(deployed.machine, deployed.settings | own, deployed.root, "ltx2-database")
    assert place.deploy().returncode == 0 and place.function("sweep").definition.schedule.period.hours == 1
    with place.client as client:
        hooked = client.post("/v1/videos", json=SMALL | {"seed": 81, "webhook": "https://8.8.8.8/hook"}).json()
        urgent = client.post("/v1/videos", json=SMALL | {"seed": 82, "priority": 5}).json()
        for job in (hooked, urgent):
            ended = place.ended(job["id"], client)
            assert ended["status"] == "completed", (ended, place.logs())
            assert streams(client.get(f"/v1/videos/{job['id']}/content").content)[:3] == (64, 64, 9)
        assert client.post(f"/v1/videos/{hooked['id']}/cancel").json()["state"] == "done"
