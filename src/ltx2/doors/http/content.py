"""The bytes of a video in all its forms: whole, in ranges, only if changed, or only the headers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ltx2.doors.http import accept, ranges
from ltx2.doors.http.caller import Caller, allowed
from ltx2.doors.http.names import VideoId
from ltx2.doors.http.parts import Parts, TheParts
from ltx2.doors.http.published import open_published
from ltx2.doors.http.refusals import Conflicting, Gone, NotAcceptable, StateConflict
from ltx2.doors.http.schemas import faults
from ltx2.doors.http.variants import FORMATS, MP4, VARIANTS, Form, digest_of
from ltx2.jobs.job import Job

router = APIRouter(tags=["content"])
Variant = Literal["video", "thumbnail", "spritesheet", "audio", "last_frame", "metadata"]
Format = Literal["mp4", "webm", "gif", "webp"]
# A file never changes under its address, but it goes one day, and it is nobody else's.
CACHE = "private, max-age=3600"
BINARY = {"type": "string", "format": "binary"}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file", "content": {"application/octet-stream": {"schema": BINARY}}},
    206: {"description": "Parts of the file", "content": {"application/octet-stream": {"schema": BINARY}}},
    304: {"description": "The client has it"},
    **faults(
        {
            400: "Refused: the parameter is named",
            404: "There is no such video, or it has no sound",
            406: "No form that the client accepts",
            409: "Not made yet, or failed",
            410: "Deleted when its time was over",
            416: "No byte of the range is there",
        }
    ),
}


class OpenFile(FileResponse):
    """A file that is open already, so that what is sent is what was found, even if it is deleted meanwhile."""

    def __init__(self, descriptor: int, media_type: str, headers: Mapping[str, str]):
        self._descriptor = descriptor
        found = os.fstat(descriptor)
        super().__init__(f"/dev/fd/{descriptor}", headers=headers, media_type=media_type, stat_result=found)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            os.close(self._descriptor)


def send_video(request: Request, parts: Parts, job: Job) -> Response:
    """The mp4 of a job that has ended. Raises StateConflict or Gone when there is none."""
    return _send(request, job, MP4, _published(parts, job))


@router.head("/v1/videos/{id}/content", response_class=Response, include_in_schema=False)
@router.get("/v1/videos/{id}/content", response_class=Response, responses=RESPONSES)
async def content(
    request: Request,
    id: VideoId,  # noqa: A002
    parts: TheParts,
    caller: Annotated[Caller, Depends(allowed("read"))],
    variant: Variant = "video",
    format: Annotated[Format | None, Query()] = None,  # noqa: A002
    index: Annotated[int, Query(ge=0, le=0)] = 0,
) -> Response:
    """The file of a finished video, or another form of it, which is made when it is first asked for."""
    job = await run_in_threadpool(parts.service.queue.get, caller.name, id)
    form = _form(request, variant, format)
    if form == "json":
        video = parts.view(request).video(job, await run_in_threadpool(parts.place, job))
        return JSONResponse(video.model_dump(mode="json"), headers={"Vary": "Accept"})
    place = _published(parts, job)
    if form == "metadata":
        return _metadata(request, job)
    assert isinstance(form, Form)
    path = place if form.make is None else await parts.maker.make(place, form)
    return await run_in_threadpool(_send, request, job, form, path)


def _form(request: Request, variant: Variant, format: Format | None) -> Form | Literal["json", "metadata"]:  # noqa: A002
    """What is to be sent: the query says it, and the Accept header where the query says nothing."""
    if variant == "metadata":
        return "metadata"
    if variant != "video":
        if format is not None:
            raise Conflicting("format: only the video has several", knob="format", hint="leave it out")
        return VARIANTS[variant]
    if format is not None:
        return FORMATS[format]
    chosen = accept.choose(request.headers.get("accept"))
    if chosen is None:
        raise NotAcceptable("no form of a video is acceptable", knob="Accept", hint=", ".join(accept.OFFERED))
    if chosen == "json":
        return "json"
    return VARIANTS["audio"] if chosen == "audio" else FORMATS[chosen]


def _published(parts: Parts, job: Job) -> Path:
    """Where the video is. Raises StateConflict while there is none, and Gone when there is none any more."""
    if job.open:
        raise StateConflict("the video is not made yet", hint="wait until its status is completed")
    if job.state != "done":
        code = (job.error or {}).get("code", job.state)
        ending = job.state if code == job.state else f"{job.state}: {code}"
        raise StateConflict(f"there is no video, the job ended as {ending}")
    place = parts.service.files.video(job)
    if place is None:
        raise Gone("the files of this video were kept long enough and are deleted")
    return place


def _metadata(request: Request, job: Job) -> Response:
    # The picture's place on this machine is nobody's business; its checksum is its name.
    plan = job.plan | {"image": Path(job.plan["image"]).name}
    text = json.dumps({"id": job.id, "plan": plan, "result": job.result}, indent=1).encode()
    headers = _headers(job, hashlib.sha256(text).hexdigest(), ".json")
    if _known(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(text, headers=headers, media_type="application/json")


def _send(request: Request, job: Job, form: Form, path: Path) -> Response:
    digest = (job.result or {}).get("sha256", "") if form.make is None else digest_of(path)
    headers = _headers(job, digest, form.suffix)
    if _known(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    descriptor = open_published(path)
    try:
        size = os.fstat(descriptor).st_size
        if not _narrow(request, size):
            os.close(descriptor)
            return _unsatisfiable(headers, size)
        return OpenFile(descriptor, form.media_type, headers)
    except BaseException:
        os.close(descriptor)
        raise


def _headers(job: Job, digest: str, suffix: str) -> dict[str, str]:
    # The id was checked when the job was made: letters, digits, dots, dashes and underscores.
    return {
        "ETag": f'"{digest}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": CACHE,
        "Content-Disposition": f'inline; filename="{job.id}{suffix}"',
        "Vary": "Accept",
    }


def _known(request: Request, etag: str) -> bool:
    """Whether the client has this very file (If-None-Match)."""
    tags = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    return etag in tags or "*" in tags


def _narrow(request: Request, size: int) -> bool:
    """Leave in the request only a Range that can be answered; False when nothing of it is there.

    FileResponse would refuse what RFC 9110 says to ignore.
    """
    header = request.headers.get("range")
    if header is None:
        return True
    found = ranges.wanted(header, size)
    kept = [(name, value) for name, value in request.scope["headers"] if name != b"range"]
    if found:
        text = "bytes=" + ",".join(f"{first}-{last}" for first, last in found)
        kept.append((b"range", text.encode()))
    request.scope["headers"] = kept
    return found is None or bool(found)


def _unsatisfiable(headers: Mapping[str, str], size: int) -> Response:
    fault = {
        "message": f"Range: the file has {size} bytes",
        "type": "invalid_request_error",
        "param": "Range",
        "code": "invalid_request",
    }
    kept = {name: value for name, value in headers.items() if name in ("Accept-Ranges", "Vary", "ETag")}
    return JSONResponse({"error": fault}, 416, headers=kept | {"Content-Range": f"bytes */{size}"})
