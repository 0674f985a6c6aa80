"""What web function and GPU containers share about jobs, in `modal.Dict`s: records, progress, endings, what is open.

A Dict has neither transactions nor conditions, but it can put a key only if it is not there yet. So each fact has one
writer, or one key that the first writer wins: a job is accepted once, and ends once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast
from urllib.parse import quote

from ltx2.jobs.job import Ending


class Shared(Protocol):
    """The part of `modal.Dict` that is used here."""

    def get(self, key: Any, default: Any | None = None) -> Any: ...

    def put(self, key: Any, value: Any, *, skip_if_exists: bool = False) -> bool: ...

    def pop(self, key: Any, default: Any = None) -> Any: ...

    def keys(self) -> Iterator[Any]: ...

    def items(self) -> Iterator[tuple[Any, Any]]: ...


@dataclass(frozen=True)
class Record:
    """A job as it was accepted: this never changes. `dollars` is what it was expected to cost."""

    number: int
    id: str
    token: str
    key: str | None
    digest: str
    request: dict[str, Any]
    plan: dict[str, Any]
    deadline: float | None
    created: float
    dollars: float


@dataclass(frozen=True)
class Board:
    """The Dicts of one deployment.

    `jobs` holds everything about a job by its number, and records by token and id. `index` lists the jobs of each token,
    `waiting` the open ones; both are read as a whole, and so hold no more than that.
    """

    jobs: Shared
    index: Shared
    waiting: Shared

    # Records

    def record(self, token: str, id: str) -> Record | None:  # noqa: A002
        """The record of a token's job."""
        found = self.jobs.get(_name("job", token, id))
        return None if found is None else Record(**found)

    def accept(self, record: Record) -> bool:
        """Write a job down; False when its id is taken."""
        if not self.jobs.put(_name("job", record.token, record.id), asdict(record), skip_if_exists=True):
            return False
        self.index.put(f"{record.number} {quote(record.token, safe='')}", record.id)
        self.waiting.put(record.number, {"token": record.token, "id": record.id, "dollars": record.dollars})
        return True

    def forget(self, record: Record) -> None:
        """Take a job off the board; its files go with the next sweep."""
        for name in ("ending", "progress", "attempt", "call", "cancel"):
            self.jobs.pop(f"{name}/{record.number}", None)
        if record.key is not None:
            self.jobs.pop(_name("key", record.token, record.key), None)
        self.waiting.pop(record.number, None)
        self.index.pop(f"{record.number} {quote(record.token, safe='')}", None)
        self.jobs.pop(_name("job", record.token, record.id), None)

    def numbers(self, token: str) -> list[tuple[int, str]]:
        """Number and id of every job of a token, the oldest first."""
        mine = quote(token, safe="")
        found: list[tuple[int, str]] = []
        for key, value in self.index.items():
            number, _, owner = str(key).partition(" ")
            if owner == mine:
                found.append((int(number), str(value)))
        return sorted(found)

    def everything(self) -> list[tuple[int, str, str]]:
        """Number, token and id of every job."""
        from urllib.parse import unquote

        split = [(str(key).partition(" "), str(value)) for key, value in self.index.items()]
        return sorted((int(number), unquote(owner), id_) for (number, _, owner), id_ in split)

    def open(self) -> dict[int, dict[str, Any]]:
        """What is known of the open jobs by number: token, id and dollars."""
        return {int(number): cast("dict[str, Any]", value) for number, value in self.waiting.items()}

    # Names that find a job again

    def claim_name(self, kind: str, token: str, name: str, id: str) -> str:  # noqa: A002
        """Give a key (or the digest of a recent request) to a job, unless another has it; the id of the one that has."""
        key = _name(kind, token, name)
        value = {"id": id, "at": time.time()}
        if self.jobs.put(key, value, skip_if_exists=True):
            return id
        return str(self.named(kind, token, name) or id)

    def named(self, kind: str, token: str, name: str, seconds: float = float("inf")) -> str | None:
        """The id of the job that has a key or digest, if it got it no longer than `seconds` ago."""
        found = self.jobs.get(_name(kind, token, name))
        if found is None or time.time() - found["at"] > seconds:
            return None
        return str(found["id"])

    def unname(self, kind: str, token: str, name: str) -> None:
        """Free a key."""
        self.jobs.pop(_name(kind, token, name), None)

    # One job's course

    def call(self, number: int) -> str | None:
        """The function call that makes the job."""
        return self.jobs.get(f"call/{number}")

    def set_call(self, number: int, call: str) -> bool:
        """Say which call makes the job; False when another one does."""
        return bool(self.jobs.put(f"call/{number}", call, skip_if_exists=True))

    def progress(self, number: int) -> dict[str, Any] | None:
        """How far the job is: attempt, count (grows with every change), started, at, and phase, step, steps."""
        return self.jobs.get(f"progress/{number}")

    def post(self, number: int, progress: dict[str, Any]) -> None:
        """Say how far the job is: only the container that makes it does."""
        self.jobs.put(f"progress/{number}", progress)

    def begun(self, number: int) -> int:
        """How often the job was begun."""
        return int(self.jobs.get(f"attempt/{number}", 0))

    def begin(self, number: int, attempt: int) -> None:
        """The job is begun for the `attempt`-th time."""
        self.jobs.put(f"attempt/{number}", attempt)

    def ending(self, number: int) -> dict[str, Any] | None:
        """How the job ended: state, result, error, at, attempt."""
        return self.jobs.get(f"ending/{number}")

    def end(self, number: int, ending: Ending, attempt: int = 0) -> bool:
        """End a job; False when it has ended before, and this ending does not count."""
        value = {
            "state": ending.state,
            "result": ending.result,
            "error": ending.error,
            "at": time.time(),
            "attempt": attempt,
        }
        counts = bool(self.jobs.put(f"ending/{number}", value, skip_if_exists=True))
        self.waiting.pop(number, None)
        return counts

    # Pictures, which are too large for a call's arguments

    def put_picture(self, name: str, data: bytes) -> None:
        """Keep a first frame under its stored name."""
        self.jobs.put(f"picture/{name}", data)

    def picture(self, name: str) -> bytes | None:
        """A kept first frame."""
        return self.jobs.get(f"picture/{name}")


def _name(kind: str, token: str, name: str) -> str:
    return f"{kind}/{quote(token, safe='')}/{quote(name, safe='')}"
