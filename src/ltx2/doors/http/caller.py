"""Who asks: what the guard found out about a request before its body was read, and what routes demand of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fastapi import Request

from ltx2.doors.http.refusals import Forbidden
from ltx2.spec.errors import Ltx2Error

Scope = Literal["generate", "read", "admin", "metrics"]
SCOPES: tuple[Scope, ...] = ("generate", "read", "admin", "metrics")


class Unauthorized(Ltx2Error):
    """There is no valid token; the same words whatever is wrong with it."""

    code = "unauthorized"
    status = 401

    def __init__(self) -> None:
        super().__init__("no valid token", hint="send it as Authorization: Bearer ltx2_…")


@dataclass(frozen=True)
class Caller:
    """Someone with a token. `name` owns the jobs (the `token` of Ask and Job); `key` is the id of the token itself.

    `limit` is the most open jobs, `rpm` the most new jobs a minute (both at most what the service's settings say); `running`
    the most jobs at once and `megapixel_frames` the most in 24 hours (None: any). A `link` is the bearer of a signed
    link, who may read that one file.
    """

    name: str
    scopes: frozenset[str] = frozenset(SCOPES)
    limit: int | None = None
    rpm: int | None = None
    key: str = ""
    link: bool = False
    running: int | None = None
    megapixel_frames: float | None = None


def tightest(own: int | None, most: int) -> int:
    """What a token may have of what the service's settings allow everybody."""
    return most if own is None else min(own, most)


def caller_of(request: Request) -> Caller:
    """The caller that the guard let in. Raises Unauthorized when there is none."""
    found = request.scope.get("state", {}).get("caller")
    if not isinstance(found, Caller):
        raise Unauthorized
    return found


def allowed(scope: Scope) -> Callable[[Request], Caller]:
    """A dependency: the caller, if its token has this scope. Raises Forbidden."""

    async def check(request: Request) -> Caller:
        caller = caller_of(request)
        if scope not in caller.scopes:
            raise Forbidden(f"this token has no scope {scope!r}", hint="ltx2 tokens add --scopes " + scope)
        return caller

    return check  # type: ignore[return-value]
