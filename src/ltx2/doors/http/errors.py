"""Every error as one JSON object, `{"error": {message, type, param, code}}`, and whether to ask again."""

from __future__ import annotations

import logging
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from ltx2.jobs.errors import QuotaExceeded, StoreUnavailable
from ltx2.spec.discretion import discreet
from ltx2.spec.errors import Ltx2Error, RefusedRequest

LOG = logging.getLogger(__name__)
LONGEST_WAIT = 120
# What clients may repeat unchanged. Not 409 and 500: an SDK would repeat them by itself, and a job may be under way.
AGAIN = frozenset({408, 429, 503})
WAITS = {"queue_full": 30, "storage_full": 60, "not_ready": 5, "draining": 10, "rate_limited": 1}
CODES = {
    400: "invalid_request", 401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
    408: "request_timeout", 413: "request_too_large", 414: "uri_too_long", 415: "unsupported_media",
    421: "misdirected_request", 429: "rate_limited", 431: "headers_too_large", 501: "not_offered", 503: "not_ready",
}  # fmt: skip
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
# The database's own words may name hosts and paths.
UNAVAILABLE = {"storage_full": "there is no room for another job", "not_ready": "the job store does not answer"}


def fault(
    status: int, message: str, code: str | None = None, param: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """The response of an error; `headers` add to those that say whether and when to ask again."""
    code = code or CODES.get(status, "internal" if status >= 500 else "invalid_request")
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    own = {"x-should-retry": "true" if status in AGAIN else "false", "Cache-Control": "no-store"}
    if status in (429, 503):
        own["Retry-After"] = str(WAITS.get(code, 5))
    if status == 401:
        own["WWW-Authenticate"] = 'Bearer realm="ltx2"'
    content = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(content, status, headers=own | (headers or {}))


def of(error: Ltx2Error) -> JSONResponse:
    """The response of one of our own errors."""
    status, message = error.status, discreet(str(error))
    if isinstance(error, RefusedRequest) and status == 422:
        status = 400
    if isinstance(error, StoreUnavailable):
        LOG.error("the job store does not answer: %s", error)
        message, status = UNAVAILABLE.get(error.code, "the job store cannot be used"), 503
    headers: dict[str, str] = {}
    wait = getattr(error, "retry_after", None)
    if wait is not None:
        headers["Retry-After"] = str(max(1, min(LONGEST_WAIT, math.ceil(wait))))
    if isinstance(error, QuotaExceeded) and (wait is None or wait > LONGEST_WAIT):
        # An SDK that comes back in two minutes would hear the same.
        headers["x-should-retry"] = "false"
    return fault(status, message, error.code, error.knob, headers)


def install(app: FastAPI) -> None:
    """Let the application answer its errors in this form."""
    app.add_exception_handler(Ltx2Error, _ours)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, Ltx2Error)
    return of(error)


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    # The place first ("query", "path", "body"), then the name.
    name = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    message = str(first["msg"]).removeprefix("Value error, ")
    return fault(400, f"{name}: {message}", param=name)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {404: "there is nothing here", 405: "this method is not offered here", 413: "the body is too large"}
    return fault(
        error.status_code,
        said.get(error.status_code, str(error.detail)),
        headers={name: value for name, value in (error.headers or {}).items() if name.lower() == "allow"},
    )
