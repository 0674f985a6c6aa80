"""What the API's routes of one process share beyond the Service: the hub, the estimates, the maker of variants."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from starlette.concurrency import run_in_threadpool

from ltx2.doors.http import variants
from ltx2.doors.http.estimates import Estimates
from ltx2.doors.http.hub import Hub
from ltx2.doors.http.load import Readers
from ltx2.doors.http.refusals import Busy
from ltx2.doors.http.service import Service, the_service
from ltx2.doors.http.variants import Form
from ltx2.doors.http.view import View
from ltx2.jobs.job import Job
from ltx2.jobs.line import Place

MAKERS = 2
WAITING = 32


class Maker:
    """Makes variants, two at a time, each of them once however many ask for it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(MAKERS, thread_name_prefix="variant")
        self._under_way: dict[tuple[Path, Form], Future[Path]] = {}
        self._lock = threading.Lock()

    async def make(self, video: Path, form: Form) -> Path:
        """The file of a variant. Raises Busy when too many are asked for at once, and what `variants.make` raises."""
        found = await run_in_threadpool(variants.find, video, form)
        if found is not None:
            return found
        # Who leaves does not stop the work for the others.
        return await asyncio.shield(asyncio.wrap_future(self._begin((video, form))))

    def _begin(self, key: tuple[Path, Form]) -> Future[Path]:
        with self._lock:
            future = self._under_way.get(key)
            if future is not None:
                return future
            if len(self._under_way) >= WAITING:
                raise Busy(f"{WAITING} other files are being made", hint="try again in a moment")
            future = self._under_way[key] = self._pool.submit(variants.make, *key)
        # Outside of the lock, which it takes: of work that is done already the callback is called here and now.
        future.add_done_callback(lambda _: self._end(key))
        return future

    def _end(self, key: tuple[Path, Form]) -> None:
        with self._lock:
            self._under_way.pop(key, None)

    def close(self) -> None:
        """Let go of the threads; what they are making is left to them."""
        self._pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class Parts:
    """The shared parts of one application."""

    service: Service
    hub: Hub
    estimates: Estimates
    maker: Maker
    pictures: Readers = field(default_factory=lambda: Readers(4, "pictures"))
    lookups: Readers = field(default_factory=lambda: Readers(8, "look-ups of webhooks"))

    def close(self) -> None:
        """Let go of the threads: the application ends."""
        self.maker.close()

    def view(self, request: Request) -> View:
        """The view of jobs for one request."""
        return View(self.service, self.estimates, str(request.base_url).rstrip("/"))

    def place(self, job: Job) -> Place | None:
        """Where a queued job stands in line; asks the database."""
        return self.service.queue.place(job) if job.state == "queued" else None


async def the_parts(request: Request, service: Annotated[Service, Depends(the_service)]) -> Parts:
    """The parts of the application that a request came to; made with the first one."""
    state = request.app.state
    if not hasattr(state, "parts"):
        # Those that ended jobs lately, on whatever machine, or those that stand ready here.
        here = service.duty
        estimates = Estimates(lambda: max(state.tally.workers(), len(here.workers)))
        state.parts = Parts(service, Hub(service.queue), estimates, Maker())
    return state.parts


async def close(app: FastAPI) -> None:
    """Let go of the parts of an application that ends, if it ever had any."""
    if hasattr(app.state, "parts"):
        app.state.parts.close()


TheParts = Annotated[Parts, Depends(the_parts)]
