"""What may be asked: every row B of the fault matrix that is about fields, through the whole API."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from ltx2.spec.errors import DoesNotFit
from ltx2.spec.plan import Plan
from tests.doors.http.fixtures import Make, app_of, client_of, make_service
from tests.doors.http.studio import Studio


@pytest.fixture(scope="module")
def api(shared_api: TestClient) -> TestClient:
    return shared_api


def estimate(api: TestClient, **fields: Any) -> dict[str, Any]:
    response = api.post("/v1/estimate", json={"prompt": "a cat"} | fields)
    assert response.status_code == 200, response.text
    return response.json()


def refused(api: TestClient, status: int = 400, **fields: Any) -> dict[str, Any]:
    response = api.post("/v1/videos", json={"prompt": "a cat"} | fields)
    assert response.status_code == status, response.text
    assert response.headers["x-should-retry"] == "false"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_B1_seconds(api: TestClient) -> None:
    for value in ("4", 4, 4.0):
        assert estimate(api, seconds=value)["plan"]["frames"] == 97
        assert estimate(api, duration=value)["plan"]["frames"] == 97
    for value in ("4.0", "-1", "1e9", True, None, 0, -4, "", " 4", "٤", 1e9, [4], {}):
        assert refused(api, seconds=value)["param"] == "seconds", value
    assert refused(api, duration="4.0")["param"] == "duration"
    assert refused(api, duration=3000)["param"] == "duration"


@pytest.mark.parametrize("side", [0, -32, 33, 31, 10**9, "768px", 2**63, 1e9, True])
def test_B2_sides(api: TestClient, side: Any) -> None:
    for knob in ("width", "height"):
        assert refused(api, **{knob: side})["param"] == knob


def test_B2_near_sizes_are_named(api: TestClient) -> None:
    assert "192x128 works" in refused(api, width=200, height=130)["message"]
    assert "512x256 works" in refused(api, size="1280x720")["message"]
    assert refused(api, size="1280x720")["param"] == "size"
    assert refused(api, size="large")["param"] == "size"
    assert refused(api, size="0x0")["param"] == "size"


def test_B3_frames(api: TestClient) -> None:
    for frames in (96, 98, 1, 100_000, -7, 0):
        for knob in ("frames", "num_frames"):
            error = refused(api, **{knob: frames})
            assert error["param"] == knob
            assert "8k+1" in error["message"]
    found = estimate(api, num_frames=98, round="nearest")
    assert found["plan"]["frames"] == 97
    assert found["warnings"] == ["num_frames: rounded to 97"]
    found = estimate(api, width=200, height=130, round="nearest")
    assert (found["plan"]["width"], found["plan"]["height"]) == (192, 128)


@pytest.mark.parametrize(
    "fields",
    [
        {"size": "256x192", "width": 128},
        {"size": "256x192", "width": 256, "height": 128},
        {"size": "256x192", "resolution": "480p"},
        {"seconds": 2, "num_frames": 97},
        {"seconds": 2, "duration": 3},
        {"frames": 9, "num_frames": 17},
        {"audio": True, "generate_audio": False},
        {"model": "dev", "steps": 3, "num_inference_steps": 4},
        {"model": "dev", "guidance_scale": 3, "video_cfg": 4},
        {"webhook": "https://a.example/", "callback_url": "https://b.example/"},
    ],
    ids=str,
)
def test_B4_contradictions(api: TestClient, fields: dict[str, Any]) -> None:
    error = refused(api, **fields)
    assert error["code"] == "conflicting_parameters"
    assert error["param"] in fields


def test_B4_what_agrees_is_fine(api: TestClient) -> None:
    found = estimate(api, size="256x192", width=256, seconds=4, duration="4", num_frames=97, frames=97)
    assert (found["plan"]["width"], found["plan"]["frames"]) == (256, 97)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "1" * 5000])
@pytest.mark.parametrize("knob", ["seconds", "fps", "image_strength", "seed", "prompt", "provider"])
def test_B5_no_number(api: TestClient, number: str, knob: str) -> None:
    body = f'{{"prompt": "a cat", "{knob}": {number}}}' if knob != "prompt" else f'{{"prompt": {number}}}'
    response = api.post("/v1/videos", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_request"


def test_B6_unknown_fields(api: TestClient) -> None:
    error = refused(api, promt="x", output_path="/tmp/x")
    assert "promt" in error["message"] and "output_path" in error["message"]
    assert "did you mean prompt?" in error["message"]
    warnings = estimate(api, user="me", quality="high", provider={"order": ["x"]})["warnings"]
    assert warnings == [f"{name}: accepted and ignored" for name in ("user", "quality", "provider")]
    assert refused(api, user="me", strict=True)["param"] == "user"


def test_B6_what_others_offer_is_refused_by_name(api: TestClient) -> None:
    for name in ("last_frame", "audio_url", "video_url", "input_references", "enhance_prompt"):
        error = refused(api, **{name: "x"})
        assert (error["code"], error["param"]) == ("not_offered", name)
    assert refused(api, null_prompt=None)["param"] == "null_prompt"
    assert refused(api, width=None)["param"] == "width"


@pytest.mark.parametrize("prompt", ["", "   ", "\n", "x" * 8001, "a\0b", "a\x1bb", 7, ["x"], None])
def test_B7_prompts_that_are_refused(api: TestClient, prompt: Any) -> None:
    assert refused(api, prompt=prompt)["param"] == "prompt"


def test_B7_a_long_one_and_half_a_character(api: TestClient) -> None:
    assert refused(api, 413, prompt="x" * 2**20)["code"] == "request_too_large"
    json_headers = {"Content-Type": "application/json"}
    for body in (b'{"prompt": "\\ud800"}', b'{"\\ud800": 1}', b'{"prompt": "x", "user": ["\\udfff"]}'):
        assert api.post("/v1/videos", content=body, headers=json_headers).status_code == 400


@pytest.mark.parametrize(
    "prompt", ["\u202ereversed", "👩‍👩‍👧‍👦 family", "Z̷̛̗a̴l̵g̶o̷", " spaced ", "line\nline", "<script>'\"&"]
)
def test_B7_prompts_come_back_as_they_were(api: TestClient, prompt: str) -> None:
    video = api.post("/v1/videos", json={"prompt": prompt}).json()
    assert api.get(f"/v1/videos/{video['id']}").json()["prompt"] == prompt


def test_B8_seeds(api: TestClient, made: Make) -> None:
    assert made(seed=0)["seed"] == 0
    assert made(seed=2**32)["seed"] == 2**32
    drawn = {made(seed=-1)["seed"], made()["seed"], made()["seed"]}
    assert len(drawn) == 3
    assert all(isinstance(seed, int) and seed >= 0 for seed in drawn)
    for seed in (2**63, -2, "abc", "7", 1.5, True):
        assert refused(api, seed=seed)["param"] == "seed"


def test_B10_steps_and_guidance(api: TestClient) -> None:
    for steps in (0, 10_000, -1, "4", 1.5):
        assert refused(api, model="dev", steps=steps)["param"] == "steps"
    for scale in (-1, 1e6, "3"):
        assert refused(api, model="dev", guidance_scale=scale)["param"] == "guidance_scale"
    found = estimate(api, model="dev", num_inference_steps=1, guidance_scale=2)
    assert len(found["plan"]["stages"][0]["sigmas"]) == 2
    assert {found["plan"]["stages"][0][side]["cfg"] for side in ("video", "audio")} == {2}
    # Sigmas of a distilled model are fixed.
    assert refused(api, num_inference_steps=8)["param"] == "num_inference_steps"


BODIES = {
    "nested": b"[" * 10_000,
    "nested objects": b'{"a":' * 10_000,
    "nested below what Python refuses": b'{"provider":' + b"[" * 500 + b"]" * 500 + b"}",
    "a key twice": b'{"prompt": "a", "prompt": "b"}',
    "thousands of keys, one twice": b"{" + b",".join(b'"k%d":1' % n for n in range(5000)) + b',"k0":2}',
    "a mark": b'\xef\xbb\xbf{"prompt": "a"}',
    "UTF-16": '{"prompt": "a"}'.encode("utf-16"),
    "garbage behind": b'{"prompt": "a"} x',
    "a list": b"[]",
    "nothing": b"",
    "text": b"hello",
    "single quotes": b"{'prompt': 'a'}",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_B11_bodies_that_are_no_request(api: TestClient, body: bytes) -> None:
    before = time.process_time()
    response = api.post("/v1/videos", content=body, headers={"Content-Type": "application/json"})
    assert time.process_time() - before < 0.5
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_request"


def test_B11_spaces(api: TestClient) -> None:
    response = api.post("/v1/videos", content=b" " * (5 << 20), headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


def form(*parts: bytes, boundary: bytes = b"b") -> bytes:
    return b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"


FIELD = b'Content-Disposition: form-data; name="prompt"\r\n\r\na cat'
FILE = b'Content-Disposition: form-data; name="input_reference"; filename="x"\r\n\r\nx'


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("text/plain", b"x", 415),
        ("", b"{}", 415),
        ("application/x-www-form-urlencoded", b"prompt=x", 415),
        ("multipart/form-data", form(FIELD), 400),
        (f"multipart/form-data; boundary={'b' * 1024}", form(FIELD, boundary=b"b" * 1024), 400),
        (f"multipart/form-data; boundary={'b' * 10_240}", form(FIELD, boundary=b"b" * 10_240), 431),
        ("multipart/form-data; boundary=b", form(b"Content-Disposition: form-data\r\n\r\nx"), 400),
        ("multipart/form-data; boundary=b", form(*[FIELD.replace(b"prompt", b"p%d" % n) for n in range(1000)]), 400),
        ("multipart/form-data; boundary=b", form(FIELD, FILE, FILE), 400),
        ("multipart/form-data; boundary=b", form(FIELD, FIELD), 400),
        ("multipart/form-data; boundary=b", form(FIELD, FILE.replace(b"input_reference", b"evil")), 400),
        ("multipart/form-data; boundary=b", form(FIELD.replace(b"prompt", b"a[[b]")), 400),
        ("multipart/form-data; boundary=b", form(FIELD.replace(b"prompt", b"a[b][c][d][e][f]")), 400),
        ("multipart/form-data; boundary=b", form(FIELD)[:-8], 400),
        ("multipart/form-data; boundary=b", b"x" * 1000, 400),
        ("multipart/form-data; boundary=b", form(FIELD + b"x" * (33 << 20)), 413),
    ],
)
def test_B12_forms_that_are_none(api: TestClient, kind: str, body: bytes, status: int) -> None:
    response = api.post("/v1/videos", content=body, headers={"Content-Type": kind})
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_B12_a_compressed_body(api: TestClient) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert api.post("/v1/videos", content=b"x", headers=headers).status_code == 415


def test_B13_forms_as_the_SDK_sends_them(api: TestClient) -> None:
    fields = {
        "prompt": "a cat", "seconds": "4", "seed": "1", "generate_audio": "true", "fps": "24.0", "model": "dev",
        "stg_blocks[]": ["28", "29"], "provider[order][]": ["a", "b"], "video_stg": "1",
    }  # fmt: skip
    response = api.post("/v1/estimate", files=[*_parts(fields)])
    assert response.status_code == 200, response.text
    plan = response.json()["plan"]
    assert (plan["seed"], plan["audio"], plan["fps"], plan["frames"]) == (1, True, "24", 97)
    assert plan["stages"][0]["video"]["stg_blocks"] == [28, 29]


def _parts(fields: dict[str, Any]) -> list[tuple[str, tuple[None, str]]]:
    return [
        (name, (None, value))
        for name, values in fields.items()
        for value in (values if isinstance(values, list) else [values])
    ]


def test_B14_fields_without_effect_are_said(api: TestClient, made: Make) -> None:
    video = made(negative_prompt="blurry", guidance_scale=4)
    assert [warning.partition(":")[0] for warning in video["warnings"]] == ["negative_prompt", "guidance_scale"]
    assert refused(api, negative_prompt="blurry", strict=True)["param"] == "negative_prompt"
    assert estimate(api, model="dev", negative_prompt="blurry", guidance_scale=4, strict=True)["warnings"] == []
    assert "image_strength" in estimate(api, image_strength=0.5)["warnings"][0]


def test_B15_unknown_model(api: TestClient) -> None:
    error = refused(api, 404, model="sora-2")
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "small, dev" in error["message"]


def test_B16_what_no_worker_can_hold(place: Studio) -> None:
    def capacity(plan: Plan) -> None:
        raise DoesNotFit("it needs 200 GiB", hint="41 frames fit")

    app: FastAPI = app_of(make_service(place, capacity=capacity))
    with client_of(app) as api:
        error = refused(api, 422)
        assert error["code"] == "exceeds_capacity"
        assert "41 frames fit" in error["message"]
        assert api.get("/v1/videos").json()["data"] == []
        found = estimate(api)
        assert (found["fits"], found["hint"]) == (False, "41 frames fit")


def test_B17_frames_per_second(api: TestClient) -> None:
    assert estimate(api, fps=23.976)["plan"]["fps"] == "2997/125"
    assert estimate(api, fps="24000/1001")["plan"]["fps"] == "24000/1001"
    assert estimate(api, fps=24.0)["plan"]["fps"] == "24"
    for fps in (0, 1000, -1, "1/0", "1e9", "nan", True, "24 ", 1e300):
        assert refused(api, fps=fps)["param"] == "fps"


def test_B18_one_video_a_request(api: TestClient) -> None:
    estimate(api, n=1)
    for n in (2, 4):
        error = refused(api, n=n)
        assert (error["code"], error["param"]) == ("not_offered", "n")
    for n in (0, 5, -1, "1"):
        assert refused(api, n=n)["code"] == "invalid_request"


def test_C9_sound_as_an_input_is_refused_by_name(api: TestClient) -> None:
    for field in ("audio_url", "audio_reference"):
        error = refused(api, **{field: "data:audio/wav;base64,AAAA"})
        assert (error["code"], error["param"]) == ("not_offered", field)


def test_C13_a_last_frame_is_refused_by_name(api: TestClient) -> None:
    image = {"url": "data:image/png;base64,AAAA"}
    for fields in (
        {"last_frame": "x"},
        {"end_image_url": "x"},
        {"frame_images": [{"image_url": image, "frame_type": "last_frame"}]},
    ):
        error = refused(api, **fields)
        assert (error["code"], error["param"]) == ("not_offered", next(iter(fields)))


def test_C15_no_field_is_a_path(api: TestClient) -> None:
    for name in ("../x", "/etc/x.safetensors", "https://a.example/x.safetensors", "x.pt", {"path": "/etc/passwd"}):
        assert refused(api, loras=[name])["param"] == "loras"
    for field in ("image", "input_reference"):
        for path in ("/etc/passwd", "../x.png", "file:///etc/passwd", "x.png"):
            assert refused(api, **{field: path})["param"] == field
    for field in ("lora", "output_path", "perf_dump_path", "checkpoint"):
        assert refused(api, **{field: "/etc/passwd"})["param"] == field


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, (768, 512)),
        ({"resolution": "720p"}, (1280, 736)),
        ({"resolution": "720p", "aspect_ratio": "9:16"}, (736, 1280)),
        ({"resolution": "1080p"}, (1920, 1088)),
        ({"resolution": "480p", "aspect_ratio": "1:1"}, (480, 480)),
        ({"resolution": "768x512"}, (768, 512)),
        ({"aspect_ratio": "1:1"}, (640, 640)),
        ({"size": "1280x720"}, (1280, 736)),
        ({"size": "1024x1792"}, (1024, 1792)),
        ({"preset": "two-stage", "resolution": "720p"}, (1280, 704)),
    ],
    ids=str,
)
def test_sizes_by_name(api: TestClient, fields: dict[str, Any], size: tuple[int, int]) -> None:
    found = estimate(api, model="dev", **fields)
    assert (found["plan"]["width"], found["plan"]["height"]) == size
    exact = fields.get("size", fields.get("resolution", "768x512")) in (f"{size[0]}x{size[1]}", "480p")
    assert bool(found["warnings"]) is not exact, json.dumps(found["warnings"])


def test_unknown_names_of_sizes(api: TestClient) -> None:
    assert "480p" in refused(api, resolution="8k")["message"]
    assert "16:9" in refused(api, aspect_ratio="5:1")["message"]
