"""Tokens: who may ask, in the database of the queue. Only a digest of a token is kept; the token is shown once."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, and_, insert, or_, select, update

from ltx2.jobs.database import Database, clock
from ltx2.jobs.tables import TOKENS
from ltx2.spec.errors import RefusedRequest

PREFIX = "ltx2"
LETTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
ID_LETTERS, SECRET_LETTERS, CHECK_LETTERS = 10, 43, 6  # 43 letters of 62 hold 256 bits
SCOPES = ("generate", "read", "admin", "metrics")
USUAL = ("generate", "read")
WEBHOOK_PREFIX = "whsec_"
MAX_NAME = 64
LIMITS = ("limit", "rpm", "running", "megapixel_frames")


@dataclass(frozen=True)
class Token:
    """One token as it is kept. `name` owns jobs; several tokens may have it while one replaces another.

    `limit` is the most open jobs, `rpm` the most new jobs a minute (None: what the service says); `running` the most
    jobs at once, `megapixel_frames` the most in 24 hours (None: no limit). Times are seconds since 1970.
    `webhook_secret` signs the webhooks of the name's jobs.
    """

    id: str
    name: str
    digest: str = field(repr=False)
    scopes: tuple[str, ...]
    limit: int | None
    rpm: int | None
    webhook_secret: str = field(repr=False)
    created: float
    expires: float | None
    revoked: float | None
    running: int | None = None
    megapixel_frames: float | None = None

    def is_live(self, now: float) -> bool:
        """Whether it opens anything at that time."""
        return self.revoked is None and (self.expires is None or now < self.expires)

    def fits(self, secret: str) -> bool:
        """Whether this is its secret; takes the same time whatever is wrong."""
        return hmac.compare_digest(self.digest, digest_of(secret))


@dataclass(frozen=True)
class Grant:
    """What a new token may do; `seconds` is how long it lives (None: until revoked)."""

    scopes: tuple[str, ...] = USUAL
    limit: int | None = None
    rpm: int | None = None
    seconds: float | None = None
    running: int | None = None
    megapixel_frames: float | None = None

    @property
    def limits(self) -> dict[str, int | float | None]:
        """The limits by the names that they have in the table of tokens."""
        return {name: getattr(self, name) for name in LIMITS}


def digest_of(secret: str) -> str:
    """SHA-256; a secret of 256 random bits needs no slow hash."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def write(id: str, secret: str) -> str:  # noqa: A002
    """The token as its owner gets it, with a check that tells a typing error from a wrong token."""
    body = f"{PREFIX}_{id}_{secret}"
    return body + _check(body)


def read(text: str) -> tuple[str, str] | None:
    """Id and secret of a token; None for what cannot be one."""
    parts = text.split("_")
    if len(parts) != 3 or parts[0] != PREFIX or len(parts[1]) != ID_LETTERS:
        return None
    if len(parts[2]) != SECRET_LETTERS + CHECK_LETTERS or not (
        text.isascii() and hmac.compare_digest(_check(text[:-6]), text[-6:])
    ):
        return None
    return parts[1], parts[2][:-CHECK_LETTERS]


def _check(text: str) -> str:
    number, letters = binascii.crc32(text.encode()), ""
    for _ in range(CHECK_LETTERS):
        number, rest = divmod(number, len(LETTERS))
        letters = LETTERS[rest] + letters
    return letters


class Tokens:
    """The tokens of one database. Methods raise StoreUnavailable when it stays away."""

    def __init__(self, database: Database):
        self.database = database

    def all(self) -> Sequence[Token]:
        """Every token that ever was, the oldest first."""
        return self.database.read(_all)

    def live(self) -> Sequence[Token]:
        """The tokens that are neither revoked nor expired, the newest first."""
        return self.database.read(_live)

    def add(self, name: str, grant: Grant) -> tuple[Token, str]:
        """A new token, and its text, which is kept nowhere. Raises RefusedRequest when the name has a live token."""
        _check_grant(name, grant)
        return self._make(_add, name, grant)

    def rotate(self, name: str, grace: float) -> tuple[Token, str]:
        """Another token of a name, with what the newest may do; the others end after `grace` seconds.

        Raises RefusedRequest when the name has no live token.
        """
        return self._make(_rotate, name, grace)

    def revoke(self, name: str) -> int:
        """End the live tokens of a name, or the one with that id; returns how many. Raises RefusedRequest for none."""
        return self.database.write(_revoke, name)

    def _make(self, act: Any, name: str, how: Any) -> tuple[Token, str]:
        # Drawn before the transaction: when the answer of its commit is lost, the next try finds the row.
        id, secret = _draw(ID_LETTERS), _draw(SECRET_LETTERS)  # noqa: A001
        hook = WEBHOOK_PREFIX + base64.b64encode(secrets.token_bytes(24)).decode()
        token = self.database.write(act, name, how, {"id": id, "digest": digest_of(secret), "webhook_secret": hook})
        return token, write(id, secret)


def _draw(letters: int) -> str:
    return "".join(secrets.choice(LETTERS) for _ in range(letters))


def _check_grant(name: str, grant: Grant) -> None:
    if (
        not 0 < len(name) <= MAX_NAME
        or not all(letter.isalnum() or letter in "._-" for letter in name)
        or not name.isascii()
    ):
        raise RefusedRequest(f"name: up to {MAX_NAME} letters, digits, dots, dashes and underscores", knob="name")
    unknown = sorted(set(grant.scopes) - set(SCOPES))
    if unknown or not grant.scopes:
        raise RefusedRequest(
            f"scopes: there is no {', '.join(unknown) or 'empty list'}",
            knob="scopes",
            hint="any of " + ",".join(SCOPES),
        )
    for knob, number in (*grant.limits.items(), ("expires", grant.seconds)):
        if number is not None and number <= 0:
            raise RefusedRequest(f"{knob}: {number} lets nothing through", knob=knob, hint="1 or more")


def _from(row: Row[Any]) -> Token:
    values: dict[str, Any] = dict(row._mapping)  # pyright: ignore[reportPrivateUsage]
    values["scopes"] = tuple(values["scopes"])
    return Token(**values)


def _all(connection: Connection) -> Sequence[Token]:
    return [_from(row) for row in connection.execute(select(TOKENS).order_by(TOKENS.c.created, TOKENS.c.id))]


def _live(connection: Connection, name: str | None = None) -> Sequence[Token]:
    now = clock(connection)
    where = and_(TOKENS.c.revoked.is_(None), or_(TOKENS.c.expires.is_(None), TOKENS.c.expires > now))
    if name is not None:
        where = and_(where, TOKENS.c.name == name)
    rows = connection.execute(select(TOKENS).where(where).order_by(TOKENS.c.created.desc(), TOKENS.c.id))
    return [_from(row) for row in rows]


def _add(connection: Connection, name: str, grant: Grant, drawn: dict[str, Any]) -> Token:
    there = _live(connection, name)
    if any(token.id == drawn["id"] for token in there):
        return there[0]
    if there:
        raise RefusedRequest(
            f"name: {name!r} has a token", knob="name", hint=f"ltx2 tokens rotate {name}, or revoke it first"
        )
    now = clock(connection)
    expires = None if grant.seconds is None else now + grant.seconds
    values = {"scopes": list(grant.scopes), "expires": expires, **grant.limits}
    return _insert(connection, {"name": name, "created": now, **values, **drawn})


def _rotate(connection: Connection, name: str, grace: float, drawn: dict[str, Any]) -> Token:
    there = _live(connection, name)
    if there and there[0].id == drawn["id"]:
        return there[0]
    if not there:
        raise RefusedRequest(f"name: {name!r} has no token", knob="name", hint=f"ltx2 tokens add {name}")
    now, newest = clock(connection), there[0]
    over = or_(TOKENS.c.expires.is_(None), TOKENS.c.expires > now + grace)
    live = and_(TOKENS.c.name == name, TOKENS.c.revoked.is_(None))
    connection.execute(update(TOKENS).where(live, over).values(expires=now + grace))
    # The new one lives as long as the old one was meant to.
    expires = None if newest.expires is None else now + (newest.expires - newest.created)
    limits = {name: getattr(newest, name) for name in LIMITS}
    values = {"scopes": list(newest.scopes), "expires": expires, **limits}
    return _insert(connection, {"name": name, "created": now, **values, **drawn})


def _insert(connection: Connection, values: dict[str, Any]) -> Token:
    return _from(connection.execute(insert(TOKENS).values(values).returning(TOKENS)).one())


def _revoke(connection: Connection, name: str) -> int:
    which = and_(TOKENS.c.revoked.is_(None), or_(TOKENS.c.name == name, TOKENS.c.id == name))
    ended = connection.execute(update(TOKENS).where(which).values(revoked=clock(connection))).rowcount
    if not ended:
        raise RefusedRequest(f"name: no live token is called {name!r}", knob="name", hint="ltx2 tokens list")
    return ended
