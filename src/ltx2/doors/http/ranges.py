"""Range headers of RFC 9110: what a client wants of a file, in bytes."""

from __future__ import annotations

import re

MAX_RANGES = 16
MAX_HEADER = 1024
ONE = re.compile(r"[ \t]*(\d{0,18})-(\d{0,18})[ \t]*", re.ASCII)


def wanted(header: str, size: int) -> list[tuple[int, int]] | None:
    """The (first, last) bytes of a file of `size` bytes that a Range header asks for and that there are.

    None: the header is no range of bytes, or of too many pieces, and the whole file is the answer. Empty: nothing of
    what it asks for is there.
    """
    unit, equals, text = header.partition("=")
    if not equals or unit.strip().lower() != "bytes" or len(text) > MAX_HEADER or text.count(",") >= MAX_RANGES:
        return None
    found: list[tuple[int, int]] = []
    for part in text.split(","):
        match = ONE.fullmatch(part)
        if match is None or match[1] == match[2] == "":
            return None
        if match[1] and match[2] and int(match[2]) < int(match[1]):
            return None
        span = _span(match[1], match[2], size)
        if span is not None:
            found.append(span)
    return found


def _span(first: str, last: str, size: int) -> tuple[int, int] | None:
    if not first:
        length = min(int(last), size)
        return (size - length, size - 1) if length else None
    if int(first) >= size:
        return None
    return int(first), min(int(last), size - 1) if last else size - 1
