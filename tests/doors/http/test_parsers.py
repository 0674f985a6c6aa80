"""What reads foreign text: whatever comes, it is understood or refused, and never breaks."""

from __future__ import annotations

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from ltx2.doors.http import accept, body, inputs, links, ranges
from ltx2.doors.http.schemas import read_asked
from ltx2.spec.errors import RefusedRequest

quick = settings(max_examples=60, deadline=None, database=None, derandomize=True)
NAMES = st.text(alphabet="ab[]0", max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@quick
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_json(data: bytes) -> None:
    with contextlib.suppress(RefusedRequest):
        assert isinstance(body.parse_json(data), dict)


@quick
@given(st.lists(st.tuples(NAMES, st.text(max_size=4)), max_size=6))
def test_names_of_forms(pairs: list[tuple[str, str]]) -> None:
    with contextlib.suppress(RefusedRequest):
        found = body.fields_of(pairs)
        assert len(found) <= len(pairs)


@quick
@given(
    st.dictionaries(st.sampled_from(["prompt", "seconds", "fps", "size", "frame_images", "user", "x"]), JSON),
    st.booleans(),
)
def test_fields(fields: dict[str, object], lenient: bool) -> None:
    with contextlib.suppress(RefusedRequest):
        asked = read_asked(body.Body({"prompt": "x"} | fields, lenient))
        assert asked.prompt


@quick
@given(st.text(alphabet="bytes=0123456789-, ", max_size=30), st.integers(0, 100))
def test_ranges(header: str, size: int) -> None:
    found = ranges.wanted(header, size)
    assert found is None or all(0 <= first <= last < size for first, last in found)


@quick
@given(st.text(alphabet="video/mp4*;q=0.1,webm gifjsona", max_size=40))
def test_accept(header: str) -> None:
    assert accept.choose(header) in {*accept.OFFERED.values(), None}


@quick
@given(st.dictionaries(st.sampled_from(["by", "exp", "sig", "variant"]), st.text(max_size=8)))
def test_links(query: dict[str, str]) -> None:
    with contextlib.suppress(links.BadLink):
        raise AssertionError(links.reader(b"secret", "GET", "/v1/videos/x/content", query))


@quick
@given(st.text(max_size=30).map("data:".__add__) | st.text(max_size=30))
def test_data_urls(text: str) -> None:
    with contextlib.suppress(RefusedRequest):
        assert isinstance(inputs.from_data_url("image", text), bytes)
