"""From the start of a process to its first video, and whether the first after the warm-up is as fast as the tenth.

    python benchmarks/start.py RESULTS.jsonl [--requests 10] [--shapes A,B]     --tiny: rehearsal, also without a GPU

Three processes follow each other, each with full-size random weights: with an empty folder of compiled kernels, with the
folder that the first one filled, and with that folder but no warm-up. Random weights are drawn in place of being read, so
`weights` is not the time of a checkpoint. Videos of a shape have the steps of its preset, those of 30 and more three.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

RUNS = (("empty", True), ("filled", True), ("filled", False))
SHAPES = "default,original,768x512x97:distilled-two-stage"
TINY = "64x64x9:distilled,64x64x9:dev"
# Presets with more steps than this are shortened: a step is as good as another.
STEPS = 8


def main() -> None:
    given = _arguments()
    if given.began:
        print(json.dumps(once(given)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for cache, warm in RUNS:
            line = _in_a_process(given, Path(folder), warm)
            _append(given.results, {"part": "start", "cache": cache, "warm_up": warm, "tiny": given.tiny, **line})


def once(given: argparse.Namespace) -> dict[str, Any]:
    """What one process does, each step in seconds; `given.began` is when it was started (time.time())."""
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
    report |= {"weights": lap(), "warm_up_seconds": {}, "requests": {}}
    plans = plans_of(read_shapes(given.shapes, "shapes"), read_card(source))
    if given.warm:
        for shape, plan in plans.items():
            engine.warm_up(shortened(plan))
            report["warm_up_seconds"][shape] = lap()
    report["ready"] = round(time.time() - given.began, 3)
    for shape, whole in plans.items():
        plan = whole if all(stage.steps <= STEPS for stage in whole.stages) else shortened(whole)
        report["requests"][shape] = []
        for number in range(given.requests):
            with tempfile.TemporaryDirectory() as folder:
                wish = replace(plan, prompt=f"{plan.prompt}, take {number}", seed=number)
                for _ in engine.generate(wish, Path(folder) / "out.mp4"):
                    pass
            report["requests"][shape].append(lap())
            report.setdefault("first_video", round(time.time() - given.began, 3))
    return {**report, **origin(device)}


def _in_a_process(given: argparse.Namespace, cache: Path, warm: bool) -> dict[str, Any]:
    words = ["--cache", str(cache), "--requests", str(given.requests), "--shapes", given.shapes]
    words += ["--began", repr(time.time()), *(["--warm"] if warm else []), *(["--tiny"] if given.tiny else [])]
    done = subprocess.run([sys.executable, __file__, str(given.results), *words], capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stderr[-1500:]}
    files = [file for file in cache.rglob("*") if file.is_file()]
    kept = {"files": len(files), "bytes": sum(file.stat().st_size for file in files)}
    return {**json.loads(done.stdout.splitlines()[-1]), "kernels": kept}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--requests", type=int, default=10)
    parser.add_argument("--shapes", help=f"what is warmed up and asked for (default: {SHAPES})")
    parser.add_argument("--tiny", action="store_true")
    for name, kind in (("--began", float), ("--cache", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--warm", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.shapes = given.shapes or (TINY if given.tiny else SHAPES)
    return given


def _append(results: Path, line: dict[str, Any]) -> None:
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
