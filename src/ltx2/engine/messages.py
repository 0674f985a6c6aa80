"""What crosses the pipe between an engine's process and its parent: a few small messages, checked on both sides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ltx2.spec import errors
from ltx2.spec.discretion import is_unforeseen
from ltx2.spec.errors import GenerationFailed, Ltx2Error
from ltx2.spec.events import Finished, Progress, Retrying

T = TypeVar("T")
MAX_REASON = 1000
# By code; those of `spec` alone, for other floors use some of the codes for troubles of their own.
KINDS: dict[str, type[Ltx2Error]] = {
    kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Ltx2Error)
}


class ProtocolError(Exception):
    """The other side sent something that is no message."""


class Message(BaseModel):
    """Base of all messages: values of exactly the stated types, and no fields beside them."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Start(Message):
    """To the child, first: which engine to make. `factory` is module:function, `options` its argument."""

    kind: Literal["start"] = "start"
    factory: str
    options: dict[str, Any]


class Make(Message):
    """To the child: make this plan's video at `out`."""

    kind: Literal["make"] = "make"
    job: int
    plan: dict[str, Any]
    out: str


class Cancel(Message):
    """To the child: stop this job at its next event, and say so."""

    kind: Literal["cancel"] = "cancel"
    job: int


class Ready(Message):
    """From the child: the engine stands."""

    kind: Literal["ready"] = "ready"


class Step(Message):
    """From the child: a Progress."""

    kind: Literal["step"] = "step"
    job: int
    phase: str
    step: int
    steps: int


class Again(Message):
    """From the child: a Retrying."""

    kind: Literal["again"] = "again"
    job: int
    reason: str


class Done(Message):
    """From the child: a Finished, without the path, which the parent knows."""

    kind: Literal["done"] = "done"
    job: int
    seed: int
    seconds: float
    peak_bytes: int
    timings: dict[str, float]
    warnings: list[str]
    skipped: int = 0


class Cancelled(Message):
    """From the child: the job was stopped and left nothing."""

    kind: Literal["cancelled"] = "cancelled"
    job: int


class Broken(Message):
    """From the child: an error of the tree; of a job, or (None) of the engine that could not be made."""

    kind: Literal["broken"] = "broken"
    job: int | None
    code: str
    message: str
    knob: str | None
    hint: str | None


Order = Start | Make | Cancel
Report = Ready | Step | Again | Done | Cancelled | Broken
_ORDER: TypeAdapter[Order] = TypeAdapter(Annotated[Order, Field(discriminator="kind")])
_REPORT: TypeAdapter[Report] = TypeAdapter(Annotated[Report, Field(discriminator="kind")])


def read_order(data: bytes) -> Order:
    """Raises ProtocolError."""
    return _read(_ORDER, data)


def read_report(data: bytes) -> Report:
    """Raises ProtocolError."""
    return _read(_REPORT, data)


def report_of(job: int, event: Progress | Retrying | Finished) -> Report:
    """An engine's event as a message."""
    match event:
        case Progress():
            return Step(job=job, phase=event.phase, step=event.step, steps=event.steps)
        case Retrying():
            return Again(job=job, reason=event.reason)
        case Finished():
            return Done(
                job=job,
                seed=event.seed,
                seconds=event.seconds,
                peak_bytes=event.peak_bytes,
                timings=event.timings,
                warnings=list(event.warnings),
                skipped=event.skipped,
            )


def finished_of(done: Done, out: Path) -> Finished:
    """The event that a Done stands for."""
    return Finished(out, done.seed, done.seconds, done.peak_bytes, done.timings, tuple(done.warnings), done.skipped)


def broken_by(job: int | None, error: Exception) -> Broken:
    """An error as a message.

    Of one that nobody foresaw in a job only the type is told, since its text may name files and reaches the client;
    why an engine could not be made is told whole, to the one who runs it.
    """
    if isinstance(error, Ltx2Error) and not is_unforeseen(error):
        return Broken(job=job, code=error.code, message=error.message, knob=error.knob, hint=error.hint)
    cause = error.__cause__ or error
    told = type(cause).__name__ + (f": {cause}"[:MAX_REASON] if job is None else "")
    return Broken(job=job, code=GenerationFailed.code, message=f"the engine broke: {told}", knob=None, hint=None)


def error_of(broken: Broken) -> Ltx2Error:
    """The error of the tree that a Broken stands for; one with an unknown code becomes a GenerationFailed."""
    return KINDS.get(broken.code, GenerationFailed)(broken.message, knob=broken.knob, hint=broken.hint)


def _read(adapter: TypeAdapter[T], data: bytes) -> T:
    try:
        return adapter.validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ProtocolError(f"no message: {first['msg']}") from None
