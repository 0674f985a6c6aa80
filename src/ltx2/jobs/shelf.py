"""Where finished files stand: a folder for each attempt of each job, complete and on disk before the queue says so."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ltx2.jobs.job import Claim, Job
from ltx2.jobs.store import Store

NAME = "out.mp4"
CHUNK = 1 << 20
BATCH = 100


@dataclass(frozen=True)
class Shelf:
    """The folder of all jobs: `<number>/<attempt>/out.mp4`, and `<number>/<attempt>.part` while it is being made.

    No name in it comes from a client. Workers on several machines need a shared folder.
    """

    folder: Path

    def takes_files(self) -> bool:
        """Whether the folder is there and can be written, as that of a failing disk, made read-only, cannot."""
        return os.access(self.folder, os.W_OK | os.X_OK)

    def draft(self, claim: Claim) -> Path:
        """A fresh place for the engine to write the video of this attempt."""
        part = self._part(claim)
        self.discard(claim)
        part.mkdir(parents=True)
        return part / NAME

    def publish(self, claim: Claim) -> dict[str, int | str]:
        """Bring the draft to disk and rename it to its final place; returns `bytes` and `sha256` of the video.

        Whether it counts is decided later, by the fenced commit of the attempt. Raises OSError.
        """
        part, place = self._part(claim), self._place(claim)
        for path in sorted(part.rglob("*")):
            _sync(path)
        _sync(part)
        part.rename(place)
        # The new names must survive a power cut as well: those of the attempt, of the job, and of its folder.
        _sync(place.parent)
        _sync(self.folder)
        with (place / NAME).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": (place / NAME).stat().st_size, "sha256": digest}

    def video(self, job: Job) -> Path | None:
        """The published video of a job; None when there is none, or none any more."""
        if job.published is None:
            return None
        return self.folder / str(job.number) / str(job.published) / NAME

    def discard(self, claim: Claim) -> None:
        """Delete everything of this attempt."""
        for path in (self._part(claim), self._place(claim)):
            shutil.rmtree(path, ignore_errors=True)

    def wither(self, store: Store, at: float | None = None) -> int:
        """Delete the files of jobs that have been kept long enough `at` a moment, by default now, or were removed; returns
        how many jobs."""
        jobs = store.withering(at)
        for job in jobs:
            # Files first: after a crash in between the row is still there to say what is to be done.
            shutil.rmtree(self.folder / str(job.number), ignore_errors=True)
            store.withered(job)
        return len(jobs)

    def clear(self, store: Store) -> int:
        """Delete what killed workers left: attempts that lost, and folders without a job; returns how many."""
        numbers = sorted(int(path.name) for path in self.folder.glob("[0-9]*") if path.name.isdigit())
        cleared = 0
        for begin in range(0, len(numbers), BATCH):
            batch = numbers[begin : begin + BATCH]
            jobs = store.standing(batch)
            for number in batch:
                cleared += self._clear(number, jobs.get(number))
        return cleared

    def _clear(self, number: int, job: Job | None) -> int:
        folder = self.folder / str(number)
        if job is None or (job.published is None and not job.open):
            shutil.rmtree(folder, ignore_errors=True)
            return 1
        gone = 0
        for path in folder.glob("[0-9]*"):
            attempt = path.name.partition(".")[0]
            # An attempt under way, or about to be, is left alone.
            old = attempt.isdigit() and int(attempt) < job.attempt
            if old if job.open else path.name != str(job.published):
                shutil.rmtree(path, ignore_errors=True)
                gone += 1
        return gone

    def _part(self, claim: Claim) -> Path:
        return self.folder / str(claim.number) / f"{claim.attempt}.part"

    def _place(self, claim: Claim) -> Path:
        return self.folder / str(claim.number) / str(claim.attempt)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
