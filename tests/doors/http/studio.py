"""A whole service for tests of the API: a store, a shelf, workers with a stand-in engine that leaves a real video."""

from __future__ import annotations

import functools
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ltx2.jobs.heart import Pace
from ltx2.jobs.job import Rules
from ltx2.jobs.shelf import Shelf
from ltx2.jobs.store import Store
from ltx2.jobs.worker import Worker
from ltx2.pipeline.mux import writing
from ltx2.spec.card import Card
from ltx2.spec.errors import GenerationFailed
from ltx2.spec.events import Event, Finished, Progress
from ltx2.spec.plan import Plan, resolve
from ltx2.spec.request import request

CARDS = {
    "small": Card(name="small", kind="distilled", family="tiny", upsampler=True, max_side=512, max_seconds=5.0),
    "dev": Card(name="dev", distilled_lora=True, upsampler=True),
}


LOCK = threading.Lock()


def a_video(folder: Path, sound: bool = True) -> Path:
    """A real mp4 of 64x64 pixels and 17 frames, made once."""
    with LOCK:
        return _a_video(folder, sound)


@functools.cache
def _a_video(folder: Path, sound: bool) -> Path:
    plan = resolve(
        request(prompt="x", preset="distilled", width=64, height=64, frames=17, seed=1, audio=sound), CARDS["small"]
    )
    out = folder / f"video-{sound}.mp4"
    with writing(plan, out, 24_000 if sound else None) as muxer:
        for index in range(plan.frames):
            muxer.frames(np.full((1, 64, 64, 3), index * 10, np.uint8))
        muxer.sound(np.sin(np.arange(24_000) / 10, dtype=np.float32)[None].repeat(2, 0))
    return out


@dataclass
class StandIn:
    """An engine whose pace a test decides: it goes on while `go` is set, and fails when the prompt asks for it."""

    folder: Path
    steps: int = 3
    seconds: float = 0.0
    go: threading.Event = field(default_factory=threading.Event)
    started: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self.go.set()

    def __call__(self, plan: Plan, out: Path) -> Iterator[Event]:
        self.started.append(plan.prompt)
        yield Progress("text", 1, 1)
        if "fail" in plan.prompt:
            raise GenerationFailed("it was asked to")
        for stage in range(len(plan.stages)):
            if stage:
                yield Progress("upsample", 1, 1)
            for step in range(self.steps):
                while not self.go.wait(0.01):
                    yield Progress(f"stage {stage + 1}", step, self.steps)
                time.sleep(self.seconds / self.steps / len(plan.stages))
                yield Progress(f"stage {stage + 1}", step + 1, self.steps)
        yield Progress("decode", 1, 1)
        yield Progress("sound", 1, 1)
        shutil.copyfile(a_video(self.folder, plan.audio), out)
        yield Progress("write", plan.frames, plan.frames)
        yield Finished(out, plan.seed, 0.25, 50 * 2**20)


@dataclass
class Studio:
    """What a test reaches for."""

    store: Store
    shelf: Shelf
    engine: StandIn
    folder: Path
    workers: list[threading.Thread]
    stop: threading.Event

    def sweep(self) -> None:
        self.store.sweep()
        self.shelf.wither(self.store)


@contextmanager
def studio(folder: Path, database: Path, workers: int = 1, **rules: Any) -> Iterator[Studio]:
    """A store and a shelf, with workers as threads."""
    (folder / "shelf").mkdir(parents=True)
    store = Store(f"sqlite:///{database}", Rules(**rules), patience=20.0)
    shelf = Shelf(folder / "shelf")
    engine = StandIn(folder)
    stop = threading.Event()
    pace = Pace(beat=0.05, poll=0.02)
    threads = [
        threading.Thread(target=Worker(store, engine, shelf, name=f"w{n}", pace=pace).run, args=(stop,), daemon=True)
        for n in range(workers)
    ]
    a_video(folder)
    for thread in threads:
        thread.start()
    try:
        yield Studio(store, shelf, engine, folder, threads, stop)
    finally:
        engine.go.set()
        stop.set()
        for thread in threads:
            thread.join(20)
        store.close()


def wait_for(holds: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What `holds` returns as soon as that is true; fails when it takes too long."""
    end = time.monotonic() + seconds
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
