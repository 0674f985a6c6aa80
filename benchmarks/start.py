"""From the start of a process to its first video, and whether the first after the warm-up is as fast as the tenth.

    python benchmarks/start.py RESULTS.jsonl [--requests 10] [--shapes A,B]     --tiny: rehearsal, also without a GPU

Three processes follow each other, each with full-size random weights: with an empty folder of compiled kernels, with the
folder that the first one filled, and with that folder but no warm-up. Random weights are drawn in place of being read, so
`weights` is not the time of a checkpoint. Videos of a shape have the steps of its preset, those of 30 and more three.
A line of JSON for each process; a shape that fails, or a process that ends early, leaves its error in the line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from command import append, arguments, failure, parse

if TYPE_CHECKING:
    from ltx2.engine.engine import Engine
    from ltx2.spec.plan import Plan

RUNS = (("empty", True), ("filled", True), ("filled", False))
SHAPES = "default,original,768x512x97:distilled-two-stage"
TINY = "64x64x9:distilled,64x64x9:dev"
# Presets with more steps than this are shortened: a step is as good as another.
STEPS = 8
# Seconds after which a process is ended, so that the next one has its turn.
LIMIT = 300


def main(words: Sequence[str] | None = None) -> None:
    given = _arguments(words)
    if given.began:
        once(given)
        return
    with tempfile.TemporaryDirectory() as folder:
        for cache, warm in RUNS:
            line = _in_a_process(given, Path(folder), warm)
            append(given.results, {"part": "start", "cache": cache, "warm_up": warm, "tiny": given.tiny, **line})


def once(given: argparse.Namespace) -> None:
    """What one process does, each step in seconds, as a line on the screen that grows; `given.began` is when it was
    started (time.time())."""
    marks = [given.began]

    def lap() -> float:
        marks.append(time.time())
        return round(marks[-1] - marks[-2], 3)

    from ltx2.doors.machine import use_cache
    from ltx2.doors.origin import origin
    from ltx2.engine import factory
    from ltx2.engine.engine import Engine
    from ltx2.models.components import load
    from ltx2.models.describe import Source, read_card
    from ltx2.spec.settings import Settings
    from ltx2.spec.shapes import plans_of, read_shapes, shortened

    use_cache(Settings(kernel_cache=given.cache))
    import torch

    device = factory.device_of("auto")
    report: dict[str, Any] = {"imports": lap()}
    source = Source("tiny" if given.tiny else "ltx-2", weights="random")
    engine = Engine(load(source, device=device, dtype=torch.float32 if device == "cpu" else torch.bfloat16))
    report |= {"weights": lap(), "warm_up_seconds": {}, "requests": {}, "failed": {}}
    plans = plans_of(read_shapes(given.shapes, "shapes"), read_card(source))
    for shape, plan in plans.items() if given.warm else ():
        try:
            engine.warm_up(shortened(plan))
        except Exception as error:
            report["failed"][f"warm-up of {shape}"] = failure(error)
        report["warm_up_seconds"][shape] = lap()
    report["ready"] = round(time.time() - given.began, 3)
    report |= origin(device)
    lap()
    for shape, plan in plans.items():
        try:
            for _ in _videos(engine, plan, given.requests):
                report["requests"].setdefault(shape, []).append(lap())
                report.setdefault("first_video", round(time.time() - given.began, 3))
        except Exception as error:
            report["failed"][shape] = failure(error)
            lap()
        print(json.dumps(report), flush=True)


def _videos(engine: Engine, whole: Plan, count: int) -> Any:
    """Make `count` videos of a plan, each from its own prompt, pausing after each."""
    from ltx2.spec.shapes import shortened

    plan = whole if all(stage.steps <= STEPS for stage in whole.stages) else shortened(whole)
    for number in range(count):
        with tempfile.TemporaryDirectory() as folder:
            wish = replace(plan, prompt=f"{plan.prompt}, take {number}", seed=number)
            for _ in engine.generate(wish, Path(folder) / "out.mp4"):
                pass
        yield


def _in_a_process(given: argparse.Namespace, cache: Path, warm: bool) -> dict[str, Any]:
    from ltx2.doors.machine import KERNELS

    words = ["--cache", str(cache), "--requests", str(given.requests), "--shapes", given.shapes]
    words += ["--began", repr(time.time()), *(["--warm"] if warm else []), *(["--tiny"] if given.tiny else [])]
    # What this machine's environment says of the compilers' folders would count more than the folder that is measured.
    environment = {name: value for name, value in os.environ.items() if name not in KERNELS}
    command = [sys.executable, __file__, str(given.results), *words]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            said, complaints = running.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            running.kill()
            said, complaints = running.communicate()
    lines = [line for line in said.splitlines() if line.startswith("{")]
    report = json.loads(lines[-1]) if lines else {}
    if running.returncode:
        report["error"] = f"the process ended with {running.returncode}: {complaints[-1500:]}"
    files = [file for file in cache.rglob("*") if file.is_file()]
    return {**report, "kernels": {"files": len(files), "bytes": sum(file.stat().st_size for file in files)}}


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__, rehearsal="the embedded model, 64x64, 9 frames")
    parser.add_argument("--requests", type=int, default=10)
    parser.add_argument("--shapes", help=f"what is warmed up and asked for (default: {SHAPES})")
    for name, kind in (("--began", float), ("--cache", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--warm", action="store_true", help=argparse.SUPPRESS)
    given = parse(parser, words)
    given.shapes = given.shapes or (TINY if given.tiny else SHAPES)
    return given


if __name__ == "__main__":
    main()
