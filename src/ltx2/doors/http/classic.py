"""The original service's two routes: a prompt in, the video itself out, with its defaults (the preset `classic`)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from ltx2.doors.http.asking import model_of
from ltx2.doors.http.body import Body, read_body
from ltx2.doors.http.caller import Caller, allowed
from ltx2.doors.http.content import send_video
from ltx2.doors.http.errors import fault
from ltx2.doors.http.limits import admit
from ltx2.doors.http.parts import Parts, TheParts
from ltx2.doors.http.refusals import Conflicting
from ltx2.doors.http.schemas import Asked, faults
from ltx2.doors.http.submit import Submission, accept
from ltx2.doors.http.videos import shown
from ltx2.jobs.job import Job
from ltx2.spec.errors import RefusedRequest
from ltx2.spec.plan import Plan
from ltx2.spec.presets import preset
from ltx2.spec.shapes import original

router = APIRouter(tags=["original"])
LONGEST_WAIT = 120
FIELDS = {
    "prompt": "string", "width": "integer", "height": "integer", "num_frames": "integer", "fps": "number",
    "num_inference_steps": "integer", "seed": "integer", "negative_prompt": "string", "model": "string",
}  # fmt: skip
Generate = Annotated[Caller, Depends(allowed("generate"))]
DESCRIBED: dict[str, Any] = {
    "parameters": [
        {"name": name, "in": "query", "required": False, "schema": {"type": kind}} for name, kind in FIELDS.items()
    ]
}
VIDEO = {"schema": {"type": "string", "format": "binary"}}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The video; its seed, job and sizes are in headers", "content": {"video/mp4": VIDEO}},
    202: {"description": "Not done within 120 seconds: the job, and in Location where to ask for it"},
    **faults({
        400: "Refused: the parameter is named", 401: "No valid token", 403: "The token may not do this",
        404: "There is no such model", 408: "The body did not arrive in time", 413: "Too many bytes",
        415: "Neither JSON nor a form", 422: "No worker can hold it", 429: "Too many requests or jobs",
        500: "The generation failed", 503: "Nothing new is taken now",
    }),
}  # fmt: skip
HOW: dict[str, Any] = {
    "response_class": Response,
    "responses": ANSWERS,
    "openapi_extra": DESCRIBED,
    "dependencies": [Depends(admit)],
}


@router.get("/generate_web", **HOW)
async def generate_web(request: Request, caller: Generate, parts: TheParts) -> Response:
    """The video of a prompt. The same request with the header `x-enter-token` as in the original service."""
    return await _generate(request, caller, parts, {})


@router.post("/generate_post", **HOW)
async def generate_post(request: Request, caller: Generate, parts: TheParts) -> Response:
    """The same with POST; the parameters may stand in the query, or in a body of JSON or a form."""
    sent = await read_body(request) if request.headers.get("content-type") else Body({})
    if sent.file is not None:
        raise RefusedRequest(f"{sent.file[0]}: no file is taken here", knob=sent.file[0], hint="POST /v1/videos does")
    return await _generate(request, caller, parts, sent.fields)


@router.options("/generate_web", include_in_schema=False)
@router.options("/generate_post", include_in_schema=False)
async def options(request: Request) -> Response:
    """Which methods there are."""
    method = "GET" if request.url.path.endswith("web") else "POST"
    return Response(status_code=204, headers={"Allow": f"{method}, OPTIONS"})


async def _generate(request: Request, caller: Caller, parts: Parts, sent: Mapping[str, Any]) -> Response:
    fields, warnings = _asked(_fields(request, sent), parts)
    headers = {name: value for name, value in request.headers.items() if name != "x-stainless-retry-count"}
    accepted = await accept(request, parts, Body(fields, lenient=True), Submission(caller, headers))
    job = await _ended(request, parts, accepted.job)
    said = _headers(job, parts, [*warnings, *job.request.get("warnings", [])])
    if job.open:
        place = f"{request.scope.get('root_path', '')}/v1/videos/{job.id}"
        return await shown(request, parts, job, said | {"Location": place, "Retry-After": "5"}, 202)
    if job.state != "done":
        error = job.error or {}
        message = f"{error.get('message', 'the job ended without a video')} (job {job.id})"
        return fault(500, message, str(error.get("code", job.state)), headers=said)
    response = await run_in_threadpool(send_video, request, parts, job)
    response.headers.update(said)
    return response


def _fields(request: Request, sent: Mapping[str, Any]) -> dict[str, str]:
    """The parameters of query and body as text. Raises RefusedRequest for an unknown one, Conflicting for a double one."""
    fields: dict[str, str] = {}
    pairs = [*request.query_params.multi_items(), *((name, _text(name, value)) for name, value in sent.items())]
    for name, value in pairs:
        if name not in FIELDS:
            raise RefusedRequest(f"{name[:64]}: unknown parameter", knob=name[:64], hint="one of " + ", ".join(FIELDS))
        if fields.setdefault(name, value) != value:
            raise Conflicting(f"{name} stands twice", knob=name, hint="send it once")
    return {name: value for name, value in fields.items() if value or name == "prompt"}


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RefusedRequest(f"{name}: neither text nor a number", knob=name)
    return str(value)


def _asked(fields: dict[str, str], parts: Parts) -> tuple[dict[str, Any], list[str]]:
    """The fields of the API that mean the same, and what cannot be had on this model."""
    name, card = model_of(Asked.model_construct(model=fields.get("model")), parts.service)
    usual, warnings = original(card), list[str]()
    usual["num_frames"] = usual.pop("frames")
    asked: dict[str, Any] = {knob: str(value) for knob, value in usual.items()} | fields
    if not preset(card.family, usual["preset"]).guided and "num_inference_steps" in asked:
        steps = asked.pop("num_inference_steps")
        warnings.append(f"num_inference_steps: {steps[:16]} was asked, {name} has its own steps")
    return asked, warnings


async def _ended(request: Request, parts: Parts, job: Job) -> Job:
    """The job at its end, or as it is after two minutes, or when the client has gone: the job goes on then."""
    loop = asyncio.get_running_loop()
    end, count = loop.time() + LONGEST_WAIT, 0
    async with parts.hub.follow(job) as watch:
        while not watch.ended and loop.time() < end and not await request.is_disconnected():
            await watch.next(count, min(1.0, end - loop.time()))
            count = watch.count
        return watch.job or job


def _headers(job: Job, parts: Parts, warnings: list[str]) -> dict[str, str]:
    plan = Plan.from_dict(job.plan)
    steps = sum(len(stage.sigmas) - 1 for stage in plan.stages)
    size = f"{plan.width}x{plan.height}; frames={plan.frames}; fps={plan.fps}; steps={steps}; preset={plan.preset}"
    headers = {"X-Job-Id": job.id, "X-Seed": str(plan.seed), "X-Model": plan.model, "X-Video": size}
    timings = _timings(job)
    if timings:
        headers["Server-Timing"] = ", ".join(f"{name};dur={1000 * value:.0f}" for name, value in timings.items())
    if warnings:
        # A header is one line of ASCII, whatever was asked.
        headers["X-Warning"] = "; ".join(warnings).encode("ascii", "replace").decode()
    return headers


def _timings(job: Job) -> dict[str, float]:
    """Seconds of waiting, of the generation and its phases."""
    if job.started is None or job.finished is None:
        return {}
    result = job.result or {}
    phases = {name.replace(" ", "-"): float(value) for name, value in result.get("timings", {}).items()}
    return {"queue": job.started - job.created, "generation": job.finished - job.started, **phases}
