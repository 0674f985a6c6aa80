"""What happens to a job, as it happens: server-sent events, each of them the whole state, so that none can be missed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Annotated

import anyio
from fastapi import APIRouter, Depends, Header, Request
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from ltx2.doors.http.caller import Caller, allowed
from ltx2.doors.http.hub import Watch
from ltx2.doors.http.names import VideoId
from ltx2.doors.http.parts import Parts, TheParts
from ltx2.doors.http.videos import FAULTS
from ltx2.jobs.job import Job

router = APIRouter(tags=["events"])
PING = 15.0
LONGEST = 3600.0
STALLED = 30.0
LOOK_UP = 1.0  # seconds between looks whether the server is draining
AGAIN = 2000  # milliseconds after which a client connects again


class Patient(StreamingResponse):
    """A stream of events that gives up on a reader who takes nothing for 30 seconds."""

    media_type = "text/event-stream"

    def __init__(self, told: AsyncGenerator[bytes], headers: Mapping[str, str]):
        super().__init__(told, headers=headers)
        self._told = told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(STALLED):
                    await send(message)
            except TimeoutError:
                # Starlette takes this for a client that has gone, and so it is.
                raise OSError("the reader does not read") from None

        try:
            await super().__call__(scope, receive, send_in_time)
        finally:
            # Whoever stops reading must stop being followed now, not when the generator happens to be collected.
            with anyio.CancelScope(shield=True):
                await self._told.aclose()


@router.get(
    "/v1/videos/{id}/events",
    response_class=StreamingResponse,
    responses=FAULTS | {204: {"description": "You know how it ended"}},
    operation_id="events",
)
async def events(
    request: Request,
    id: VideoId,  # noqa: A002
    parts: TheParts,
    caller: Annotated[Caller, Depends(allowed("read"))],
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Events `progress` with the video object, and at last `completed`, `failed` or `deleted`.

    The id of an event is the version of the job: who comes back with `Last-Event-ID` hears only what is new, or gets a
    `reset` when the id is none of this job's. 204 ends the reconnecting of a client that has heard the end.
    """
    job = await run_in_threadpool(parts.service.queue.get, caller.name, id)
    if not job.open and last_event_id == str(job.version):
        return Response(status_code=204)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return Patient(_stream(request, parts, caller, job, last_event_id), headers=headers)


async def _stream(request: Request, parts: Parts, caller: Caller, job: Job, last: str | None) -> AsyncGenerator[bytes]:
    loop = asyncio.get_running_loop()
    end, spoken = loop.time() + LONGEST, loop.time()
    yield format_sse_event(retry=AGAIN)
    async with parts.hub.follow(job) as watch:
        foreign = last is not None and not _is_past(last, job)
        # What happens while an event is being sent is news afterwards: the count is taken before.
        count = watch.count
        if foreign or last != str(job.version):
            yield _event(request, parts, watch, "reset" if foreign and job.open else None)
        while loop.time() < end:
            if watch.count > count:
                count, spoken = watch.count, loop.time()
                yield _event(request, parts, watch)
            elif watch.ended:
                return
            elif not await watch.next(count, LOOK_UP):
                farewell = _farewell(parts, caller)
                if farewell is not None:
                    yield format_sse_event(event=farewell, data_str="{}")
                    return
                if loop.time() - spoken >= PING:
                    spoken = loop.time()
                    yield KEEPALIVE_COMMENT


def _farewell(parts: Parts, caller: Caller) -> str | None:
    """Why a stream must end before its job does."""
    if not parts.service.keys.is_live(caller):
        return "auth_expired"
    # The job goes back to the queue; another server, or this one later, tells the rest.
    return "server_draining" if parts.service.duty.draining else None


def _is_past(last: str, job: Job) -> bool:
    return last.isascii() and last.isdigit() and len(last) < 10 and int(last) <= job.version


def _event(request: Request, parts: Parts, watch: Watch, name: str | None = None) -> bytes:
    if watch.job is None:
        return format_sse_event(event="deleted", data_str="{}")
    video = parts.view(request).video(watch.job, watch.place)
    closing = {"completed": "completed", "failed": "failed"}.get(video.status, "progress")
    data = video.model_dump_json()
    return format_sse_event(event=name or closing, data_str=data, id=str(watch.job.version))
