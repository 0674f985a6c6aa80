"""What tests of engines in child processes share: short limits, a job, and whether a process is gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ltx2.engine.process import Limits, ProcessEngine
from ltx2.spec.events import Finished
from tests.import_path import import_path
from tests.jobs.asks import plan

FAULTY = "tests.engine.faulty:make"
HERE = {"PYTHONPATH": import_path()}
QUICK = Limits(start=30.0, first=30.0, stall=30.0, cancel=30.0, kill=1.0, rest=0.01, longest_rest=0.05)
Make = Callable[..., ProcessEngine]


def run(engine: ProcessEngine, out: Path, prompt: str = "a cat") -> list[Any]:
    return list(engine(plan(prompt), out))


def works(engine: ProcessEngine, folder: Path) -> None:
    """The next job succeeds."""
    out = folder / "after.mp4"
    assert isinstance(run(engine, out)[-1], Finished) and out.exists()


def is_gone(pid: int) -> bool:
    """Whether a process is no more, or a zombie that its new parent has not collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
