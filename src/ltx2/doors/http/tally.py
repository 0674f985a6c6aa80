"""What has become of jobs: each of those that ended since this server began, counted once, and the pace of the last ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram

from ltx2.jobs.job import Job

# A commit may become visible after a later one.
LATE = 60.0
PACE = 600.0
# Kept to know a job again; older ones are not counted, whoever looks at them.
KNOWN = 3600.0
MOST = 1000
SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 180.0, 600.0, 1800.0)
# Errors have names of ours only, but a newer worker may know more of them.
CODES = frozenset(
    {
        "cancelled", "deadline_exceeded", "worker_crashed", "out_of_memory", "invalid_output", "storage_full", "failed",
        "internal",
    }
)  # fmt: skip


class Ended(Protocol):
    """Jobs that ended after a time (seconds since 1970), the earliest first, at most so many; removed ones too."""

    def __call__(self, since: float, limit: int) -> Sequence[Job]: ...


class End(NamedTuple):
    """When a job ended, whose it was, and who made it."""

    at: float
    token: str
    worker: str | None


class Tally:
    """Counts the jobs that end, wherever their workers are: every server of one database counts all of them.

    `ended` asks the queue for them, where it can say it (None: only jobs that somebody looks at are counted).
    """

    def __init__(self, registry: CollectorRegistry, ended: Ended | None = None, price: float = 0.0):
        self._ended, self._price, self._lock = ended, price, threading.Lock()
        self._newest = self._begun = time.time()
        self._known: dict[int, End] = {}
        self._jobs = Counter(
            "ltx2_jobs_ended", "Jobs that ended, by state and error", ("state", "code"), registry=registry
        )
        self._tries = Counter("ltx2_job_attempts", "Attempts of the jobs that ended", registry=registry)
        self._again = Counter("ltx2_jobs_retried", "Jobs that ended and had more than one attempt", registry=registry)
        self._warned = Counter(
            "ltx2_jobs_with_warnings", "Finished videos with warnings, as for a black picture", registry=registry
        )
        self._busy = Counter("ltx2_gpu_seconds", "Seconds of engines for finished videos", registry=registry)
        self._pixels = Counter("ltx2_megapixel_frames", "Millions of pixels of finished videos", registry=registry)
        self._cost = Counter("ltx2_cost_dollars", "What finished videos cost", registry=registry)
        self._waited = Histogram("ltx2_job_wait_seconds", "To the last start", buckets=SECONDS, registry=registry)
        self._took = Histogram(
            "ltx2_job_run_seconds", "From the last start to the end", buckets=SECONDS, registry=registry
        )

    def look(self) -> None:
        """Count what has ended since the last look. Raises StoreUnavailable."""
        while self._ended is not None:
            found = self._ended(max(self._newest - LATE, self._begun), MOST)
            new = [self.count(job) for job in found]
            if len(found) < MOST or not any(new):
                return

    def count(self, job: Job) -> bool:
        """Count a job if it has ended, and was not counted before."""
        if job.open or job.finished is None:
            return False
        with self._lock:
            oldest = max(self._begun, self._newest - KNOWN)
            if job.number in self._known or job.finished < oldest:
                return False
            self._known[job.number] = End(job.finished, job.token, job.worker)
            self._newest = max(self._newest, job.finished)
            if len(self._known) > MOST and next(iter(self._known.values())).at < oldest:
                self._known = {number: end for number, end in self._known.items() if end.at >= oldest}
        self._write(job, job.finished)
        return True

    def _write(self, job: Job, finished: float) -> None:
        code = (job.error or {}).get("code", "")
        self._jobs.labels(job.state, code if code in CODES or not code else "other").inc()
        self._tries.inc(job.attempt)
        self._again.inc(job.attempt > 1)
        if job.started is not None:
            self._waited.observe(max(0.0, job.started - job.created))
            self._took.observe(max(0.0, finished - job.started))
        if job.result is not None:
            self._warned.inc(bool(job.result.get("warnings")))
            seconds = float(job.result["seconds"])
            self._busy.inc(seconds)
            self._pixels.inc(job.plan["width"] * job.plan["height"] * job.plan["frames"] / 1e6)
            self._cost.inc(float(job.result.get("cost", seconds / 3600 * self._price)))

    def workers(self) -> int:
        """How many workers ended a job lately; at least one."""
        return max(1, len({end.worker for end in self._lately() if end.worker}))

    def pause(self, token: str | None = None) -> float | None:
        """Mean seconds between the ends of recent jobs (of one token); None when there were none."""
        ends = [end.at for end in self._lately() if token is None or end.token == token]
        return (max(ends) - min(ends)) / (len(ends) - 1) if len(ends) > 1 else None

    def _lately(self) -> list[End]:
        with self._lock:
            known = tuple(self._known.values())
        return [end for end in known if end.at > self._newest - PACE]
