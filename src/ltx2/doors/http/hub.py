"""One look at a job for all who wait for it: a poller for each job that is followed, shared by its readers."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import anyio.to_thread

from ltx2.doors.http.service import Queue
from ltx2.jobs.errors import NoSuchJob, StoreUnavailable
from ltx2.jobs.job import Job
from ltx2.jobs.line import Place

LOG = logging.getLogger(__name__)

# Seconds between looks at a job; with many followed jobs each is looked at more rarely, so that all of them together
# cost no more than EASY of them.
LOOK = 0.1
EASY = 10
SLOWEST = 2.0
LOOKERS = 4


@dataclass
class Watch:
    """The newest that is known of one job. `job` is None when it was removed; `count` grows with every change."""

    job: Job | None
    place: Place | None = None
    count: int = 0
    readers: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    poller: asyncio.Task[None] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.job is None or not self.job.open

    def tell(self, job: Job | None, place: Place | None) -> None:
        """Wake all readers if this is news."""
        news = job is None or self.job is None or job.version != self.job.version or place != self.place
        self.job, self.place = job, place
        if news:
            self.count += 1
            self.changed.set()
            self.changed = asyncio.Event()

    async def next(self, count: int, seconds: float) -> bool:
        """Wait until there is something newer than `count`, or the end; False when it took too long."""
        if self.count > count or self.ended:
            return True
        try:
            async with asyncio.timeout(seconds):
                await self.changed.wait()
        except TimeoutError:
            return False
        return True


class Hub:
    """All followed jobs of this process."""

    def __init__(self, queue: Queue):
        self._queue = queue
        self._watches: dict[tuple[str, str], Watch] = {}
        self._lookers = anyio.CapacityLimiter(LOOKERS)

    @asynccontextmanager
    async def follow(self, job: Job) -> AsyncGenerator[Watch]:
        """The Watch of a job, as long as the block runs."""
        key = (job.token, job.id)
        watch = self._watches.get(key)
        if watch is None or watch.job is None or watch.job.number != job.number:
            watch = self._watches[key] = Watch(job)
        watch.readers += 1
        if watch.poller is None and not watch.ended:
            watch.poller = asyncio.create_task(self._poll(key, watch))
        try:
            yield watch
        finally:
            watch.readers -= 1
            if not watch.readers:
                if watch.poller is not None:
                    watch.poller.cancel()
                if self._watches.get(key) is watch:
                    del self._watches[key]

    def _pause(self) -> float:
        return min(SLOWEST, LOOK * max(1.0, len(self._watches) / EASY))

    async def _poll(self, key: tuple[str, str], watch: Watch) -> None:
        if len(self._watches) > EASY:
            # Many that come at once must not all look at once.
            await asyncio.sleep(random.uniform(0, self._pause()))
        while not watch.ended:
            try:
                job, place = await anyio.to_thread.run_sync(self._look, *key, limiter=self._lookers)
                # A removed job's id is free again for its client.
                watch.tell(job if watch.job is not None and job.number == watch.job.number else None, place)
            except NoSuchJob:
                watch.tell(None, None)
            except StoreUnavailable as error:
                # The readers wait like everybody else.
                LOG.warning("%s", error)
            except Exception:
                LOG.exception("a job could not be looked at")
            await asyncio.sleep(self._pause())

    def _look(self, token: str, id: str) -> tuple[Job, Place | None]:  # noqa: A002
        job = self._queue.get(token, id)
        return job, self._queue.place(job) if job.state == "queued" else None
