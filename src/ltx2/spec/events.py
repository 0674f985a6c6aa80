"""What is happening: the values that a running generation yields."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Progress:
    """Step `step` of `steps` of a phase is done: text, stage 1, upsample, stage 2, decode, sound, write.

    On a GPU `decode` (of the first frames) and `sound` are done when they are under way. Frames are written as they come;
    the last step of `write` comes when the file is complete, sound and all. `skipped` of a stage's steps were not computed
    (step caching).
    """

    phase: str
    step: int
    steps: int
    skipped: int = 0


@dataclass(frozen=True)
class Retrying:
    """The plan is tried again in another way; `reason` says why."""

    reason: str


@dataclass(frozen=True)
class Finished:
    """The file is complete and in place.

    `seconds` is the wall time of the whole run, `timings` those of its phases, `peak_bytes` the device memory peak
    (resident memory of the process on a CPU), `warnings` what a user should know about the result. `skipped` denoising
    steps were not computed (step caching).
    """

    path: Path
    seed: int
    seconds: float
    peak_bytes: int
    timings: dict[str, float] = field(default_factory=dict[str, float])
    warnings: tuple[str, ...] = ()
    skipped: int = 0


Event = Progress | Retrying | Finished
