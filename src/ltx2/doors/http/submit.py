"""From a body to an accepted job: fields, headers, picture, Plan, queue; nothing is written before all of it is right."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from ltx2.doors.http import inputs
from ltx2.doors.http.asking import Asking, Order, agreed, order
from ltx2.doors.http.body import Body
from ltx2.doors.http.caller import Caller, tightest
from ltx2.doors.http.load import Weight
from ltx2.doors.http.parts import Parts
from ltx2.doors.http.refusals import Conflicting, Forbidden, Gone, StateConflict
from ltx2.doors.http.schemas import MAX_DEADLINE, Asked, read_asked
from ltx2.doors.http.service import Service
from ltx2.jobs.job import Accepted, Job
from ltx2.spec.errors import RefusedRequest

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
# Stands for a picture until the rest of the request is known to be right.
TO_COME = "picture"
PICTURES = ("input_reference", "image", "frame_images")
WEBHOOKS = ("webhook", "callback_url")
# Ways of this surface: /v1/videos/characters/… would never reach a job of that name.
RESERVED = ("edits", "extensions", "characters")


@dataclass(frozen=True)
class Submission:
    """What a client sent: who it is, the headers that count, and the id that it chose."""

    caller: Caller
    headers: Mapping[str, str]
    id: str | None = None


async def accept(request: Request, parts: Parts, body: Body, sent: Submission) -> Accepted:
    """`submit` on a thread that may be kept for so long; lets go of the body's weight. Raises Busy, too."""
    act = functools.partial(submit, body, sent, parts.service)
    try:
        if body.file is not None or any(name in body.fields for name in PICTURES):
            return await parts.pictures.run(act)
        if any(name in body.fields for name in WEBHOOKS):
            return await parts.lookups.run(act)
        return await run_in_threadpool(act)
    finally:
        weight = request.scope.get("state", {}).get("weight")
        if isinstance(weight, Weight):
            weight.let_go()


def submit(body: Body, sent: Submission, service: Service) -> Accepted:
    """Accept a body as a job, or find the job that it was accepted as before.

    Raises RefusedRequest and DoesNotFit, naming the field, Forbidden, and what the queue raises.
    """
    if sent.id in RESERVED:
        raise RefusedRequest(f"id: {sent.id!r} is a route of its own", knob="id", hint=f"{sent.id}-1 works")
    asked = read_asked(body)
    brings = body.file is not None or any((asked.input_reference, asked.image, asked.frame_images))
    decided = order(asked, service, TO_COME if brings else None)
    options = _options(asked, sent, service)
    fetch = service.outside.fetch if service.settings.url_inputs else None
    brought = inputs.image_of(asked, body, fetch)
    if brought is not None:
        decided = with_picture(decided, inputs.store(*brought, service.folder))
    return service.queue.submit(_asking(decided, sent, options, service.settings.open_jobs))


def remix(source: Job, prompt: str, sent: Submission, service: Service) -> Accepted:
    """The same job with another prompt and the same seed.

    Raises StateConflict while the source is not done, Gone when its files are deleted, and what `submit` raises.
    """
    if source.state != "done":
        raise StateConflict(f"the video to remix is {source.state}", hint="wait until its status is completed")
    if source.published is None:
        raise Gone("the files of the video to remix were kept long enough and are deleted")
    former = {name: value for name, value in source.request.items() if name in Asked.model_fields}
    for name in ("webhook", "callback_url", "deadline_seconds", "priority", "cancel_on_disconnect"):
        former.pop(name, None)
    asked = read_asked(Body(former | {"prompt": prompt, "seed": source.plan["seed"]}, lenient=True))
    picture = Path(source.plan["image"]) if source.plan["image"] else None
    if picture is not None and not picture.is_file():
        raise Gone("the picture that the video to remix began with is deleted")
    decided = order(asked, service, TO_COME if picture else None)
    if picture is not None:
        decided = with_picture(decided, picture)
    decided.record["remixed_from"] = source.id
    return service.queue.submit(_asking(decided, sent, {}, service.settings.open_jobs))


def with_picture(decided: Order, stored: Path) -> Order:
    """The same order with its stored first frame; the record names it by its checksum."""
    record = decided.record | {"first_frame": stored.name}
    return replace(decided, plan=replace(decided.plan, image=str(stored)), record=record)


def _asking(decided: Order, sent: Submission, options: dict[str, Any], most: int) -> Asking:
    record = decided.record | ({"warnings": list(decided.warnings)} if decided.warnings else {})
    return Asking(
        token=sent.caller.name,
        plan=decided.plan,
        request=record,
        id=sent.id,
        key=sent.headers.get("idempotency-key"),
        limit=tightest(sent.caller.limit, most),
        running=sent.caller.running,
        megapixel_frames=sent.caller.megapixel_frames,
        # The SDK counts its own retries, and sends no key with them.
        retry=sent.headers.get("x-stainless-retry-count", "0") not in ("", "0"),
        **options,
    )


def _options(asked: Asked, sent: Submission, service: Service) -> dict[str, Any]:
    priority = asked.priority or 0
    if priority > 0 and "admin" not in sent.caller.scopes:
        raise Forbidden("priority: only a token with the scope admin can go before others", knob="priority")
    webhook, name = agreed(asked, "webhook", "callback_url")
    if webhook is not None:
        try:
            service.outside.check(webhook)
        except RefusedRequest as error:
            error.knob, error.message = name, error.message.replace("url:", f"{name}:", 1)
            raise
    return {"priority": priority, "deadline": deadline_of(asked, sent.headers), "webhook": webhook}


def deadline_of(asked: Asked, headers: Mapping[str, str]) -> float | None:
    """Seconds from now, from the field or the header Cancel-After (as in 90, 90s, 15m, 2h). Raises RefusedRequest."""
    text = headers.get("cancel-after")
    if text is None:
        return asked.deadline_seconds
    match = re.fullmatch(r"(\d{1,6})([smh]?)", text.strip(), re.ASCII)
    seconds = float(match[1]) * UNITS[match[2]] if match else 0.0
    if not 0 < seconds <= MAX_DEADLINE:
        raise RefusedRequest("Cancel-After: up to 24 hours", knob="Cancel-After", hint="as in 90, 90s, 15m or 2h")
    if asked.deadline_seconds is not None and asked.deadline_seconds != seconds:
        raise Conflicting(
            "deadline_seconds and Cancel-After say different things", knob="deadline_seconds", hint="send one of them"
        )
    return seconds
