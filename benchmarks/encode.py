"""From decoded frames to a finished mp4: what the encoder takes after the last frame, by picture, size and threads.

    python benchmarks/encode.py RESULTS.jsonl            also on a machine without a GPU; --tiny is a rehearsal

Frames are handed over at once, as after a decoder that is much faster than the encoder. `planes` is the way from RGB on
the device to planes on the host, `write` all that follows, with a sound of the same length. The bytes of a file may not
depend on the machine, so the number of threads is a constant: its line says what another one would gain, and cost.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from command import arguments, parse
from inputs import Size
from lab import Lab, opened
from torch import Tensor

from ltx2.doors.moving import moving
from ltx2.pipeline import mux
from ltx2.pipeline.colour import yuv420
from ltx2.pipeline.decode import CHUNK
from ltx2.pipeline.transfer import to_host
from ltx2.spec.card import Card
from ltx2.spec.plan import Plan, resolve
from ltx2.spec.request import request

SIZES = [(768, 512, 97), (1536, 1024, 121)]
THREADS = (12, 16, 24)
RATE = 24_000


def measure(lab: Lab, size: Size, picture: str) -> None:
    """The frames of one picture through every number of threads."""
    frames = _frames(size, picture).to(lab.device)
    planes = lab.time(partial(_planes, frames))
    host = _planes(frames)
    plan = _plan(size)
    for threads in THREADS:
        what: dict[str, Any] = {"size": size, "picture": picture, "threads": threads}
        lab.attempt_line("encode", partial(_encode, lab, plan, host, planes_ms=planes * 1e3, **what), **what)


def _encode(lab: Lab, plan: Plan, host: list[np.ndarray], **what: Any) -> None:
    before, mux.THREADS = mux.THREADS, what["threads"]
    try:
        runs = [_write(plan, host) for _ in range(lab.repeats + 1)][1:]
    finally:
        mux.THREADS = before
    lab.write(
        "encode", **what, write=median(run[0] for run in runs), runs=[run[0] for run in runs],
        cpu=median(run[1] for run in runs), bytes=runs[0][2], files=sorted({run[3] for run in runs}),
        cores=len(os.sched_getaffinity(0)),
    )  # fmt: skip


def _planes(frames: Tensor) -> list[np.ndarray]:
    leaving = [to_host(yuv420(chunk)) for chunk in frames.split(CHUNK)]
    return [chunk.arrived().numpy() for chunk in leaving]


def _write(plan: Plan, chunks: list[np.ndarray]) -> tuple[float, float, int, str]:
    """Seconds, seconds of the CPU, size and fingerprint of the file."""
    wave = np.sin(np.arange(round(plan.seconds * RATE)) / 10, dtype=np.float32)[None].repeat(2, 0)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "w.mp4"
        begin, work = time.perf_counter(), time.process_time()
        with mux.writing(plan, out, RATE) as muxer:
            for chunk in chunks:
                muxer.frames(chunk)
            muxer.sound(wave)
        seconds, work = time.perf_counter() - begin, time.process_time() - work
        return seconds, work, out.stat().st_size, hashlib.sha256(out.read_bytes()).hexdigest()[:12]


def _frames(size: Size, picture: str) -> Tensor:
    if picture == "moving":
        return moving(*size)
    return torch.randint(0, 256, (size[2], size[1], size[0], 3), dtype=torch.uint8)


def _plan(size: Size) -> Plan:
    width, height, frames = size
    asked = request(prompt="p", preset="classic", width=width, height=height, frames=frames, seed=0)
    return resolve(asked, Card("bench", "2.0", family="2.0"))


def main(words: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, rehearsal="192x128, 17 frames")
    parser.add_argument("--repeats", type=int, default=5)
    given = parse(parser, words)
    lab = opened(given)
    for size in [(192, 128, 17)] if given.tiny else SIZES:
        for picture in ("noise", "moving"):
            lab.attempt("encode", partial(measure, lab, size, picture))


if __name__ == "__main__":
    main()
