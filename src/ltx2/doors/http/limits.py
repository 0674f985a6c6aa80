"""What a new job must pass before its body is looked at: the token's rate, the disk, and whether the house still takes any."""

from __future__ import annotations

import math
import shutil
import threading
import time
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from ltx2.doors.http.caller import Caller, allowed, tightest
from ltx2.doors.http.service import Service, the_service
from ltx2.spec.errors import Ltx2Error

GIB = 1 << 30
# Free space is looked at once in so many seconds.
LOOK = 2.0
# An SDK that is told to wait longer gives up.
LONGEST_WAIT = 120
BUCKETS = 10_000


class RateLimited(Ltx2Error):
    """Too many requests of one token or address."""

    code = "rate_limited"
    status = 429

    def __init__(self, message: str, seconds: float):
        super().__init__(message, hint=f"try again in {math.ceil(seconds)} s")
        self.retry_after = seconds


class NoRoom(Ltx2Error):
    """The disk is nearly full: what is there can be read, nothing new is taken."""

    code = "storage_full"
    status = 503
    retry_after = 60


class Draining(Ltx2Error):
    """The service was told to stop: it still answers, and takes nothing new."""

    code = "draining"
    status = 503
    retry_after = 10


class Buckets:
    """Token buckets by name: `rate` a minute each, of which `burst` may come at once. At most 10,000 names are kept."""

    def __init__(self) -> None:
        self._full: dict[str, float] = {}
        self._lock = threading.Lock()

    def take(self, name: str, rate: float, burst: float) -> float:
        """Take one; 0, or the seconds until there is one."""
        now, pause = time.monotonic(), 60.0 / rate
        with self._lock:
            # The time at which the bucket is full again says how much is missing from it.
            full_at = max(self._full.pop(name, now), now)
            wait = full_at + pause - now - burst * pause
            if wait <= 1e-9:
                full_at += pause
            self._full[name] = full_at
            if len(self._full) > BUCKETS:
                # The one that was asked least recently.
                self._full.pop(next(iter(self._full)))
        return max(0.0, wait) if wait > 1e-9 else 0.0


class Disk:
    """Free space of the file system of a folder, looked at now and then."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._seen = (-math.inf, 0)

    def free(self) -> int:
        """Bytes."""
        looked, free = self._seen
        if time.monotonic() - looked > LOOK:
            free = shutil.disk_usage(self.folder).free
            self._seen = (time.monotonic(), free)
        return free


def admit(
    request: Request,
    caller: Annotated[Caller, Depends(allowed("generate"))],
    service: Annotated[Service, Depends(the_service)],
) -> Caller:
    """A dependency of routes that make jobs. Raises Draining, RateLimited and NoRoom, all before the body is read."""
    if service.duty.draining:
        raise Draining("the service is about to stop", hint="try again in a moment")
    rpm = tightest(caller.rpm, service.settings.rpm)
    seconds = request.app.state.buckets.take(caller.name, rpm, max(1.0, rpm / 6))
    if seconds:
        raise RateLimited(f"more than {rpm} new jobs a minute", seconds)
    if request.app.state.disk.free() < service.settings.min_free_gib * GIB:
        raise NoRoom("there is no room for another video", hint="try again later")
    return caller
