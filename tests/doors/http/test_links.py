"""Signed links (row A9)."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from starlette.testclient import TestClient

from ltx2.doors.http import links
from ltx2.doors.http.refusals import BadLink
from tests.doors.http.fixtures import SECRET, making

PATH = "/v1/videos/video_1/content"


def parts(link: str) -> tuple[str, dict[str, str]]:
    split = urlsplit(link)
    return split.path, dict(parse_qsl(split.query))


def test_A9_a_link_is_good_for_what_was_signed() -> None:
    path, query = parts(links.sign(SECRET, PATH, "ann", {"variant": "thumbnail"}))
    assert links.reader(SECRET, "GET", path, query) == "ann"
    assert links.reader(SECRET, "HEAD", path, query) == "ann"
    changes: list[dict[str, str]] = [
        {"variant": "video"}, {"format": "gif"}, {"exp": str(int(query["exp"]) + 1)}, {"by": "bob"}, {"sig": "x"},
        {"sig": ""}, {"sig": "ü"}, {"index": "0"}, {"exp": "soon"},
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(BadLink):
            links.reader(SECRET, "GET", path, query | change)
    for name in query:
        with pytest.raises(BadLink):
            links.reader(SECRET, "GET", path, {k: v for k, v in query.items() if k != name})
    for method, other in (
        ("POST", path),
        ("DELETE", path),
        ("GET", "/v1/videos/video_2/content"),
        ("GET", "/v1/videos"),
    ):
        with pytest.raises(BadLink):
            links.reader(SECRET, method, other, query)
    with pytest.raises(BadLink):
        links.reader(b"another secret", "GET", path, query)


def test_A9_a_link_ends() -> None:
    path, query = parts(links.sign(SECRET, PATH, "ann", seconds=-1))
    with pytest.raises(BadLink, match="over"):
        links.reader(SECRET, "GET", path, query)


def test_A9_moving_characters_between_parts_does_not_help() -> None:
    path, query = parts(links.sign(SECRET, PATH, "ann", {"variant": "video"}))
    with pytest.raises(BadLink):
        links.reader(SECRET, "GET", path, query | {"variant": "vide", "format": "o"})


def test_A9_through_the_service(shared_api: TestClient) -> None:
    video: dict[str, Any] = making(shared_api)()
    stranger = TestClient(shared_api.app, "http://localhost")
    signed = video["urls"]["signed_video"]
    assert stranger.get(video["urls"]["content"]).status_code == 401
    for _ in range(2):
        assert stranger.get(signed).headers["Content-Type"] == "video/mp4"
    path, query = parts(signed)
    for change in ({"variant": "thumbnail"}, {"exp": "9999999999"}, {"by": "bob"}):
        response = stranger.get(f"{path}?{urlencode(query | change)}")
        assert response.status_code == 403, response.text
    other = path.replace(video["id"], "video_other")
    assert stranger.get(f"{other}?{urlencode(query)}").status_code == 403
    late = links.sign(SECRET, path, "ann", {"variant": "video"}, seconds=-1)
    assert stranger.get(late).status_code == 403
