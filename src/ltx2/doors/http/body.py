"""From the bytes of a request to plain fields and at most one file: strict JSON, or the forms that SDKs send."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from ltx2.doors.http.refusals import Conflicting, ForeignBody, TooLarge, TooSlow
from ltx2.spec.errors import RefusedRequest

MAX_JSON = 64 * 1024
MAX_FORM = 32 * 1024 * 1024
# A data URL may stand in a field of a form; the file that it stands for is limited later, by its own bytes.
MAX_PART = 28 * 1024 * 1024
MAX_PARTS = 100
MAX_DEPTH = 4
MAX_NESTING = 8
MAX_DIGITS = 20
MAX_BOUNDARY = 70  # RFC 2046
READ_SECONDS = 30.0
NAME = re.compile(r"([^\[\]]{1,64})((?:\[[^\[\]]{0,64}\])*)")
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Body:
    """The fields as they came. `lenient`: all values are text, as a form sends them. `file`: the name of the part that
    carried a file, and its bytes; what the client calls the file is ignored."""

    fields: dict[str, Any]
    lenient: bool = False
    file: tuple[str, bytes] | None = field(default=None, repr=False)


async def read_body(request: Request, most: int = MAX_JSON) -> Body:
    """Read JSON (up to 64 KiB, or `most`) or a multipart form (up to 32 MiB, one file).

    Raises RefusedRequest (400), TooSlow (408), TooLarge (413) or ForeignBody (415).
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ForeignBody("the body is compressed", knob="Content-Encoding", hint="send it as it is")
    try:
        async with asyncio.timeout(READ_SECONDS):
            if kind == "application/json":
                return Body(parse_json(await _whole(request, most)))
            if kind == "multipart/form-data":
                return await _read_form(request)
    except TimeoutError:
        raise TooSlow(f"the body did not arrive within {READ_SECONDS:g} seconds") from None
    except ClientDisconnect:
        raise RefusedRequest("the body ended early") from None
    raise ForeignBody(
        "the body is neither JSON nor a form", knob="Content-Type", hint="application/json or multipart/form-data"
    )


async def _whole(request: Request, most: int) -> bytes:
    return b"".join([chunk async for chunk in _limited(request, most)])


async def _limited(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > most:
            raise TooLarge(f"the body has more than {most} bytes", hint="send pictures as multipart/form-data")
        yield chunk


def parse_json(data: bytes) -> dict[str, Any]:
    """One JSON object, as RFC 8259 has it: UTF-8 without a mark, no NaN, no key twice. Raises RefusedRequest."""
    try:
        text = data.decode()
        found: Any = json.loads(text, object_pairs_hook=_object, **NUMBERS)
    except UnicodeDecodeError:
        raise RefusedRequest("the body is not UTF-8") from None
    except RecursionError:
        raise RefusedRequest("the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise RefusedRequest(f"the body is not JSON: {error.msg} at byte {error.pos}") from None
    except ValueError as error:  # raised by the hooks, and by Python for numbers of thousands of digits
        raise RefusedRequest(f"the body cannot be used: {clip(str(error), 120)}") from None
    if not isinstance(found, dict):
        raise RefusedRequest("the body is not a JSON object")
    _check_text(found)
    return cast("dict[str, Any]", found)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set[str]()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"{clip(twice)} stands twice")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{clip(text)} is too large")
    return value


def _check_text(value: Any, depth: int = 0) -> None:
    """Refuse half of a surrogate pair anywhere, which no answer could repeat, and what no field is as deep as."""
    if depth > MAX_NESTING:
        raise RefusedRequest("the body is nested too deeply")
    if isinstance(value, str):
        # That a text is ASCII is known; to search a picture of 20 MiB would take a moment, in which nobody is answered.
        if not value.isascii() and SURROGATE.search(value):
            raise RefusedRequest("the body has half of a surrogate pair, which is no character")
    elif isinstance(value, dict):
        for key, part in cast("dict[str, Any]", value).items():
            _check_text(key)
            _check_text(part, depth + 1)
    elif isinstance(value, list):
        for part in cast("list[Any]", value):
            _check_text(part, depth + 1)


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"{clip(text)} is too large")
    return int(text)


# What Python's parser does with numbers, and JSON does not have.
NUMBERS: dict[str, Any] = {"parse_constant": _constant, "parse_float": _finite, "parse_int": _integer}


async def _read_form(request: Request) -> Body:
    boundary = re.search(r'boundary="?([^";]*)', request.headers["content-type"])
    if boundary is None or not 0 < len(boundary[1]) <= MAX_BOUNDARY:
        raise RefusedRequest(f"the form needs a boundary of 1 to {MAX_BOUNDARY} characters", knob="Content-Type")
    parser = MultiPartParser(
        request.headers,
        _limited(request, MAX_FORM),
        max_files=1,
        max_fields=MAX_PARTS,
        max_part_size=MAX_PART,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RefusedRequest(f"the form cannot be read: {clip(error.message, 120)}") from None
    try:
        texts = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
        files = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
        return Body(fields_of(texts), lenient=True, file=(files[0][0], await files[0][1].read()) if files else None)
    finally:
        await form.close()


def fields_of(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Nested fields from the names that SDKs give them: `a`, `a[b]`, `a[]`, `a[b][]`. Raises RefusedRequest."""
    tree: dict[str, Any] = {}
    for name, value in pairs:
        _plant(tree, _steps(name), value, name)
    found = {key: _listed(part) for key, part in tree.items()}
    _check_text(found)
    return found


def _steps(name: str) -> list[str]:
    match = NAME.fullmatch(name)
    steps = [] if match is None else [match[1], *re.findall(r"\[([^\[\]]*)\]", match[2])]
    if not 0 < len(steps) <= MAX_DEPTH:
        raise RefusedRequest(f"{clip(name)}: no field has such a name", knob=clip(name))
    return steps


def _plant(tree: dict[str, Any], steps: list[str], value: str, name: str) -> None:
    for index, step in enumerate(steps[:-1]):
        key = step or _element(tree, steps[index + 1 :])
        below = tree.setdefault(key, {})
        if not isinstance(below, dict):
            raise Conflicting(f"{clip(name)} is both a value and a group", knob=clip(name))
        tree = cast("dict[str, Any]", below)
    key = steps[-1] or str(len(tree))
    if key in tree:
        raise Conflicting(f"{clip(name)} stands twice", knob=clip(name))
    tree[key] = value


def _element(tree: Mapping[str, Any], rest: list[str]) -> str:
    """Which element of a list of objects a field belongs to: the last one, or the next when that has it already."""
    last: Any = tree.get(str(len(tree) - 1), {})
    for step in rest:
        last = cast("dict[str, Any]", last).get(step) if isinstance(last, dict) else None
    return str(len(tree)) if not tree or last is not None else str(len(tree) - 1)


def _listed(value: Any) -> Any:
    """Groups whose keys count up from 0 are lists."""
    if not isinstance(value, dict):
        return value
    group = cast("dict[str, Any]", value)
    parts = {key: _listed(part) for key, part in group.items()}
    if parts and list(parts) == [str(index) for index in range(len(parts))]:
        return list(parts.values())
    return parts


def clip(text: str, most: int = 64) -> str:
    """Text from a client, short enough to be repeated to it."""
    return text if len(text) <= most else text[: most - 1] + "…"
