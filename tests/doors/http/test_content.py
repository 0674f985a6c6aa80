"""Files over HTTP: ranges, validators, negotiation, variants, and what must never be sent."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

import av
import pytest
from PIL import Image
from starlette.testclient import TestClient

from ltx2.doors.http import accept, ranges, variants
from ltx2.doors.http.parts import Maker
from tests.doors.http.fixtures import Make, a_place, app_of, client_of, make_service, making
from tests.doors.http.studio import Studio, a_video


@pytest.fixture(scope="module")
def api(shared_api: TestClient) -> TestClient:
    return shared_api


@pytest.fixture(scope="module")
def video(shared_api: TestClient) -> dict[str, Any]:
    return making(shared_api)()


@pytest.fixture(scope="module")
def url(video: dict[str, Any]) -> str:
    return f"/v1/videos/{video['id']}/content"


@pytest.fixture(scope="module")
def data(shared_api: TestClient, url: str) -> bytes:
    return shared_api.get(url).content


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("bytes=0-", 206), ("bytes=-500", 206), ("bytes=5-4", 200), ("bytes=99999999-", 416), ("bytes=0-0", 206),
        ("bytes=0-9,20-29", 206), ("bytes=0-9,99999999-", 206), ("items=0-5", 200), ("bytes=", 200), ("bytes", 200),
        ("bytes=-0", 416), ("bytes=0-99999999999999999", 206), ("bytes=99999999999999999999999999-", 200),
        ("bytes=a-b", 200), ("bytes=1-2-3", 200), ("bytes=" + ",".join(["0-1"] * 10_000), 431),
        ("bytes=" + ",".join(f"{n}-{n}" for n in range(0, 200, 2)), 200), ("BYTES = 0-9", 206), ("bytes=٠-٩", 200),
    ],
)  # fmt: skip
def test_G1_ranges(api: TestClient, url: str, data: bytes, header: str, status: int) -> None:
    before = time.process_time()
    response = api.get(url, headers={"Range": header.encode("utf-8")})
    assert time.process_time() - before < 0.5
    assert response.status_code == status, response.text[:100]
    if status == 200:
        assert response.content == data
    if status == 416:
        assert response.headers["Content-Range"] == f"bytes */{len(data)}"
        assert response.json()["error"]["param"] == "Range"


def test_G1_what_ranges_mean() -> None:
    assert ranges.wanted("bytes=0-9", 100) == [(0, 9)]
    assert ranges.wanted("bytes=90-200", 100) == [(90, 99)]
    assert ranges.wanted("bytes=-10", 100) == [(90, 99)]
    assert ranges.wanted("bytes=-1000", 100) == [(0, 99)]
    assert ranges.wanted("bytes=100-", 100) == []
    assert ranges.wanted("bytes=0-0", 0) == []
    assert ranges.wanted("bytes=0-1, 5-6 ,-1", 100) == [(0, 1), (5, 6), (99, 99)]
    for header in ("", "bytes", "bytes=", "bytes=-", "bytes=,", "bytes=1", "other=0-1", "bytes=2-1", "bytes=0-1;x"):
        assert ranges.wanted(header, 100) is None, header
    # Ten thousand pieces cost nothing.
    before = time.process_time()
    assert ranges.wanted("bytes=" + ",".join(f"{n}-{n}" for n in range(10_000)), 10**6) is None
    assert time.process_time() - before < 0.01


def test_G1_pieces_are_the_right_bytes(api: TestClient, url: str, data: bytes) -> None:
    response = api.get(url, headers={"Range": "bytes=10-19"})
    assert response.content == data[10:20]
    assert response.headers["Content-Range"] == f"bytes 10-19/{len(data)}"
    assert api.get(url, headers={"Range": "bytes=-7"}).content == data[-7:]
    both = api.get(url, headers={"Range": "bytes=0-3,10-13"})
    assert both.headers["Content-Type"].startswith("multipart/byteranges")
    assert data[0:4] in both.content and data[10:14] in both.content
    assert len(both.content) == int(both.headers["Content-Length"])


def test_G2_validators(api: TestClient, url: str, data: bytes) -> None:
    head = api.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["Content-Length"]) == len(data)
    etag = head.headers["ETag"]
    assert etag == f'"{hashlib.sha256(data).hexdigest()}"'
    for known in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        response = api.get(url, headers={"If-None-Match": known})
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["ETag"] == etag
    assert api.get(url, headers={"If-None-Match": '"other"'}).status_code == 200
    assert api.get(url, headers={"Range": "bytes=5-", "If-Range": etag}).status_code == 206
    assert api.get(url, headers={"Range": "bytes=5-", "If-Range": '"other"'}).content == data
    assert api.get(url, headers={"Range": "bytes=5-", "If-Range": f"W/{etag}"}).status_code == 200
    assert api.head(url, headers={"Range": "bytes=0-9"}).headers["Content-Length"] == "10"


def test_G2_a_download_goes_on_where_it_broke_off(api: TestClient, url: str, data: bytes) -> None:
    part = api.get(url, headers={"Range": "bytes=0-999"})
    rest = api.get(url, headers={"Range": f"bytes={len(part.content)}-", "If-Range": part.headers["ETag"]})
    assert hashlib.sha256(part.content + rest.content).hexdigest() == part.headers["ETag"].strip('"')


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        (None, "video/mp4"), ("application/binary", "video/mp4"), ("*/*", "video/mp4"), ("video/*", "video/mp4"),
        ("application/octet-stream", "video/mp4"), ("video/webm", "video/webm"), ("image/gif", "image/gif"),
        ("image/webp", "image/webp"), ("audio/*", "audio/mp4"), ("application/json", "application/json"),
        ("text/html,image/avif,image/webp,*/*;q=0.8", "video/mp4"), ("video/mp4;q=0, video/webm", "video/webm"),
        ("image/gif;q=0.2, video/webm;q=0.9", "video/webm"), ("nonsense", "video/mp4"), ("", "video/mp4"),
        ("a" * 8000, "video/mp4"), (";;;,,,", "video/mp4"),
    ],
)  # fmt: skip
def test_G3_what_the_client_accepts(api: TestClient, url: str, header: str | None, kind: str) -> None:
    headers = {"Accept": header} if header is not None else {"Accept": "*/*"}
    response = api.get(url, headers=headers)
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith(kind)
    assert response.headers["Vary"] == "Accept"


def test_G3_nothing_fits(api: TestClient, url: str) -> None:
    for header in ("text/html", "video/mp4;q=0", "*/*;q=0", "video/x-matroska"):
        response = api.get(url, headers={"Accept": header})
        assert response.status_code == 406, header
        assert response.json()["error"]["code"] == "not_acceptable"
    assert accept.choose("video/*;q=nan") in (None, "mp4")
    # The query is a plain word: it counts more than what a browser sends along.
    assert api.get(url, params={"format": "gif"}, headers={"Accept": "text/html"}).status_code == 200


def test_every_variant_is_what_it_says(api: TestClient, url: str) -> None:
    def picture(**query: str) -> Image.Image:
        response = api.get(url, params=query)
        assert response.status_code == 200, response.text
        found = Image.open(io.BytesIO(response.content))
        assert response.headers["Content-Type"] == f"image/{(found.format or '').lower()}"
        return found

    assert picture(variant="thumbnail").size == (64, 64)
    assert picture(variant="spritesheet").size == (256, 256)
    assert picture(variant="last_frame").convert("L").getpixel((32, 32)) == pytest.approx(160, abs=4)
    assert picture(format="gif").n_frames == 9  # type: ignore[attr-defined]
    assert picture(format="webp").n_frames == 9  # type: ignore[attr-defined]
    with av.open(io.BytesIO(api.get(url, params={"format": "webm"}).content)) as container:
        assert container.format.name == "matroska,webm"
        assert sum(1 for _ in container.decode(video=0)) == 17
        assert container.streams.audio[0].codec_context.name == "opus"
    with av.open(io.BytesIO(api.get(url, params={"variant": "audio"}).content)) as container:
        assert not container.streams.video
        assert sum(frame.samples for frame in container.decode(audio=0)) > 10_000
    facts = api.get(url, params={"variant": "metadata"})
    assert facts.json()["plan"]["prompt"] == "a cat"
    assert facts.headers["ETag"] == f'"{hashlib.sha256(facts.content).hexdigest()}"'


def test_a_variant_is_made_once_and_kept_beside_the_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def make(source: Any, out: Path) -> None:
        made.append("gif")
        time.sleep(0.2)
        variants.make_thumbnail(source, out)

    form = variants.Form("video", ".gif", "image/gif", make)
    monkeypatch.setitem(variants.FORMATS, "gif", form)
    with a_place(tmp_path) as place, client_of(app_of(make_service(place))) as api:
        id = making(api)()["id"]  # noqa: A001
        url = f"/v1/videos/{id}/content?format=gif"
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(api.get, [url] * 8))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1
        assert made == ["gif"]
        job = place.store.get("ann", id)
        video = place.shelf.video(job)
        assert video is not None
        kept = [path.name for path in video.parent.iterdir()]
        assert len(kept) == 2, "no leftovers"
        assert answers[0].headers["ETag"].strip('"') in str(kept)
        api.delete(f"/v1/videos/{id}")
        place.sweep()
        assert not video.parent.exists()


def test_sound_of_a_silent_video(api: TestClient) -> None:
    silent = making(api)(audio=False)
    response = api.get(f"/v1/videos/{silent['id']}/content", params={"variant": "audio"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
    assert api.get(f"/v1/videos/{silent['id']}/content", params={"format": "webm"}).status_code == 200


def test_not_ready_and_failed(place: Studio, api: TestClient) -> None:
    with client_of(app_of(make_service(place))) as own:
        place.engine.go.clear()
        id = own.post("/v1/videos", json={"prompt": "x"}).json()["id"]  # noqa: A001
        response = own.get(f"/v1/videos/{id}/content")
        assert (response.status_code, response.json()["error"]["code"]) == (409, "not_ready")
        assert response.headers["x-should-retry"] == "false"
        assert own.get(f"/v1/videos/{id}/content", headers={"Accept": "application/json"}).json()["id"] == id
        place.engine.go.set()
        failed = making(own)(prompt="fail")
        assert failed["error"]["code"] == "failed"
        response = own.get(f"/v1/videos/{failed['id']}/content")
        assert (response.status_code, response.json()["error"]["code"]) == (409, "not_ready")


def test_F8_gone_after_its_time(tmp_path: Path) -> None:
    with a_place(tmp_path, files=0.0) as place, client_of(app_of(make_service(place))) as api:
        video = making(api)()
        job = place.store.get("ann", video["id"])
        path = place.shelf.video(job)
        assert path is not None
        place.sweep()
        assert not path.exists()
        for variant in ("video", "thumbnail", "metadata"):
            response = api.get(f"/v1/videos/{video['id']}/content", params={"variant": variant})
            assert (response.status_code, response.json()["error"]["code"]) == (410, "gone"), variant


def test_work_that_is_done_at_once_stops_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A refused variant can be done before anyone waits for it: once that held the event loop, and with it the server."""

    def at_once(_: Any, work: Callable[..., Path], *given: Any) -> Future[Path]:
        future = Future[Path]()
        future.set_result(work(*given))
        return future

    made: list[Path] = []
    monkeypatch.setattr(ThreadPoolExecutor, "submit", at_once)
    monkeypatch.setattr(variants, "find", lambda *_: None)
    monkeypatch.setattr(variants, "make", lambda video, _: made.append(video) or video)
    maker = Maker()
    askers = [Thread(target=lambda: asyncio.run(maker.make(tmp_path, "webm")), daemon=True) for _ in range(2)]
    for asker in askers:
        asker.start()
        asker.join(10)
        assert not asker.is_alive(), "the lock is held"
    assert made == [tmp_path, tmp_path], "what is done is under way no longer"


def test_C14_a_planted_link_leads_nowhere(place: Studio, made: Make, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the secret")
    with client_of(app_of(make_service(place))) as api:
        for plant in ("file", "folder", "pipe"):
            id = making(api)()["id"]  # noqa: A001
            video = place.shelf.video(place.store.get("ann", id))
            assert video is not None
            if plant == "folder":
                elsewhere = tmp_path / "elsewhere"
                elsewhere.mkdir()
                shutil.move(video, elsewhere / "out.mp4")
                video.parent.rmdir()
                video.parent.symlink_to(elsewhere)
            else:
                video.unlink()
                video.symlink_to(secret) if plant == "file" else os.mkfifo(video)
            for query in ({}, {"variant": "thumbnail"}, {"format": "webm"}):
                response = api.get(f"/v1/videos/{id}/content", params=query)
                assert response.status_code == 410, (plant, query)
                assert "secret" not in response.text


@pytest.mark.parametrize(
    "path",
    [
        "/v1/videos/%2e%2e/content", "/v1/videos/..%2f..%2fetc%2fpasswd/content", "/v1/videos//content",
        "//v1/videos", "/v1/videos/%00/content", "/v1/videos/a%00b", "/V1/VIDEOS", "/v1/videos/", "/v1/videos/x/content/",
        "/v1/videos/" + "a" * 10_240, "/v1/videos/%ff", "/v1/videos?after=%00", "/v1/videos/x%0d%0aSet-Cookie:1",
    ],
)  # fmt: skip
def test_G7_paths(api: TestClient, path: str) -> None:
    response = api.get(path)
    assert response.status_code in (400, 404, 405), response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert "set-cookie" not in response.headers


def test_G8_text_of_clients_stays_text(api: TestClient) -> None:
    evil = '<script>alert(1)</script>"\nX-Evil: 1\r\n\u2028'
    video = making(api)(prompt=evil)
    response = api.get(f"/v1/videos/{video['id']}")
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.json()["prompt"] == evil
    answer = api.get(f"/v1/videos/{video['id']}/content")
    assert answer.headers["Content-Disposition"] == f'inline; filename="{video["id"]}.mp4"'
    error = api.post("/v1/videos", json={"prompt": "x", evil: 1})
    assert error.status_code == 400
    assert error.headers["Content-Type"] == "application/json"
    assert "x-evil" not in error.headers


def test_the_stand_in_video_is_a_video(tmp_path: Path) -> None:
    with av.open(str(a_video(tmp_path))) as container:
        assert container.streams.video[0].frames == 17


def test_F1_no_room_for_another_form(place: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Any, out: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(variants.FORMATS, "gif", variants.Form("video", ".gif", "image/gif", full))
    with client_of(app_of(make_service(place))) as api:
        url = f"/v1/videos/{making(api)()['id']}/content"
        response = api.get(url, params={"format": "gif"})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "storage_full")
        assert "/" not in response.json()["error"]["message"]
        assert api.get(url).status_code == 200
        video = place.shelf.video(place.store.get("ann", url.split("/")[3]))
        assert video is not None and list(video.parent.iterdir()) == [video]
