"""`ltx2 bench --quality`: makes the judge's held-out prompts with the embedded model and counts what came true.

The judge sees the written file, decoded again, as a viewer does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx2.doors.flags import to_request
from ltx2.doors.machine import Choice, choose, device_of, load_models
from ltx2.doors.origin import origin
from ltx2.spec.errors import RefusedRequest
from ltx2.spec.settings import Settings

if TYPE_CHECKING:
    from ltx2.engine.engine import Engine
    from ltx2.spec.plan import Plan

SHEET_CLIPS = 12


@dataclass(frozen=True)
class Task:
    """One prompt to make: its plan, what the prompt says, and whether its contact sheet is wanted."""

    plan: Plan
    attributes: dict[str, str]
    sheet: bool


@dataclass(frozen=True)
class Clip:
    """What the judge found in one clip: every attribute with whether it came true, and the contact sheet's picture."""

    prompt: str
    score: dict[str, bool]
    sheet: Any = None


@dataclass
class _Worker:
    engine: Engine | None = None


_WORKER = _Worker()


def quality(values: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """Judge the prompts; the JSON-ready report with the share of each attribute."""
    choice = choose(values, settings)
    if choice.card.family != "tiny":
        raise RefusedRequest(
            "quality: the judge knows the embedded model's world only", knob="quality", hint="leave --model out"
        )
    tasks = _tasks(values, choice)
    began = time.perf_counter()
    clips: list[Clip] = []
    for clip in _made(tasks, choice, values, settings):
        clips.append(clip)
        if not values.quiet:
            wrong = [name for name, right in clip.score.items() if not right]
            print(f"{len(clips)}/{len(tasks)} {'wrong: ' + ', '.join(wrong) if wrong else 'right'}", file=sys.stderr)
    report = {
        "quality": tasks[0].plan.preset,
        "extras": asdict(tasks[0].plan.stages[0].extras),
        "model": choice.card.name,
        **origin(device_of(values, settings)),
        "prompts": len(clips),
        "seconds": time.perf_counter() - began,
        **shares(clips),
        "wrong": [
            {"prompt": clip.prompt, "wrong": [name for name, right in clip.score.items() if not right]}
            for clip in clips
            if not all(clip.score.values())
        ],
    }
    if values.sheet:
        _save_sheets(clips, Path(values.sheet), tasks[0].plan.preset)
    _table(report)
    return report


def shares(clips: Sequence[Clip]) -> dict[str, Any]:
    """The share of clips in which each attribute came true, how many clips had it, and the share with all of them."""
    seen: dict[str, list[bool]] = defaultdict(list)
    for clip in clips:
        for name, right in clip.score.items():
            seen[name].append(right)
    return {
        "shares": {name: sum(right) / len(right) for name, right in seen.items()},
        "counts": {name: len(right) for name, right in seen.items()},
        "all": sum(all(clip.score.values()) for clip in clips) / len(clips),
    }


def _tasks(values: argparse.Namespace, choice: Choice) -> list[Task]:
    """The chosen prompts, spread evenly over the list, each with its own seed."""
    from ltx2.judge import held_out_prompts
    from ltx2.spec.plan import resolve

    prompts = held_out_prompts()
    count = min(values.prompts or len(prompts), len(prompts))
    chosen = [prompts[number * len(prompts) // count] for number in range(count)]
    asked = to_request(values)
    tasks: list[Task] = []
    for number, prompt in enumerate(chosen):
        request = asked.model_copy(update={"prompt": prompt.text, "seed": (asked.seed or 0) + number})
        plan = resolve(request, choice.card)
        tasks.append(Task(plan, dict(prompt.attributes), bool(values.sheet) and number < SHEET_CLIPS))
    return tasks


def _made(tasks: list[Task], choice: Choice, values: argparse.Namespace, settings: Settings) -> Iterator[Clip]:
    if values.workers == 1:
        _start(choice, values, settings, tasks[0].plan, None)
        yield from map(_make, tasks)
        return
    arguments = (choice, values, settings, tasks[0].plan, 1)
    context = get_context("spawn")
    with ProcessPoolExecutor(values.workers, context, initializer=_start, initargs=arguments) as pool:
        yield from pool.map(_make, tasks)


def _start(choice: Choice, values: argparse.Namespace, settings: Settings, plan: Plan, threads: int | None) -> None:
    """Load the model once in this process."""
    import torch

    from ltx2.engine.engine import Engine

    if threads:
        torch.set_num_threads(threads)
    _WORKER.engine = Engine(load_models(choice, values, settings, plan))


def _make(task: Task) -> Clip:
    from ltx2.judge import judge, score

    assert _WORKER.engine is not None, "_start comes first"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "clip.mp4"
        with closing(_WORKER.engine.generate(task.plan, out)) as events:
            for _ in events:
                pass
        video, audio, rate = read_clip(out)
    result = score(judge(video, float(task.plan.fps), audio, rate), task.attributes)
    sheet = None
    if task.sheet:
        from ltx2.judge.sheet import contact_sheet

        sheet = contact_sheet(video, audio, rate, task.plan.prompt)
    return Clip(task.plan.prompt, result, sheet)


def read_clip(path: Path) -> tuple[Any, Any, int]:
    """A video file as pixels [F, H, W, 3] uint8, sound [2, S] float32 (None without a track) and its rate in Hz."""
    import av
    import numpy as np

    with av.open(str(path)) as container:
        video = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return video, None, 0
        rate = container.streams.audio[0].rate
        sound = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
    return video, sound.astype(np.float32), rate


def _save_sheets(clips: Sequence[Clip], folder: Path, preset: str) -> None:
    from ltx2.judge.sheet import stack

    folder.mkdir(parents=True, exist_ok=True)
    stack([clip.sheet for clip in clips if clip.sheet is not None]).save(folder / f"{preset}.png")


def _table(report: dict[str, Any]) -> None:
    lines = [f"{report['model']}, {report['quality']}, {report['prompts']} held-out prompts, {report['seconds']:.0f} s"]
    for name, share in report["shares"].items():
        lines.append(f"{name:<12} {share:7.1%}  of {report['counts'][name]}")
    lines.append(f"{'all at once':<12} {report['all']:7.1%}")
    print("\n".join(lines), file=sys.stderr)
