"""Three routes of another gateway's private contract: enqueue, status, result. Only there when the operator wants them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from ltx2.doors.http.body import Body, read_body
from ltx2.doors.http.caller import Caller, allowed
from ltx2.doors.http.content import send_video
from ltx2.doors.http.limits import admit
from ltx2.doors.http.names import known_form
from ltx2.doors.http.parts import TheParts
from ltx2.doors.http.submit import Submission, accept
from ltx2.spec.errors import RefusedRequest

router = APIRouter(tags=["adapter"])
FIELDS = ("prompt", "width", "height", "frame_count", "image_b64", "image_mime", "seed")
MAX_BODY = 32 * 1024 * 1024
Id = Annotated[str, Query(max_length=64)]


class Enqueued(BaseModel):
    """The name to ask with."""

    prompt_id: str


class Status(BaseModel):
    """`queued`, `running`, `done` or `error`."""

    status: str
    error: str | None = None


@router.post("/enqueue", dependencies=[Depends(admit)])
async def enqueue(
    request: Request, parts: TheParts, caller: Annotated[Caller, Depends(allowed("generate"))]
) -> Enqueued:
    """Accept `{prompt, width, height, frame_count, image_b64?, image_mime?}`; sizes are rounded to what is possible."""
    body = await read_body(request, MAX_BODY)
    sent = Submission(caller, request.headers)
    accepted = await accept(request, parts, Body(_translated(body.fields)), sent)
    return Enqueued(prompt_id=accepted.job.id)


def _translated(fields: dict[str, Any]) -> dict[str, Any]:
    unknown = [name for name in fields if name not in FIELDS]
    if unknown:
        raise RefusedRequest("unknown field", knob=unknown[0][:64], hint="one of " + ", ".join(FIELDS))
    asked = {name: fields[name] for name in ("prompt", "width", "height", "seed") if fields.get(name) is not None}
    if fields.get("frame_count") is not None:
        asked["frames"] = fields["frame_count"]
    if fields.get("image_b64") is not None:
        asked["image"] = f"data:{fields.get('image_mime') or 'image/png'};base64,{fields['image_b64']}"
    # The gateway counts with sizes of its own.
    return asked | {"round": "nearest"}


@router.get("/status")
async def status(prompt_id: Id, parts: TheParts, caller: Annotated[Caller, Depends(allowed("read"))]) -> Status:
    """How a job is."""
    job = await run_in_threadpool(parts.service.queue.get, caller.name, known_form(prompt_id))
    if job.open or job.state == "done":
        return Status(status=job.state)
    return Status(status="error", error=(job.error or {}).get("message", job.state))


@router.get("/result", response_class=Response)
async def result(
    request: Request, prompt_id: Id, parts: TheParts, caller: Annotated[Caller, Depends(allowed("read"))]
) -> Response:
    """The mp4 of a finished job; 202 while it is not finished."""
    job = await run_in_threadpool(parts.service.queue.get, caller.name, known_form(prompt_id))
    if job.open:
        return JSONResponse({"status": job.state}, 202, headers={"Retry-After": "2"})
    return await run_in_threadpool(send_video, request, parts, job)
