"""Videos as a resource: make, look, list, cancel, delete; what OpenAI's clients speak, and a little more."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from ltx2.doors.http.body import Body, read_body
from ltx2.doors.http.caller import Caller, allowed
from ltx2.doors.http.limits import admit
from ltx2.doors.http.names import VideoId, known_form
from ltx2.doors.http.parts import Parts, TheParts
from ltx2.doors.http.schemas import Asked, Deleted, Page, Prompt, Video, faults
from ltx2.doors.http.submit import Submission, accept, remix
from ltx2.jobs.job import Accepted, Job
from ltx2.spec.errors import NotOffered, RefusedRequest

router = APIRouter(tags=["videos"])
MAX_WAIT = 120
LEAVING = 1.0  # seconds between looks whether a waiting client is still there
Generate = Annotated[Caller, Depends(allowed("generate"))]
Read = Annotated[Caller, Depends(allowed("read"))]

FAULTS = faults(
    {
        400: "Refused: the field is named",
        401: "No valid token",
        403: "The token may not do this",
        404: "There is no such video or model",
        409: "Not in a state that allows it",
        410: "Its files are deleted",
    }
)
CREATED = (
    FAULTS
    | {202: {"model": Video, "description": "Accepted, and not done within the time of `Prefer: wait`"}}
    | faults(
        {
            408: "The body did not arrive in time",
            413: "Too many bytes",
            415: "Neither JSON nor a form",
            422: "No worker can hold it, or the key was used for something else",
            429: "Too many requests or jobs",
        }
    )
)
ASKED = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/Asked"}},
            "multipart/form-data": {"schema": {"$ref": "#/components/schemas/AskedForm"}},
        },
    }
}


class Remix(BaseModel):
    """Another prompt for the same video."""

    model_config = ConfigDict(extra="forbid", strict=True)
    prompt: Prompt


@router.post("/v1/videos", responses=CREATED, response_model=Video, openapi_extra=ASKED, dependencies=[Depends(admit)])
async def create(request: Request, caller: Generate, parts: TheParts) -> JSONResponse:
    """Ask for a video. With `Prefer: wait=N` the answer waits up to N seconds (at most 120) for its end."""
    return await _create(request, caller, parts, None)


@router.put(
    "/v1/videos/{id}", responses=CREATED, response_model=Video, openapi_extra=ASKED, dependencies=[Depends(admit)]
)
async def put(request: Request, id: str, caller: Generate, parts: TheParts) -> JSONResponse:  # noqa: A002
    """Ask for a video under an id of your own: the same request again answers with the same job."""
    return await _create(request, caller, parts, id)


async def _create(request: Request, caller: Caller, parts: Parts, id: str | None) -> JSONResponse:  # noqa: A002
    seconds = wait_of(request)
    accepted = await _accepted(request, parts, Submission(caller, request.headers, id))
    return await answer(request, parts, accepted, seconds)


async def _accepted(request: Request, parts: Parts, sent: Submission) -> Accepted:
    # A function of its own, so that the body is gone while the client waits.
    return await accept(request, parts, await read_body(request), sent)


def wait_of(request: Request) -> int | None:
    """Seconds that the client would wait (`Prefer: wait=N`); other preferences are nothing to us."""
    for preference in request.headers.get("prefer", "").split(","):
        match = re.fullmatch(r"\s*wait\s*=\s*\"?(\d{1,6})\"?\s*", preference, re.IGNORECASE | re.ASCII)
        if match:
            return min(int(match[1]), MAX_WAIT)
    return None


async def answer(request: Request, parts: Parts, accepted: Accepted, seconds: int | None) -> JSONResponse:
    """The accepted job; after its end if that comes within `seconds`, else with status 202."""
    job, headers, status = accepted.job, dict[str, str](), 200
    if seconds is not None:
        job = await _ended(request, parts, job, seconds)
        headers["Preference-Applied"] = f"wait={seconds}"
        status = 202 if job.open else 200
    if accepted.replayed:
        headers["Idempotency-Replayed"] = "true"
    headers["Location"] = f"{request.scope.get('root_path', '')}/v1/videos/{job.id}"
    return await shown(request, parts, job, headers, status)


async def _ended(request: Request, parts: Parts, job: Job, seconds: int) -> Job:
    """The job at its end, or as it is when the time is over or the client has gone."""
    loop = asyncio.get_running_loop()
    end, count = loop.time() + seconds, 0
    async with parts.hub.follow(job) as watch:
        while not watch.ended and loop.time() < end:
            await watch.next(count, min(LEAVING, end - loop.time()))
            count = watch.count
            if await request.is_disconnected():
                if job.request.get("cancel_on_disconnect"):
                    await run_in_threadpool(parts.service.queue.cancel, job.token, job.id)
                break
        return watch.job or job


async def shown(
    request: Request, parts: Parts, job: Job, headers: dict[str, str] | None = None, status: int = 200
) -> JSONResponse:
    """A job as the answer to a request, with the pause that the SDK makes before it asks again."""
    video = parts.view(request).video(job, await run_in_threadpool(parts.place, job))
    pause = {"openai-poll-after-ms": str(poll_after(video))} if job.open else {}
    return JSONResponse(video.model_dump(mode="json"), status, headers=pause | (headers or {}))


def poll_after(video: Video) -> int:
    """Milliseconds: a twentieth of what is left, from a quarter of a second to five seconds."""
    if video.eta_seconds is None:
        return 1000 if video.queue_position else 500
    return round(min(5000.0, max(250.0, video.eta_seconds * 50)))


@router.get("/v1/videos", responses=FAULTS)
def listing(
    request: Request,
    caller: Read,
    parts: TheParts,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Page:
    """Your videos, in the order in which they were accepted."""
    edge = None if after is None else known_form(after)
    jobs = parts.service.queue.page(caller.name, edge, limit + 1, order == "desc")
    view = parts.view(request)
    data = [view.video(job) for job in jobs[:limit]]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return Page(data=data, first_id=first, last_id=last, has_more=len(jobs) > limit)


@router.get("/v1/videos/characters/{rest:path}", include_in_schema=False)
@router.post("/v1/videos/{kind}", include_in_schema=False)
def not_offered(caller: Read, kind: str = "characters") -> None:
    """What OpenAI's clients can ask for beyond this: refused by name."""
    names = {"edits": "editing a video", "extensions": "extending a video", "characters": "characters"}
    if kind not in names:
        raise RefusedRequest(f"a video is made by POST /v1/videos or PUT /v1/videos/{known_form(kind)}", knob="id")
    raise NotOffered(f"this engine does not offer {names[kind]}")


@router.get("/v1/videos/{id}", responses=FAULTS, response_model=Video)
async def retrieve(request: Request, id: VideoId, caller: Read, parts: TheParts) -> JSONResponse:  # noqa: A002
    """One video. A failed job is a successful answer: `status` and `error` say what happened."""
    job = await run_in_threadpool(parts.service.queue.get, caller.name, id)
    return await shown(request, parts, job)


@router.post("/v1/videos/{id}/cancel", responses=FAULTS, response_model=Video)
async def cancel(request: Request, id: VideoId, caller: Generate, parts: TheParts) -> JSONResponse:  # noqa: A002
    """Cancel: a waiting job at once, a running one within a step; an ended one stays what it is."""
    job = await run_in_threadpool(parts.service.queue.cancel, caller.name, id)
    return await shown(request, parts, job)


@router.delete("/v1/videos/{id}", responses=FAULTS)
def delete(id: VideoId, caller: Generate, parts: TheParts) -> Deleted:  # noqa: A002
    """Cancel a job if it is open, and delete it with its files. Downloads under way go on to their end."""
    parts.service.queue.remove(caller.name, id)
    return Deleted(id=id)


@router.post(
    "/v1/videos/{id}/remix",
    responses=CREATED,
    response_model=Video,
    dependencies=[Depends(admit)],
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Remix"}}},
        }
    },
)
async def remixed(request: Request, id: VideoId, caller: Generate, parts: TheParts) -> JSONResponse:  # noqa: A002
    """The same video with another prompt: same size, length and seed."""
    seconds = wait_of(request)
    body: Body = await read_body(request)
    if set(body.fields) != {"prompt"}:
        raise RefusedRequest("a remix takes a prompt and nothing else", knob="prompt")
    source = await run_in_threadpool(parts.service.queue.get, caller.name, id)
    sent = Submission(caller, request.headers)
    prompt: Any = body.fields["prompt"]
    accepted = await run_in_threadpool(remix, source, prompt, sent, parts.service)
    return await answer(request, parts, accepted, seconds)


# Read by hand, and so unknown to FastAPI.
BODIES: tuple[type[BaseModel], ...] = (Asked, Remix)
