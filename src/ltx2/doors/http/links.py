"""Signed links to media, for players that cannot send a header: for one token's one file, until a time."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Mapping
from urllib.parse import urlencode

from ltx2.doors.http.refusals import BadLink

SECONDS = 3600
PATH = re.compile(r"/v1/videos/[A-Za-z0-9._-]{1,64}/(content|events)")
BOUND = ("variant", "format")
KNOWN = frozenset({*BOUND, "by", "exp", "sig"})


def sign(secret: bytes, path: str, by: str, bound: Mapping[str, str] | None = None, seconds: int = SECONDS) -> str:
    """The path (below the root path) with a query that lets anyone read it for so long, in the name of token `by`.

    `bound` holds `variant` and `format`; the link is good for no others.
    """
    query = {**(bound or {}), "by": by, "exp": str(int(time.time()) + seconds)}
    return f"{path}?{urlencode(query | {'sig': _signature(secret, path, query)})}"


def is_signed(query: Mapping[str, str]) -> bool:
    """Whether a request claims to be a signed link."""
    return "sig" in query


def reader(secret: bytes, method: str, path: str, query: Mapping[str, str]) -> str:
    """The token in whose name a signed link reads.

    Raises BadLink when the path, a parameter or the signature is not what was signed, or its time is over.
    """
    fits = method in ("GET", "HEAD") and PATH.fullmatch(path) and query.keys() <= KNOWN
    expected = _signature(secret, path, query)
    if not hmac.compare_digest(expected.encode(), query.get("sig", "").encode()) or not fits:
        raise BadLink("the link was changed, or never given out")
    if int(query["exp"]) < time.time():
        raise BadLink("the time of the link is over", hint="ask for the video again: its urls are fresh")
    return query["by"]


def _signature(secret: bytes, path: str, query: Mapping[str, str]) -> str:
    # Every part with its length, so that no two questions look the same.
    parts = [path, *(query.get(name, "") for name in (*BOUND, "by", "exp"))]
    text = "".join(f"{len(part.encode())}:{part}" for part in parts)
    digest = hmac.new(secret, b"ltx2 link\n" + text.encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
