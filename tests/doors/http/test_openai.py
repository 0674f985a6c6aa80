"""The real `openai` client against a real server (rows B13 and D15)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from ltx2.doors.fetch import Outside
from ltx2.jobs.courier import deliver
from tests.doors.http.fixtures import app_of, make_service, serving
from tests.doors.http.studio import Studio

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture(scope="module")
def client(shared_place: Studio) -> Iterator[openai.OpenAI]:
    warnings.simplefilter("ignore", DeprecationWarning)
    with (
        serving(app_of(make_service(shared_place))) as address,
        openai.OpenAI(api_key="ann", base_url=f"{address}/v1", webhook_secret=SECRET, max_retries=0) as client,
    ):
        yield client


def test_D15_create_and_poll_and_every_variant(client: openai.OpenAI) -> None:
    video = client.videos.create_and_poll(model="small", prompt="a cat", seconds="4")
    assert (video.status, video.progress, video.seconds, video.object) == ("completed", 100, "4", "video")
    assert video.completed_at is not None and video.expires_at is not None
    assert video.completed_at >= video.created_at
    kinds = {"video": b"ftyp", "thumbnail": b"WEBP", "spritesheet": b"\xff\xd8\xff"}
    for variant, magic in kinds.items():
        content = client.videos.download_content(video.id, variant=variant).read()  # type: ignore[arg-type]
        assert magic in content[:16], variant
    for variant in ("audio", "last_frame", "metadata"):
        assert client.videos.download_content(video.id, extra_query={"variant": variant}).read()


def test_D15_a_failed_job_comes_back_from_poll(client: openai.OpenAI) -> None:
    video = client.videos.create_and_poll(model="small", prompt="fail")
    assert video.status == "failed"
    assert video.error is not None
    assert (video.error.code, video.error.message) == ("failed", "it was asked to")


def test_D15_pages_delete_and_remix(client: openai.OpenAI) -> None:
    made = [client.videos.create(prompt=f"cat {n}").id for n in range(5)]
    listed = [video.id for video in client.videos.list(limit=2)]
    assert listed[:5] == made[::-1]
    oldest = [video.id for video in client.videos.list(limit=3, order="asc")]
    assert oldest == listed[::-1]
    done = client.videos.poll(made[0])
    again = client.videos.remix(done.id, prompt="a dog")
    assert (again.remixed_from_video_id, again.prompt) == (done.id, "a dog")
    assert client.videos.delete(made[0]).deleted
    with pytest.raises(openai.NotFoundError) as error:
        client.videos.retrieve(made[0])
    assert error.value.code == "not_found"


def test_D15_errors_carry_code_and_param(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.videos.create(prompt="x", size="1280x721")  # type: ignore[arg-type]
    assert (error.value.code, error.value.param) == ("invalid_request", "size")
    with pytest.raises(openai.NotFoundError) as missing:
        client.videos.create(prompt="x", model="sora-2")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.InternalServerError) as refused:
        client.videos.edit(prompt="x", video=b"x")
    assert refused.value.code == "not_offered"


def test_B13_extra_fields_of_the_SDK(client: openai.OpenAI, shared_place: Studio) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(picture, "PNG")
    extra: dict[str, Any] = {
        "seed": 1, "generate_audio": True, "fps": 24.0, "provider": {"order": ["a", "b"], "x": {"y": [1, 2]}},
        "deadline_seconds": 600,
    }  # fmt: skip
    video = client.videos.create(
        prompt="a cat", input_reference=("../x.png", picture.getvalue(), "image/png"), extra_body=extra
    )
    job = shared_place.store.get("ann", video.id)
    assert (job.plan["seed"], job.plan["audio"], job.plan["fps"]) == (1, True, "24")
    assert Path(job.plan["image"]).is_file()
    assert job.deadline is not None
    as_json = client.videos.create(
        prompt="a cat", extra_body={"seed": 1, "stg_blocks": [1]}, extra_headers={"Content-Type": "application/json"}
    )
    assert shared_place.store.get("ann", as_json.id).plan["seed"] == 1
    url = "data:image/png;base64," + __import__("base64").b64encode(picture.getvalue()).decode()
    referred = client.videos.create(prompt="a cat", extra_body={"input_reference": {"image_url": url}})
    assert shared_place.store.get("ann", referred.id).plan["image"] == job.plan["image"]


def test_D15_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["small", "dev"]
    assert client.models.retrieve("dev").id == "dev"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("sora-2")


def test_D15_webhooks_unwrap(shared_place: Studio) -> None:
    """What the courier sends is an event of OpenAI's own client, and says which video it is about."""
    receiver, sent = "http://127.0.0.1:9", list[tuple[dict[str, str], bytes]]()
    service = make_service(shared_place, outside=Outside(frozenset({receiver})))

    def send(url: str, headers: Mapping[str, str], body: bytes) -> int:
        sent.append((dict(headers), body))
        return 200

    with (
        serving(app_of(service)) as address,
        openai.OpenAI(api_key="ann", base_url=f"{address}/v1", webhook_secret=SECRET) as client,
    ):
        done = client.videos.create_and_poll(prompt="a cat", extra_body={"webhook": receiver + "/done"})
        failed = client.videos.create_and_poll(prompt="fail", extra_body={"callback_url": receiver + "/failed"})
        while deliver(shared_place.store, send, lambda token: [SECRET]):
            pass
        events = [client.webhooks.unwrap(body.decode(), headers) for headers, body in sent]
    assert [(event.type, event.data.id) for event in events] == [  # type: ignore[union-attr]
        ("video.completed", done.id), ("video.failed", failed.id),
    ]  # fmt: skip
