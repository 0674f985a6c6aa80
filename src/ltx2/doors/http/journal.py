"""The journal: one line in the log for each job that is accepted, cancelled or removed, by whoever asks through HTTP."""

from __future__ import annotations

import logging
from typing import Any

from ltx2.doors.http.service import Queue
from ltx2.jobs.job import Accepted, Ask, Job

LOG = logging.getLogger(__name__)


class Journal:
    """A queue that writes down what is done to it. The prompt is among it; `logs` hides it unless it is wanted."""

    def __init__(self, queue: Queue):
        self._queue = queue

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    def submit(self, ask: Ask) -> Accepted:
        """As the queue does."""
        accepted = self._queue.submit(ask)
        job, plan = accepted.job, ask.plan
        video = {"preset": plan.preset, "size": f"{plan.width}x{plan.height}x{plan.frames}", "prompt": plan.prompt}
        LOG.info("job accepted", extra=_named(job) | video | {"model": plan.model, "replayed": accepted.replayed})
        return accepted

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
