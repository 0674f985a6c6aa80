"""Pictures from clients (rows C1, C5 to C8, C10 to C12): sniffed, decoded elsewhere, stored under their checksum."""

from __future__ import annotations

import base64
import io
import socket
import struct
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from ltx2.doors.http import decoder, inputs
from ltx2.doors.http.refusals import ForeignMedia, InvalidMedia
from ltx2.spec.service import ServiceSettings
from tests.doors.http.fixtures import app_of, client_of, make_service
from tests.doors.http.studio import Studio


def picture(
    kind: str = "PNG", size: tuple[int, int] = (64, 48), color: Any = "red", mode: str = "RGB", **save: Any
) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, color).save(out, kind, **save)
    return out.getvalue()


def read(data: bytes) -> Image.Image:
    found = Image.open(io.BytesIO(inputs.plain_png(data, "image")))
    assert (found.format, found.mode) == ("PNG", "RGB")
    assert not found.info, "nothing but pixels is kept"
    return found


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="module")
def api(shared_api: TestClient) -> TestClient:
    return shared_api


@pytest.fixture(scope="module")
def place(shared_place: Studio) -> Studio:
    return shared_place


def post_file(api: TestClient, data: bytes, name: str = "x.png", field: str = "input_reference") -> Any:
    return api.post("/v1/videos", data={"prompt": "a cat"}, files={field: (name, data, "image/png")})


PNG = picture()


@pytest.mark.parametrize("way", ["file", "image file", "data URL", "object", "bracket", "frame_images", "image"])
def test_every_way_to_bring_a_picture(api: TestClient, place: Studio, way: str) -> None:
    url = data_url(PNG)
    if way in ("file", "image file"):
        response = post_file(api, PNG, field="input_reference" if way == "file" else "image")
    elif way == "bracket":
        fields = [("prompt", (None, "a cat")), ("input_reference[image_url]", (None, url))]
        response = api.post("/v1/videos", files=fields)
    else:
        body: dict[str, Any] = {
            "data URL": {"input_reference": url},
            "object": {"input_reference": {"image_url": {"url": url}}},
            "frame_images": {"frame_images": [{"type": "image_url", "image_url": {"url": url}}]},
            "image": {"image": url},
        }[way]
        response = api.post("/v1/videos", json={"prompt": "a cat"} | body)
    assert response.status_code == 200, response.text
    job = place.store.get("ann", response.json()["id"])
    stored = Path(job.plan["image"])
    assert stored.parent == place.folder / "inputs"
    assert job.request["first_frame"] == stored.name
    assert Image.open(stored).size == (64, 48)
    assert str(place.folder) not in response.text
    assert str(place.folder) not in api.get(f"/v1/videos/{job.id}").text


def test_pictures_that_contradict_or_are_elsewhere(api: TestClient) -> None:
    url = data_url(PNG)

    def refused(code: str, **fields: Any) -> None:
        response = api.post("/v1/videos", json={"prompt": "x"} | fields)
        assert response.json()["error"]["code"] == code, response.text
        assert response.status_code == 400

    refused("conflicting_parameters", image=url, input_reference=url)
    refused("not_offered", input_reference={"file_id": "file_1"})
    refused("not_offered", input_reference={})
    refused("not_offered", frame_images=[{"image_url": {"url": url}, "frame_type": "last_frame"}])
    refused("url_not_allowed", image="https://example.com/x.png")
    refused("url_not_allowed", image="http://127.0.0.1/x.png")
    refused("url_not_allowed", image="file:///etc/passwd")


def test_a_picture_that_cannot_be_read_is_refused_under_the_name_of_its_field(api: TestClient) -> None:
    frames = [{"type": "image_url", "image_url": {"url": data_url(b"hello")}}]
    for name, value in (
        ("image", data_url(b"hello")),
        ("input_reference", data_url(PNG[:80])),
        ("frame_images", frames),
    ):
        error = api.post("/v1/videos", json={"prompt": "x", name: value}).json()["error"]
        assert error["param"] == name and error["message"].startswith(f"{name}: ")


@pytest.fixture
def canary() -> Iterator[tuple[int, list[str]]]:
    """A listener on this machine that must hear nothing."""
    heard: list[str] = []
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    stop = threading.Event()

    def listen() -> None:
        while not stop.is_set():
            try:
                heard.append(str(listener.accept()[1]))
            except TimeoutError:
                continue

    thread = threading.Thread(target=listen)
    thread.start()
    yield listener.getsockname()[1], heard
    stop.set()
    thread.join()
    listener.close()


def test_C1_no_internal_address_is_asked(place: Studio, canary: tuple[int, list[str]]) -> None:
    port, heard = canary
    hosts = (
        "127.0.0.1", "[::1]", "0.0.0.0", "169.254.169.254", "[fd00::1]", "10.0.0.1", "100.64.0.1", "192.0.0.192",
        "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "2130706433", "0x7f.1", "localhost.", "a@127.0.0.1", "localhost",
    )  # fmt: skip
    settings = ServiceSettings(min_free_gib=0, url_inputs=True)
    with client_of(app_of(make_service(place, settings=settings))) as api:
        for host in hosts:
            for url in (f"https://{host}/x.png", f"https://{host}:{port}/x.png", f"http://{host}:{port}/x.png"):
                response = api.post("/v1/videos", json={"prompt": "x", "image": url})
                assert response.status_code == 400, url
                assert response.json()["error"]["code"] == "url_not_allowed", url
    assert not heard


def test_a_URL_is_fetched_where_that_is_allowed(place: Studio) -> None:
    class Web:
        def fetch(self, url: str, limit: int) -> bytes:
            assert (url, limit) == ("https://example.com/x.png", inputs.MAX_IMAGE)
            return PNG

    settings = ServiceSettings(min_free_gib=0, url_inputs=True)
    with client_of(app_of(make_service(place, settings=settings, outside=Web()))) as api:
        response = api.post("/v1/videos", json={"prompt": "x", "image": "https://example.com/x.png"})
        assert response.status_code == 200, response.text


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that says that it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 10_000_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_C5_bombs_are_refused_by_their_headers() -> None:
    wide_jpeg = bytearray(picture("JPEG"))
    at = wide_jpeg.index(b"\xff\xc0")
    wide_jpeg[at + 5 : at + 9] = struct.pack(">HH", 65_000, 65_000)
    webp = picture("WEBP", (16_383, 64))
    for data in (
        bomb(50_000, 50_000),
        bomb(8193, 100),
        bytes(wide_jpeg),
        webp,
        picture(size=(8000, 16)),
        picture(size=(8, 8)),
    ):
        begun = time.monotonic()
        with pytest.raises(InvalidMedia):
            inputs.plain_png(data, "image")
        assert time.monotonic() - begun < 10
    with pytest.raises(ForeignMedia):
        inputs.plain_png(picture("GIF"), "image")


def test_C5_only_the_first_picture_of_many() -> None:
    frames = [Image.new("RGB", (32, 32), (n % 255, 0, 0)) for n in range(200)]
    out = io.BytesIO()
    frames[5].save(out, "WEBP", save_all=True, append_images=frames, lossless=True)
    assert read(out.getvalue()).getpixel((0, 0)) == (5, 0, 0)


@pytest.mark.parametrize(
    "data",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"8BPS\0\1", b"SIMPLE  =", b"II*\0",
        b"%PDF-1.7", b"\0\0\1\0", b"\0\0\0\x18ftypheic", b"\0\0\0\x0cjP  \r\n\x87\n", b"GIF89a", b"BM", b"", b"x",
        picture("GIF"), picture("BMP"), picture("TIFF"), picture("ICO"), picture("JPEG2000"),
    ],
)  # fmt: skip
def test_C6_other_kinds_whatever_they_are_called(api: TestClient, data: bytes) -> None:
    response = post_file(api, data, "x.png")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "unsupported_media")


def test_C7_broken_ones(api: TestClient) -> None:
    for data in (PNG[: len(PNG) // 2], PNG[:20], picture("JPEG")[:200], picture("WEBP")[:30], PNG[:30] + b"x" * 500):
        response = post_file(api, data)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_media")
        message = response.json()["error"]["message"]
        assert message in ("input_reference: the picture cannot be read",)


def test_C7_odd_ones_are_upright_RGB() -> None:
    assert read(picture("JPEG", mode="CMYK", color=(0, 0, 0, 0))).getpixel((5, 5)) == (255, 255, 255)
    assert read(picture(mode="I;16", color=40_000)).getpixel((5, 5)) == (156, 156, 156)
    assert read(picture(mode="RGBA", color=(255, 0, 0, 0))).getpixel((5, 5)) == (255, 255, 255)
    assert read(picture(mode="LA", color=(0, 255))).getpixel((5, 5)) == (0, 0, 0)
    assert read(picture(mode="1", color=1)).getpixel((5, 5)) == (255, 255, 255)
    palette = Image.new("P", (64, 48), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    out = io.BytesIO()
    palette.save(out, "PNG", transparency=0)
    assert read(out.getvalue()).getpixel((5, 5)) == (10, 20, 30)
    marked = Image.new("RGB", (64, 32), "black")
    marked.putpixel((0, 0), (255, 255, 255))
    for orientation, (size, corner) in {
        1: ((64, 32), (0, 0)), 2: ((64, 32), (63, 0)), 3: ((64, 32), (63, 31)), 4: ((64, 32), (0, 31)),
        5: ((32, 64), (0, 0)), 6: ((32, 64), (31, 0)), 7: ((32, 64), (31, 63)), 8: ((32, 64), (0, 63)),
    }.items():  # fmt: skip
        exif = Image.Exif()
        exif[0x0112] = orientation
        out = io.BytesIO()
        marked.save(out, "PNG", exif=exif)
        found = Image.open(io.BytesIO(decoder.decode(out.getvalue(), "PNG")))
        assert (found.size, found.getpixel(corner)) == (size, (255, 255, 255)), orientation


def test_C7_large_ones_are_made_smaller() -> None:
    found = read(picture("JPEG", (5000, 4000), "blue"))
    assert found.width * found.height <= decoder.KEPT_PIXELS + 5000
    assert found.width / found.height == pytest.approx(1.25, rel=0.01)


def test_C8_what_hides_behind_or_inside_a_picture() -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("evil", "evil")
    assert b"evil" not in inputs.plain_png(PNG + archive.getvalue(), "image")
    exif = Image.Exif()
    exif[0x010E] = "evil" * 10_000
    assert b"evil" not in inputs.plain_png(picture("JPEG", exif=exif), "image")
    assert read(picture("PNG", icc_profile=b"x" * 500_000)).size == (64, 48)
    # Five kilobytes that become five megabytes of colour profile: not worth a decoder's memory.
    with pytest.raises(InvalidMedia):
        read(picture("PNG", icc_profile=b"x" * 5_000_000))


@pytest.mark.parametrize(
    "name", ["../../etc/cron.d/x", "C:\\x", "a\0b", "x" * 5000, ".htaccess", "\u202egnp.x", "", "/etc/passwd"]
)
def test_C10_names_of_files_are_ignored(api: TestClient, place: Studio, name: str) -> None:
    quoted = name.replace("\\", "\\\\").replace('"', '\\"').encode()
    body = (
        b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n--b\r\nContent-Disposition: form-data; '
        b'name="input_reference"; filename="' + quoted + b'"\r\n\r\n' + PNG + b"\r\n--b--\r\n"
    )
    response = api.post("/v1/videos", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert response.status_code in (200, 400), response.text
    stored = [path.name for path in (place.folder / "inputs").iterdir()]
    assert all(len(name) == 68 and name.endswith(".png") for name in stored), stored


def test_C11_data_URLs(api: TestClient) -> None:
    def status(url: str, form: bool = False) -> tuple[int, str]:
        if form:
            response = api.post("/v1/videos", files=[("prompt", (None, "x")), ("image", (None, url))])
        else:
            response = api.post("/v1/videos", json={"prompt": "x", "image": url})
        return response.status_code, (response.json()["error"] or {}).get("code", "")

    assert status(data_url(PNG, "image/jpeg")) == (200, ""), "the bytes decide, not the name"
    assert status("data:image/png;base64,####") == (400, "invalid_request")
    assert status("data:image/png,hello") == (400, "invalid_request")
    assert status("data:,") == (400, "invalid_request")
    assert status(data_url(PNG, "text/html")) == (400, "unsupported_media")
    assert status(data_url(b"hello")) == (400, "unsupported_media")
    assert status("data:image/png;base64," + "A" * 70_000) == (413, "request_too_large")
    # Room for five of these in a form, and one is too much for a picture.
    assert status("data:image/png;base64," + "A" * (28 << 20), form=True)[0] in (400, 413)
    assert status("data:image/png;base64," + "A" * (100 << 20), form=True)[0] == 413


@pytest.mark.parametrize(
    "death",
    ["import os; os.kill(os.getpid(), 11)", "import os; os.abort()", "raise MemoryError", "print('not a picture')"],
)
def test_C12_a_decoder_that_dies(death: str) -> None:
    with pytest.raises(InvalidMedia, match="cannot be read"):
        inputs.plain_png(PNG, "image", (sys.executable, "-c", death))


def test_C12_a_decoder_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "DECODE_SECONDS", 0.3)
    with pytest.raises(InvalidMedia, match="too long"):
        inputs.plain_png(PNG, "image", (sys.executable, "-c", "import time; time.sleep(60)"))


def test_C12_memory_is_limited() -> None:
    limit = "m['resource'].setrlimit(m['resource'].RLIMIT_AS, (m['MEMORY'],) * 2)"
    hungry = f"import runpy; m = runpy.run_path({decoder.__file__!r}); {limit}; b'x' * 2**31"
    with pytest.raises(InvalidMedia):
        inputs.plain_png(PNG, "image", (sys.executable, "-c", hungry))


def test_equal_pictures_are_stored_once_and_forgotten_one_day(tmp_path: Path) -> None:
    one, two = (inputs.store("image", data, tmp_path) for data in (PNG, picture("WEBP", lossless=True)))
    assert one == two
    assert list((tmp_path / "inputs").iterdir()) == [one]
    assert inputs.forget(tmp_path, 60) == 0
    assert inputs.forget(tmp_path, -60) == 1
    assert inputs.forget(tmp_path, -60) == 0


def test_a_link_in_the_place_of_a_picture_is_replaced(tmp_path: Path) -> None:
    place = inputs.store("image", PNG, tmp_path)
    place.unlink()
    (tmp_path / "secret").write_text("the secret")
    place.symlink_to(tmp_path / "secret")
    assert inputs.store("image", PNG, tmp_path) == place
    assert not place.is_symlink()
    assert (tmp_path / "secret").read_text() == "the secret"


def test_F1_no_room_for_a_picture(api: TestClient, place: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = sorted((place.folder / "inputs").iterdir()) if (place.folder / "inputs").is_dir() else []
    with monkeypatch.context() as patch:
        patch.setattr(inputs.os, "fsync", full)
        response = post_file(api, picture(color="green"))
    assert (response.status_code, response.json()["error"]["code"]) == (503, "storage_full")
    assert sorted((place.folder / "inputs").iterdir()) == before, "nothing is left half-written"
    assert post_file(api, picture(color="green")).status_code == 200
