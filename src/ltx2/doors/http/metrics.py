"""What Prometheus is told: requests by route, jobs by state, workers by state; no label comes from a client."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

STATES = ("queued", "running", "done", "failed", "cancelled", "expired")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"})
SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 180.0)


class Metrics:
    """The metrics of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route")
        self._requests = Counter(
            "ltx2_http_requests", "Requests that were answered", (*labels, "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "ltx2_http_request_seconds", "Time to the end of an answer", labels, buckets=SECONDS, registry=self.registry
        )
        self._open = Gauge("ltx2_http_requests_open", "Requests being answered", registry=self.registry)
        self._jobs = Gauge("ltx2_jobs", "Jobs that the queue remembers, by state", ("state",), registry=self.registry)
        self._workers = Gauge("ltx2_workers", "Workers of this server, by state", ("state",), registry=self.registry)
        self._ready = Gauge("ltx2_ready", "Whether a new job could begin", registry=self.registry)
        self._oldest = Gauge(
            "ltx2_queue_wait_seconds", "How long the oldest waiting job has waited", registry=self.registry
        )
        self._letters = Gauge("ltx2_webhooks_pending", "Webhooks still to be delivered", registry=self.registry)
        self._free = Gauge("ltx2_disk_free_bytes", "Free space for videos", registry=self.registry)

    def in_flight(self) -> AbstractContextManager[object]:
        """A block during which a request counts as open."""
        return self._open.track_inprogress()

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer; `route` is a pattern of ours. Status 0 means that the client left first."""
        method = method if method in METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def jobs(self, counts: Mapping[str, int]) -> None:
        """Jobs in each state."""
        for state in STATES:
            self._jobs.labels(state).set(counts.get(state, 0))

    def queue(self, oldest: float | None, letters: int | None) -> None:
        """Seconds of the oldest waiting job, webhooks to be delivered; None where the queue cannot say."""
        for gauge, value in ((self._oldest, oldest), (self._letters, letters)):
            if value is not None:
                gauge.set(value)

    def house(self, workers: Mapping[str, str], ready: bool, free: int) -> None:
        """State of every worker by name, readiness, free bytes."""
        self._workers.clear()
        for state in workers.values():
            self._workers.labels(state).inc()
        self._ready.set(ready)
        self._free.set(free)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
