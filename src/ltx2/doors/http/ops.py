"""What operators ask: is it alive, is it ready, how much does it do, which version is it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from ltx2 import __version__
from ltx2.doors.http.caller import allowed
from ltx2.doors.http.service import Service, the_service
from ltx2.jobs.errors import StoreUnavailable
from ltx2.spec.discretion import discreet

router = APIRouter(tags=["operations"])
TheService = Annotated[Service, Depends(the_service)]
# The database is given so long before it counts as away; the store itself is more patient.
STORE_SECONDS = 2.0
PLAIN = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/livez")
async def livez(service: TheService) -> JSONResponse:
    """Whether this process should be left alone; 500 asks for another machine. Touches neither disk nor database."""
    if service.duty.defunct:
        return JSONResponse({"status": "defunct"}, 500)
    return JSONResponse({"status": "alive"})


@router.get("/readyz", responses={503: {"description": "Not ready, and why"}})
async def readyz(service: TheService) -> JSONResponse:
    """Whether new jobs are taken and could begin."""
    reason = await trouble(service)
    if reason:
        return JSONResponse({"status": reason[0], "reason": reason[1]}, 503, headers={"Retry-After": "5"})
    return JSONResponse({"status": "ready"})


async def trouble(service: Service) -> tuple[str, str] | None:
    """Why the service is not ready: a word, and a sentence that everybody may read; None when it is."""
    duty = service.duty
    if duty.draining:
        return "draining", "the service was told to stop"
    if duty.defunct:
        return "defunct", discreet(duty.defunct)
    if duty.waiting:
        return "waiting", discreet(duty.waiting)
    if await _counts(service) is None:
        return "store", "the job store does not answer"
    return None


async def _counts(service: Service) -> dict[str, int] | None:
    try:
        async with asyncio.timeout(STORE_SECONDS):
            return await run_in_threadpool(service.queue.counts)
    except (TimeoutError, StoreUnavailable):
        return None


@router.get("/metrics", dependencies=[Depends(allowed("metrics"))], response_class=Response)
async def metrics(request: Request, service: TheService) -> Response:
    """Everything that is counted, for Prometheus."""
    state = request.app.state
    counts = await _counts(service)
    if counts is not None:
        state.metrics.jobs(counts)
        await _look(state, service)
    duty = service.duty
    ready = not (duty.draining or duty.defunct or duty.waiting) and counts is not None
    state.metrics.house(dict(duty.workers), ready, state.disk.free())
    return Response(state.metrics.text(), media_type=PLAIN)


async def _look(state: Any, service: Service) -> None:
    """Ask the queue what else there is to count; what it does not know, or not in time, stays as it was."""

    def look() -> tuple[float | None, int | None]:
        state.tally.look()
        asked = (getattr(service.queue, name, None) for name in ("longest_wait", "undelivered"))
        return tuple(None if ask is None else ask() for ask in asked)  # type: ignore[return-value]

    with suppress(TimeoutError, StoreUnavailable):
        async with asyncio.timeout(STORE_SECONDS):
            state.metrics.queue(*await run_in_threadpool(look))


@router.get("/version")
async def version() -> dict[str, Any]:
    """The version of this package."""
    return {"version": __version__}
