"""The outermost layer of the application: request ids, security headers, the log line and the last word on errors."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ltx2.doors.http.errors import fault
from ltx2.doors.http.metrics import Metrics

LOG = logging.getLogger("ltx2.http")
ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Nothing here is a page of its own yet; media may be shown by the sites that the settings name.
SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
}
# Probes come every few seconds.
QUIET = frozenset({"/livez", "/readyz", "/metrics"})


class Frame:
    """Gives every response an id and safe headers, counts and logs it, and turns what nobody caught into a 500."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request = given if ID.fullmatch(given) else uuid.uuid4().hex
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request=request)
        begun, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        with self.metrics.in_flight():
            try:
                await self.app(scope, receive, sending)
            except Exception:
                LOG.exception("a request broke")
                if status:
                    # Half of an answer is out: only a broken connection can say that the rest is missing.
                    raise
                await fault(500, f"something broke; its record is {request}", "internal")(scope, receive, sending)
            finally:
                self._record(scope, status, time.monotonic() - begun)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route: Any = scope.get("route")
        # The route's pattern, never the path: ids must not make new series.
        name = getattr(route, "path", None) or "none"
        self.metrics.request(scope["method"], name, status, seconds)
        if name not in QUIET:
            caller = scope.get("state", {}).get("caller")
            LOG.info(
                "request",
                extra={
                    "method": scope["method"],
                    "route": name,
                    "status": status,
                    "seconds": round(seconds, 4),
                    "token": getattr(caller, "name", None),
                },
            )
