"""The one way a job ends: state, retention, quota and webhook in the same transaction."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, update

from ltx2.jobs import quota
from ltx2.jobs.database import clock
from ltx2.jobs.job import TRANSITIONS, Ending, Job, Rules
from ltx2.jobs.outbox import post
from ltx2.jobs.tables import JOBS


def end(connection: Connection, job: Job, ending: Ending, rules: Rules, worker: str | None = None) -> None:
    """End a job whose row the transaction holds; `worker` is who did it, None for the house itself.

    Raises ValueError for a change of state that is not allowed.
    """
    if ending.state not in TRANSITIONS.get(job.state, ()):
        raise ValueError(f"job {job.number} cannot go from {job.state} to {ending.state}")
    now = clock(connection)
    values: dict[str, Any] = {
        "state": ending.state,
        "result": ending.result,
        "error": ending.error,
        "published": job.attempt if ending.state == "done" else None,
        "worker": worker,
        "lease_until": None,
        "finished": now,
        "expires": now + rules.files,
        "version": JOBS.c.version + 1,
    }
    connection.execute(update(JOBS).where(JOBS.c.number == job.number).values(values))
    quota.refund(connection, job, ending)
    if job.webhook is not None:
        post(connection, job, ending.state, now)
