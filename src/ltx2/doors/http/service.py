"""What the routes stand on: the queue, the files, the models, the keys and the rules of one service."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fastapi import Request

from ltx2.doors.fetch import Outside
from ltx2.doors.http.caller import Caller
from ltx2.jobs.job import Accepted, Ask, Job
from ltx2.jobs.line import Place
from ltx2.spec.card import Card
from ltx2.spec.plan import Plan
from ltx2.spec.service import ServiceSettings


class Queue(Protocol):
    """What routes need of a queue. `ltx2.jobs.store.Store` is one; see there for what each method raises."""

    def submit(self, ask: Ask) -> Accepted: ...

    def get(self, token: str, id: str) -> Job: ...  # noqa: A002

    def page(
        self, token: str, after: str | None = None, limit: int = 20, newest_first: bool = True
    ) -> Sequence[Job]: ...

    def place(self, job: Job) -> Place: ...

    def counts(self) -> dict[str, int]: ...

    def cancel(self, token: str, id: str) -> Job: ...  # noqa: A002

    def remove(self, token: str, id: str) -> None: ...  # noqa: A002


class Files(Protocol):
    """Where published files are. `ltx2.jobs.shelf.Shelf` is one."""

    def video(self, job: Job) -> Path | None: ...


class Keys(Protocol):
    """Which tokens there are; both answer from memory, at once."""

    def find(self, presented: str) -> Caller | None:
        """The caller of a token as it came; None when it is not valid (any more)."""
        ...

    def is_live(self, caller: Caller) -> bool:
        """Whether a caller that was let in before would be let in now; of a link, its owner."""
        ...


@dataclass
class Duty:
    """How the service stands, as its probes tell: changed by whoever runs it, read from any thread.

    `stopping`: told to stop. `defunct`: workers die one after the other; why. `waiting`: why no job can begin yet; None
    when one could. `workers`: the state of each, by name.
    """

    stopping: threading.Event = field(default_factory=threading.Event)
    defunct: str | None = None
    waiting: str | None = None
    workers: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken, since the service is about to stop."""
        return self.stopping.is_set()


def no_limit(plan: Plan) -> None:
    """The capacity of a service that does not know its workers."""


@dataclass(frozen=True)
class Service:
    """One service. `models` are the served names and their cards, the default one first.

    `folder` holds inputs and derived files; `capacity` raises DoesNotFit for a Plan that no worker can hold; `secret`
    signs links to media; `outside` is the way to other hosts.
    """

    queue: Queue
    files: Files
    models: Mapping[str, Card]
    settings: ServiceSettings
    folder: Path
    secret: bytes
    keys: Keys
    capacity: Callable[[Plan], None] = no_limit
    outside: Outside = field(default_factory=Outside)
    duty: Duty = field(default_factory=Duty)


async def the_service(request: Request) -> Service:
    """The service of the application that a request came to: a dependency of routes."""
    return request.app.state.service
