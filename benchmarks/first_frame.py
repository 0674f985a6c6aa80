"""How near is the first frame to the picture that was given, and does the clip still do what the prompt says?

    python -m benchmarks.first_frame RESULTS.jsonl [--prompts 20] [--preset distilled-two-stage] [--device cpu]

The embedded model is given the first frame of held-out scenes as a PNG. A line of JSON for every scene: PSNR of the first
frame, decoded from the written file, and what the judge found wrong; a last line with the mean and the worst.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from PIL import Image

from benchmarks.command import append, arguments, parse
from ltx2.doors.origin import origin
from ltx2.doors.quality import read_clip
from ltx2.engine.engine import Engine
from ltx2.judge import judge, score
from ltx2.models.components import load
from ltx2.spec.plan import resolve
from ltx2.spec.request import request
from training.world import caption, clip, sample_scenes

SEED = 31


def main(words: Sequence[str] | None = None) -> None:
    """Make the clips, measure their first frames."""
    parser = arguments(__doc__)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--preset", default="distilled-two-stage")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    values = parse(parser, words)
    device = torch.device(values.device)
    engine = Engine(load("tiny", device=device, dtype=torch.float32 if device.type == "cpu" else torch.bfloat16))
    card = replace(engine.models.card, preset=values.preset)
    common = {"bench": "first-frame", "preset": values.preset, **origin(values.device)}
    near: list[float] = []
    right = 0
    for number, scene in enumerate(sample_scenes(values.prompts, SEED, held_out=True)):
        prompt = caption(scene, random.Random(number))
        with tempfile.TemporaryDirectory() as folder:
            given, out = Path(folder) / "first.png", Path(folder) / "clip.mp4"
            picture = clip(scene)[0][0]
            Image.fromarray(picture).save(given)
            plan = resolve(request(prompt=prompt, image=str(given), seed=number), card)
            for _ in engine.generate(plan, out):
                pass
            video, sound, rate = read_clip(out)
        near.append(_decibels(video[0], picture))
        found = score(judge(video, float(plan.fps), sound, rate), scene.attributes())
        wrong = [what for what, good in found.items() if not good]
        right += not wrong
        append(values.results, {**common, "prompt": prompt, "seed": number, "psnr": near[-1], "wrong": wrong})
    append(
        values.results,
        {**common, "prompts": len(near), "psnr": mean(near), "psnr_worst": min(near), "everything_right": right},
    )


def _decibels(picture: np.ndarray, wanted: np.ndarray) -> float:
    error = np.square(picture.astype(np.float64) - wanted).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


if __name__ == "__main__":
    main()
