"""Finished files on the outputs volume: `<number>/<attempt>/out.mp4`, written once, committed before the job is done."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import modal.exception

from ltx2.jobs.job import Job
from ltx2.jobs.shelf import NAME
from ltx2.spec.errors import GenerationFailed

LOG = logging.getLogger(__name__)
# Commits and reloads meet other ones, and open files: seconds between tries.
PAUSES = (0.1, 0.3, 1.0, 2.0, 4.0)
CACHE_BYTES = 2 << 30


class Volume(Protocol):
    """The part of `modal.Volume` that is used here."""

    def commit(self) -> None: ...

    def reload(self) -> None: ...


@dataclass(frozen=True)
class Outputs:
    """The mounted volume, for containers that write."""

    folder: Path
    volume: Volume
    pauses: tuple[float, ...] = PAUSES

    def publish(self, draft: Path, number: int, attempt: int) -> dict[str, int | str]:
        """Copy a finished draft into place and commit it; returns `bytes` and `sha256`.

        Raises GenerationFailed when the volume takes no commit in spite of repeated tries.
        """
        place = self.place(number, attempt)
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_suffix(".part")
        with draft.open("rb") as source, part.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
            target.flush()
            os.fsync(target.fileno())
        part.rename(place)
        try:
            patiently(self.volume.commit, self.pauses)
        except (modal.exception.Error, RuntimeError, OSError) as error:
            LOG.error("the outputs volume takes nothing: %s", error)
            raise GenerationFailed("the video could not be stored") from None
        with draft.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": draft.stat().st_size, "sha256": digest}

    def discard(self, number: int, attempt: int | None = None) -> None:
        """Delete an attempt, or everything of a job; gone for others with the next commit."""
        folder = self.folder / str(number)
        shutil.rmtree(folder if attempt is None else folder / str(attempt), ignore_errors=True)

    def place(self, number: int, attempt: int) -> Path:
        """Where the video of an attempt stands."""
        return self.folder / str(number) / str(attempt) / NAME


@dataclass
class Copies:
    """The `Files` of a web container: a local copy of each video that is asked for, made once.

    No file on the volume stays open, since that would keep the volume from reloading. The copies least recently asked
    for go when they take more than `most` bytes.
    """

    outputs: Outputs
    cache: Path
    most: int = CACHE_BYTES
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def video(self, job: Job) -> Path | None:
        """The published video of a job; None when there is none, or none any more."""
        if job.published is None:
            return None
        copy = self.cache / str(job.number) / str(job.published) / NAME
        with self._lock:
            if not copy.exists() and not self._bring(self.outputs.place(job.number, job.published), copy):
                return None
            os.utime(copy)
        return copy

    def _bring(self, place: Path, copy: Path) -> bool:
        if not place.exists():
            try:
                patiently(self.outputs.volume.reload, self.outputs.pauses)
            except (modal.exception.Error, RuntimeError, OSError) as error:
                LOG.warning("the outputs volume could not be reloaded: %s", error)
        if not place.exists():
            return False
        self._make_room(place.stat().st_size)
        copy.parent.mkdir(parents=True, exist_ok=True)
        part = copy.with_suffix(".part")
        shutil.copyfile(place, part)
        part.rename(copy)
        return True

    def _make_room(self, size: int) -> None:
        copies = sorted(self.cache.glob(f"*/*/{NAME}"), key=lambda path: path.stat().st_mtime)
        held = sum(path.stat().st_size for folder in self.cache.glob("*/*") for path in folder.iterdir())
        for path in copies:
            if held + size <= self.most:
                return
            held -= sum(beside.stat().st_size for beside in path.parent.iterdir())
            shutil.rmtree(path.parent.parent, ignore_errors=True)


def patiently(act: Callable[[], None], pauses: tuple[float, ...] = PAUSES) -> None:
    """Do what a busy volume may refuse, again and again; the last refusal is raised."""
    for pause in pauses:
        try:
            return act()
        except (modal.exception.Error, RuntimeError, OSError):
            time.sleep(pause)
    return act()
