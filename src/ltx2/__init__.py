"""ltx2: the LTX-2 family of audio-video models as an engine, a command line and a server.

Importing this package loads no torch; `Engine` and `load` do when they are first touched.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltx2.engine.engine import Engine
    from ltx2.models.components import load
    from ltx2.spec.card import Card
    from ltx2.spec.errors import DoesNotFit, GenerationFailed, Ltx2Error, RefusedRequest
    from ltx2.spec.events import Finished, Progress
    from ltx2.spec.plan import Plan, resolve
    from ltx2.spec.request import Request, request

__version__ = "0.1.0"

_HOMES = {
    "Card": "ltx2.spec.card",
    "DoesNotFit": "ltx2.spec.errors",
    "Engine": "ltx2.engine.engine",
    "Finished": "ltx2.spec.events",
    "GenerationFailed": "ltx2.spec.errors",
    "Ltx2Error": "ltx2.spec.errors",
    "Plan": "ltx2.spec.plan",
    "Progress": "ltx2.spec.events",
    "RefusedRequest": "ltx2.spec.errors",
    "Request": "ltx2.spec.request",
    "load": "ltx2.models.components",
    "request": "ltx2.spec.request",
    "resolve": "ltx2.spec.plan",
}

__all__ = [
    "Card",
    "DoesNotFit",
    "Engine",
    "Finished",
    "GenerationFailed",
    "Ltx2Error",
    "Plan",
    "Progress",
    "RefusedRequest",
    "Request",
    "__version__",
    "load",
    "request",
    "resolve",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ltx2' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
