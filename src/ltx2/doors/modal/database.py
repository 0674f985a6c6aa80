"""Jobs in PostgreSQL instead of Dicts: the server's own store, with a call to a GPU container for each job accepted.

A call does not belong to a job: it takes the next one that the store gives out, so that tokens have their turns and
priorities hold. A call that Modal begins anew after its container died takes its own job again, under the same claim.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ltx2.doors.fetch import Outside
from ltx2.doors.modal.board import Board
from ltx2.doors.modal.calls import Calls
from ltx2.doors.modal.outputs import Outputs
from ltx2.doors.modal.render import Engine
from ltx2.jobs import claims
from ltx2.jobs.courier import deliver
from ltx2.jobs.job import CRASHED, Accepted, Ask, Claim, Job, Rules
from ltx2.jobs.line import Place
from ltx2.jobs.shelf import NAME, Shelf
from ltx2.jobs.store import Store
from ltx2.jobs.tokens import Token, Tokens
from ltx2.jobs.worker import Inspect, Worker

LOG = logging.getLogger("ltx2.modal")


@dataclass(frozen=True)
class StoreQueue:
    """A `Queue` on a Store. Every accepted job begins a call; what may not cost money now is taken back."""

    store: Store
    calls: Calls
    admit: Callable[[Ask, float], float]

    def submit(self, ask: Ask) -> Accepted:
        """See Store.submit; also raises SpendCapReached and NotDeployed.

        How many jobs of a token run at once is for `max_containers` to say: a call that finds nothing to do is over, and
        nobody would come back for a job that had to wait.
        """
        accepted = self.store.submit(replace(ask, running=None))
        if accepted.replayed:
            return accepted
        try:
            # Open jobs are taken to cost what this one does: the store keeps no dollars.
            counts = self.store.counts()
            others = counts.get("queued", 0) + counts.get("running", 0) - 1
            self.admit(ask, 0.0 if not others else others * self.admit(ask, 0.0))
            self.calls.begin(ask.token, accepted.job.id)
        except Exception:
            self.store.remove(ask.token, accepted.job.id)
            raise
        return accepted

    def get(self, token: str, id: str) -> Job:  # noqa: A002
        """See Store."""
        return self.store.get(token, id)

    def page(self, token: str, after: str | None = None, limit: int = 20, newest_first: bool = True) -> Sequence[Job]:
        """See Store."""
        return self.store.page(token, after, limit, newest_first)

    def place(self, job: Job) -> Place:
        """See Store."""
        return self.store.place(job)

    def counts(self) -> dict[str, int]:
        """See Store."""
        return self.store.counts()

    def cancel(self, token: str, id: str) -> Job:  # noqa: A002
        """See Store. The call of a queued job finds nothing to do later, which takes a container a moment."""
        return self.store.cancel(token, id)

    def remove(self, token: str, id: str) -> None:  # noqa: A002
        """See Store."""
        self.store.remove(token, id)


def open_queue(
    url: str, rules: Rules, board: Board, calls: Calls, admit: Callable[[Ask, float], float]
) -> tuple[StoreQueue, Callable[[], Sequence[Token]]]:
    """The queue of a web container, and what reads its tokens. Raises StoreUnavailable."""
    del board
    store = Store(url, rules)
    return StoreQueue(store, calls, admit), Tokens(store.database).live


class VolumeShelf(Shelf):
    """A Shelf whose drafts are on the container's own disk, and which commits what it publishes."""

    def __init__(self, outputs: Outputs):
        super().__init__(outputs.folder)
        object.__setattr__(self, "outputs", outputs)

    outputs: Outputs

    def draft(self, claim: Claim) -> Path:
        """A fresh place for the engine to write."""
        self.discard(claim)
        folder = self._local(claim)
        folder.mkdir(parents=True)
        return folder / NAME

    def publish(self, claim: Claim) -> dict[str, int | str]:
        """Copy the draft to the volume and commit it. Raises GenerationFailed."""
        published = self.outputs.publish(self._local(claim) / NAME, claim.number, claim.attempt)
        shutil.rmtree(self._local(claim), ignore_errors=True)
        return published

    def discard(self, claim: Claim) -> None:
        """Delete everything of this attempt."""
        shutil.rmtree(self._local(claim), ignore_errors=True)
        self.outputs.discard(claim.number, claim.attempt)

    def _local(self, claim: Claim) -> Path:
        return Path(tempfile.gettempdir()) / f"ltx2-{claim.number}-{claim.attempt}"


@dataclass(frozen=True)
class Hand:
    """A GPU container at the store: each call makes one job. `attempts`: how often one is begun when containers die."""

    store: Store
    board: Board
    engine: Engine
    inspect: Inspect
    outputs: Outputs
    attempts: int

    def make_next(self, call: str) -> dict[str, Any]:
        """Make the next job; `call` names the input, and finds its own job again when it is begun anew."""
        # Not Store.claim, which looks for queued jobs first: a call that is begun anew wants its own running one.
        claim = self.store.database.write(claims.claim, call, self.store.rules)
        if claim is None:
            return {"state": "nothing"}
        begun = self.board.begun(claim.number) + 1
        self.board.begin(claim.number, begun)
        if begun > self.attempts:
            return {"number": claim.number, "state": self.store.finish(claim, CRASHED)}
        worker = Worker(self.store, self.engine, VolumeShelf(self.outputs), name=call, inspect=self.inspect)
        worker.work(claim, threading.Event())
        self.deliver()
        return {"number": claim.number, "state": "ended"}

    def deliver(self) -> None:
        """Send the webhooks that are due, beside the next job; later tries are the sweep's."""
        threading.Thread(target=_deliver, args=(self.store,), name="courier", daemon=True).start()


def deliver_due(store: Store) -> int:
    """Send every webhook that is due; returns how many were tried. Signed with the secrets of the token's name."""
    tokens = Tokens(store.database).live()
    own = os.environ.get("LTX2_WEBHOOK_SECRET", "")

    def secrets(name: str) -> list[str]:
        return [token.webhook_secret for token in tokens if token.name == name] or ([own] if own else [])

    send, count = Outside().send, 0
    while deliver(store, send, secrets):
        count += 1
    return count


def _deliver(store: Store) -> None:
    try:
        deliver_due(store)
    except Exception as error:  # the letters are in the database, and will be tried again
        LOG.warning("webhooks wait for the sweep: %s", error)


def sweep_store(store: Store, outputs: Outputs, calls: Calls) -> dict[str, int]:
    """Free the jobs of dead containers and call for them again, delete old files, send due webhooks."""
    swept = store.sweep()
    for _ in range(store.counts().get("queued", 0) if swept.lost else 0):
        calls.begin("", "")
    shelf = VolumeShelf(outputs)
    return {
        "lost": swept.lost,
        "withered": shelf.wither(store),
        "cleared": shelf.clear(store),
        "webhooks": deliver_due(store),
    }
