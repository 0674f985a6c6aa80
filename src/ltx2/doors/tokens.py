"""`ltx2 tokens add|list|revoke|rotate`: who may use a service. A token is shown once; a running service hears in a second."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from datetime import UTC, datetime
from typing import Any

from ltx2.doors import premises
from ltx2.jobs.tokens import LIMITS, USUAL, Grant, Token, Tokens
from ltx2.spec.errors import RefusedRequest
from ltx2.spec.settings import Settings

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
DAY = 86_400.0


def tokens_command(values: argparse.Namespace, _: Settings) -> int:
    """Do what the first word says. The token itself goes to stdout, alone; everything else to stderr."""
    place = premises.enter(*premises.read_settings(_place_of(values), os.environ)[:2])
    try:
        tokens = Tokens(place.store.database)
        if values.action == "list":
            _list(tokens, values.json)
            return 0
        if not values.name:
            raise RefusedRequest(f"name: {values.action} whom?", knob="name", hint=f"ltx2 tokens {values.action} NAME")
        if values.action == "revoke":
            ended = tokens.revoke(values.name)
            _say(values, {"revoked": ended}, f"{ended} revoked")
            return 0
        if values.action == "add":
            token, text = tokens.add(values.name, _grant(values))
        else:
            token, text = tokens.rotate(values.name, _seconds("grace", values.grace, DAY) or 0.0)
        _hand_over(values, token, text)
        return 0
    finally:
        place.store.close()


def _place_of(values: argparse.Namespace) -> argparse.Namespace:
    """The flags that are settings; `rpm` means another thing here."""
    return argparse.Namespace(**{name: getattr(values, name, None) for name in ("config", "data", "db")})


def _grant(values: argparse.Namespace) -> Grant:
    scopes = tuple(part.strip() for part in values.scopes.split(",")) if values.scopes else USUAL
    seconds = _seconds("expires", values.expires, None)
    counts = {knob: _count(knob, getattr(values, knob)) for knob in ("limit", "rpm", "running")}
    return Grant(scopes, seconds=seconds, megapixel_frames=_amount(values.megapixel_frames), **counts)


def _count(knob: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise RefusedRequest(f"{knob}: {text!r} is not a whole number", knob=knob, hint=f"as in --{knob} 2")
    return int(text)


def _amount(text: str | None) -> float | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,12}(\.\d{1,6})?", text, re.ASCII):
        raise RefusedRequest(
            f"megapixel_frames: {text!r} is not a number",
            knob="megapixel_frames",
            hint="as in --megapixel-frames 5000; 768x512 with 97 frames has 38.14",
        )
    return float(text)


def _seconds(knob: str, text: str | None, default: float | None) -> float | None:
    if text is None:
        return default
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if match is None:
        raise RefusedRequest(f"{knob}: {text!r} is no time", knob=knob, hint="as in 90d, 12h, 30m or 0s")
    return int(match[1]) * float(UNITS[match[2]])


def _hand_over(values: argparse.Namespace, token: Token, text: str) -> None:
    if values.json:
        print(json.dumps(described(token) | {"token": text, "webhook_secret": token.webhook_secret}))
        return
    print(f"token of {token.name}, shown this once; webhooks are signed with {token.webhook_secret}", file=sys.stderr)
    print(text)


def _list(tokens: Tokens, as_json: bool) -> None:
    found = [described(token) for token in tokens.all()]
    if as_json:
        print(json.dumps({"tokens": found}))
        return
    for row in found:
        limits = " ".join(f"{name}={row[name]:.12g}" for name in LIMITS if row[name] is not None)
        end = f" until {row['expires']}" if row["expires"] else ""
        print(f"{row['id']}  {row['name']}  {row['state']}{end}  {','.join(row['scopes'])}  {limits}".rstrip())


def described(token: Token) -> dict[str, Any]:
    """What may be shown of a token."""
    live = "live" if token.is_live(time.time()) else "expired"
    return {
        "id": token.id,
        "name": token.name,
        "state": live if token.revoked is None else "revoked",
        "scopes": list(token.scopes),
        **{name: getattr(token, name) for name in LIMITS},
        "created": _date(token.created),
        "expires": _date(token.expires),
        "revoked": _date(token.revoked),
    }


def _date(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _say(values: argparse.Namespace, found: dict[str, Any], text: str) -> None:
    print(json.dumps(found) if values.json else text)
