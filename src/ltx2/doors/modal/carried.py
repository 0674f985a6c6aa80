"""The server's settings on their way from the deploying machine to the web function, as one text, without secrets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ltx2.spec.service import KNOBS, SECRETS, ServiceSettings, build

# Settings that mean nothing on Modal (where a server listens, what it starts), and those that never travel as text.
ELSEWHERE = (
    "host",
    "port",
    "data",
    "db",
    "workers",
    "drain_timeout",
    "stall",
    "keep_files",
    "price_per_hour",
    *SECRETS,
)


def carried_of(given: Mapping[str, Any]) -> str:
    """The settings as text."""
    return json.dumps({name: value for name, value in given.items() if name in KNOBS and name not in ELSEWHERE})


def settings_from(text: str, own: Mapping[str, Any]) -> ServiceSettings:
    """The settings of a web container: `own` are those that its deployment decides. Raises RefusedRequest."""
    given: dict[str, Any] = json.loads(text or "{}")
    return build(own, {name: value for name, value in given.items() if name in KNOBS and name not in ELSEWHERE})
