"""The journal: a line in the log for each job that is accepted, cancelled or removed; ended ones are counted when seen."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ltx2.doors.http.service import Queue
from ltx2.doors.http.tally import Tally
from ltx2.jobs.errors import QueueFull, StoreUnavailable
from ltx2.jobs.job import Accepted, Ask, Job

LOG = logging.getLogger(__name__)


class Journal:
    """A queue that writes down what is done to it. The prompt is among it; `logs` hides it unless it is wanted."""

    def __init__(self, queue: Queue, tally: Tally):
        self._queue, self._tally = queue, tally

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    def submit(self, ask: Ask) -> Accepted:
        """As the queue does; who finds it full is told when a place will probably be free."""
        try:
            accepted = self._queue.submit(ask)
        except QueueFull as error:
            error.retry_after = self._pause(ask.token, error.own)
            raise
        job, plan = accepted.job, ask.plan
        video = {"preset": plan.preset, "size": f"{plan.width}x{plan.height}x{plan.frames}", "prompt": plan.prompt}
        LOG.info("job accepted", extra=_named(job) | video | {"model": plan.model, "replayed": accepted.replayed})
        return accepted

    def get(self, token: str, id: str) -> Job:  # noqa: A002
        """As the queue does."""
        job = self._queue.get(token, id)
        self._tally.count(job)
        return job

    def page(self, token: str, after: str | None = None, limit: int = 20, newest_first: bool = True) -> Sequence[Job]:
        """As the queue does."""
        jobs = self._queue.page(token, after, limit, newest_first)
        for job in jobs:
            self._tally.count(job)
        return jobs

    def _pause(self, token: str, own: bool) -> float | None:
        try:
            self._tally.look()
        except StoreUnavailable:
            return None
        return (self._tally.pause(token) if own else None) or self._tally.pause()

    def cancel(self, token: str, id: str) -> Job:  # noqa: A002
        """As the queue does."""
        job = self._queue.cancel(token, id)
        LOG.info("cancel asked", extra=_named(job) | {"state": job.state})
        return job

    def remove(self, token: str, id: str) -> None:  # noqa: A002
        """As the queue does."""
        self._queue.remove(token, id)
        LOG.info("job removed", extra={"job": id, "token": token})


def _named(job: Job) -> dict[str, Any]:
    # The number is what workers and folders know it by.
    return {"job": job.id, "number": job.number, "token": job.token}
