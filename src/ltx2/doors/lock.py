"""A file that one process holds as long as it lives, with its number in it; the kernel lets go of it when the process ends."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path


class Taken(Exception):
    """Another process holds the file; `holder` is its number, or `unknown`."""

    def __init__(self, holder: str):
        super().__init__(holder)
        self.holder = holder


def take(path: Path, mode: int = 0o600) -> int:
    """Hold a file, made if it is not there; the descriptor keeps it. Raises Taken, and OSError for a link."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags | os.O_RDWR | os.O_CREAT, mode)
    except PermissionError:
        # Another user's: it can be waited for, not written.
        descriptor = os.open(path, flags | os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 64).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise Taken(holder) from None
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
