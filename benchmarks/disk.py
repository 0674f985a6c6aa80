"""How fast a disk reads and writes, past the page cache: what loading is compared with."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ltx2.models.reading import PIECE, THREADS

# Files that are written at once.
WRITERS = 4


def probe(root: Path, size: int) -> dict[str, Any]:
    """GB/s of a disk, writing and reading `size` bytes, whether the page cache was empty of them, and what is free."""
    files = [root / f"probe-{number}" for number in range(WRITERS)]
    part = size // WRITERS

    def fill(file: Path) -> None:
        with file.open("wb") as stream:
            stream.write(os.urandom(part))
            stream.flush()
            os.fsync(stream.fileno())

    begin = time.perf_counter()
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(fill, files))
    writing = WRITERS * part / (time.perf_counter() - begin)
    reading = WRITERS * part / seconds_to_read(files, 0)
    cached = drop(files)
    for file in files:
        file.unlink()
    speeds = {"write_gb_s": writing / 1e9, "read_gb_s": reading / 1e9, "cached_before": cached}
    return {**speeds, "free_bytes": shutil.disk_usage(root).free}


def file_system(folder: Path) -> str:
    """The kind of file system that holds a folder, as /proc/mounts names it."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, name, *_ = line.split()
        if folder.resolve().is_relative_to(place) and len(place) >= len(best):
            best, kind = place, name
    return kind


def seconds_to_read(files: list[Path], flags: int) -> float:
    """Read all bytes with as many threads and pieces as the loader uses, into buffers that are thrown away.

    Raises OSError where the file system cannot do it with these flags.
    """
    drop(files)
    local = threading.local()

    def fetch(file: int, start: int) -> int:
        if not hasattr(local, "buffer"):
            # O_DIRECT wants memory that begins at a page.
            local.buffer = memoryview(mmap.mmap(-1, PIECE))
        return os.preadv(file, [local.buffer], start)

    opened: list[int] = []
    try:
        opened += [os.open(file, os.O_RDONLY | flags) for file in files]
        begin = time.perf_counter()
        with ThreadPoolExecutor(THREADS) as pool:
            spans = [(number, start) for number in opened for start in range(0, os.fstat(number).st_size, PIECE)]
            total = sum(pool.map(lambda span: fetch(*span), spans))
        seconds = time.perf_counter() - begin
    finally:
        for number in opened:
            os.close(number)
    if total != sum(file.stat().st_size for file in files):
        raise OSError("not all was read")
    return seconds


def drop(files: list[Path]) -> float:
    """Drop the files from the page cache; the share of sampled pages that are still there (0 is right)."""
    there = tried = 0
    for file in files:
        number = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            size = os.fstat(number).st_size
            # Far apart, since a sample that is not there would start reading ahead.
            for start in random.Random(0).sample(range(0, size, 4096), min(32, size // 4096)):
                tried += 1
                try:
                    there += os.preadv(number, [bytearray(1)], start, os.RWF_NOWAIT)
                except BlockingIOError:
                    continue
                except OSError:
                    return -1.0  # this file system cannot tell
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(number)
    return there / max(tried, 1)
