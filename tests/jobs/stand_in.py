"""Worker processes with a stand-in engine, to be killed: `python -m tests.jobs.stand_in` forks one for each line.

A line of JSON comes in, the number of the new process goes out; starting Python for each would take most of the time.
Every ending that the store confirms goes as one line to the worker's log: `number attempt state`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg  # noqa: F401  # before the forks, or each of them would load it
from sqlalchemy import ColumnElement

from ltx2.jobs import claims, endings
from ltx2.jobs.heart import Pace
from ltx2.jobs.job import OPEN, Claim, Ending, Rules, State
from ltx2.jobs.shelf import Shelf
from ltx2.jobs.store import Store
from ltx2.jobs.tables import JOBS
from ltx2.jobs.worker import Worker
from ltx2.spec.events import Event, Finished, Progress
from ltx2.spec.plan import Plan

STEPS = 4


def engine(seconds: float, plan: Plan, out: Path) -> Iterator[Event]:
    """A file that says which job and attempt it belongs to, after `seconds` in some steps."""
    with out.open("w") as file:
        for step in range(STEPS):
            time.sleep(seconds / STEPS)
            file.write(f"{out.parent.parent.name} {out.parent.name.partition('.')[0]}\n")
            yield Progress("stage 1", step + 1, STEPS)
    yield Finished(out, plan.seed, seconds, 0)


class Recording(Store):
    """A store that writes down what its worker was told at the end."""

    log: Path

    def finish(self, claim: Claim, ending: Ending) -> State | None:
        state = super().finish(claim, ending)
        with self.log.open("a") as file:
            file.write(f"{claim.number} {claim.attempt} {state}\n")
        return state


def drop_the_fence() -> None:
    """For the negative control: whoever knows a job's number may end it, in whatever state it is."""

    def anybody(claim: Claim) -> ColumnElement[bool]:
        return JOBS.c.number == claim.number

    claims.own = anybody
    endings.TRANSITIONS = dict.fromkeys([*OPEN, "done"], frozenset({"done", "failed"}))  # type: ignore[assignment]


def work(given: dict[str, Any]) -> None:
    """Be a worker until killed."""
    if given.get("no_fence"):
        drop_the_fence()
    store = Recording(given["url"], Rules(**given["rules"]))
    store.log = Path(given["log"])
    seconds = given["seconds"]

    def make(plan: Plan, out: Path) -> Iterator[Event]:
        yield from engine(seconds, plan, out)

    parent = os.getppid()
    stop = threading.Event()
    worker = Worker(store, make, Shelf(Path(given["folder"])), pace=Pace(beat=0.1, poll=0.05))
    threading.Thread(target=worker.run, args=(stop,), daemon=True).start()
    # Nobody is left to kill this process when the tests themselves were.
    while os.getppid() == parent:
        time.sleep(0.2)


def main() -> None:
    """Fork workers until there are no more lines."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        process = os.fork()
        if not process:
            work(json.loads(line))
            os._exit(0)
        print(process, flush=True)


if __name__ == "__main__":
    main()
