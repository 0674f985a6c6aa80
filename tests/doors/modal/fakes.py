"""Dicts and calls in memory, for the tests of the queue that need no containers."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

from ltx2.doors.modal.board import Board
from ltx2.doors.modal.calls import Look


class MemoryDict:
    """What `modal.Dict` promises: values are copies, and a key can be put only if it is not there."""

    def __init__(self) -> None:
        self.kept: dict[Any, bytes] = {}

    def get(self, key: Any, default: Any | None = None) -> Any:
        return pickle.loads(self.kept[key]) if key in self.kept else default

    def put(self, key: Any, value: Any, *, skip_if_exists: bool = False) -> bool:
        if skip_if_exists and key in self.kept:
            return False
        self.kept[key] = pickle.dumps(value)
        return True

    def pop(self, key: Any, default: Any = None) -> Any:
        return pickle.loads(self.kept.pop(key)) if key in self.kept else default

    def keys(self) -> Iterator[Any]:
        return iter(list(self.kept))

    def items(self) -> Iterator[tuple[Any, Any]]:
        return iter([(key, pickle.loads(value)) for key, value in self.kept.items()])


class MemoryCalls:
    """Calls that tests let stand as they like: `looks` by call id; all others are open."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, str]] = []
        self.cancelled: list[str] = []
        self.looks: dict[str, Look] = {}
        self.fails: Exception | None = None

    def begin(self, token: str, id: str) -> str:  # noqa: A002
        if self.fails is not None:
            raise self.fails
        self.begun.append((token, id))
        return f"fc-{len(self.begun)}"

    def look(self, call: str) -> Look:
        return self.looks.get(call, "open")

    def cancel(self, call: str) -> None:
        self.cancelled.append(call)


def board() -> Board:
    return Board(MemoryDict(), MemoryDict(), MemoryDict())


class MemoryVolume:
    """A volume that counts, and refuses as often as it is told."""

    def __init__(self, failing: int = 0, busy: int = 0) -> None:
        self.failing, self.busy, self.commits, self.reloads = failing, busy, 0, 0
        self.on_reload: list[Any] = []

    def commit(self) -> None:
        if self.failing:
            self.failing -= 1
            raise RuntimeError("commit refused")
        self.commits += 1

    def reload(self) -> None:
        if self.busy:
            self.busy -= 1
            raise RuntimeError("there are open files preventing the operation")
        self.reloads += 1
        for act in self.on_reload:
            act()
