"""The nouns of the queue: what is asked, the job it becomes, the claim of a worker, and the rules of the house."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from ltx2.spec.plan import Plan

State = Literal["queued", "running", "done", "failed", "cancelled", "expired"]
Answer = Literal["go", "cancel", "late", "lost"]
OPEN: tuple[State, ...] = ("queued", "running")

# A state that is no key never changes.
TRANSITIONS: dict[State, frozenset[State]] = {
    "queued": frozenset({"running", "cancelled", "expired"}),
    "running": frozenset({"queued", "done", "failed", "cancelled"}),
}


@dataclass(frozen=True)
class Rules:
    """Times in seconds, by the database's clock.

    `lease`: how long a silent worker keeps its job. `attempts`: how often a job is tried when workers die. `depth`:
    queued jobs of all tokens together. `keys`: how long an idempotency key is remembered. `twins`: how long an SDK's
    own retry, which carries no key, finds the job of its first try. `files`, `rows`: how long the files and the record
    of an ended job are kept.
    """

    lease: float = 30.0
    attempts: int = 2
    depth: int = 10_000
    keys: float = 86_400.0
    twins: float = 600.0
    files: float = 7 * 86_400.0
    rows: float = 30 * 86_400.0


@dataclass(frozen=True)
class Ask:
    """A job to be: the Plan, and the request as it came, whose canonical JSON decides what "the same request" means.

    `id` is chosen by the client (None: drawn), `key` an idempotency key; both belong to the token. `deadline` counts
    in seconds from now. `retry` says that the client repeats itself and may not know that it was heard.
    What this token may have: `limit` open jobs, `running` of them at once (the others wait, and let other tokens pass),
    `megapixel_frames` in 24 hours (None: without a limit).
    """

    token: str
    plan: Plan
    request: dict[str, Any]
    id: str | None = None
    key: str | None = None
    priority: int = 0
    deadline: float | None = None
    webhook: str | None = None
    limit: int | None = None
    retry: bool = False
    running: int | None = None
    megapixel_frames: float | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the request, independent of the order of its fields."""
        text = json.dumps(self.request, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Job:
    """One row of the queue.

    `number` is the house's own name for it: order of acceptance, folder, never reused. `id` is the client's, unique
    within its token. `attempt` grows with every claim and is the fence; `tries` counts those that ended in a dead
    worker or are under way. `published` is the attempt whose files stand (None: none, or swept). `version` grows with
    every change. `most_running` jobs of its token may run at once (None: any number). Times are seconds since 1970.
    """

    number: int
    id: str
    token: str
    key: str | None
    digest: str
    request: dict[str, Any]
    plan: dict[str, Any]
    priority: int
    turn: int
    state: State
    attempt: int
    tries: int
    worker: str | None
    lease_until: float | None
    cancel_asked: bool
    deadline: float | None
    progress: dict[str, Any] | None
    version: int
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    published: int | None
    webhook: str | None
    removed: bool
    created: float
    started: float | None
    finished: float | None
    expires: float | None
    most_running: int | None = None

    @property
    def open(self) -> bool:
        """Whether the job still waits or works."""
        return self.state in OPEN


@dataclass(frozen=True)
class Accepted:
    """The job that answers an Ask; `replayed` when it was there before."""

    job: Job
    replayed: bool


@dataclass(frozen=True)
class Claim:
    """A worker's right to a job: void as soon as the job has another attempt or is no longer running."""

    number: int
    attempt: int
    worker: str
    plan: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Ending:
    """How a job ends: `result` of a done one, `error` with `code` and `message` of any other."""

    state: State
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    @classmethod
    def of(cls, state: State, code: str, message: str) -> Ending:
        """An ending with an error."""
        return cls(state, error={"code": code, "message": message})


CANCELLED = Ending.of("cancelled", "cancelled", "the job was cancelled")
CRASHED = Ending.of("failed", "worker_crashed", "the worker died each time the job was tried")
EXPIRED = Ending.of("expired", "deadline_exceeded", "the deadline passed before the job was started")
LATE = Ending.of("failed", "deadline_exceeded", "the deadline passed while the job was running")
