"""The table of workloads of docs/03-speed.md on one GPU, each against its bar, with full-size random weights.

    python benchmarks/h200.py RESULTS.jsonl [NAME ...]       all rows when none is named; a row is a line of JSON at once
    python benchmarks/h200.py RESULTS.jsonl --tiny           rehearsal on the embedded model, also without a GPU

A row that fails leaves its error in the file, and the next one goes on. `--plain` takes the transformer's slow path.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ltx2.doors.bench import PROMPT, measure
from ltx2.doors.cli import build_parsers
from ltx2.doors.flags import to_request
from ltx2.doors.machine import choose, load_models
from ltx2.models.components import Models
from ltx2.spec.plan import resolve
from ltx2.spec.settings import Settings


@dataclass(frozen=True)
class Row:
    """A workload: its preset and size, the seconds that are the bar, and how often Diffusers runs against it."""

    preset: tuple[str, ...]
    size: tuple[int, int, int]
    bar: float | None = None
    fp8_bar: float | None = None
    model: str = "ltx-2"
    against: int = 0
    warm_up_steps: int | None = None


ROWS = {
    "two-stage": Row(("distilled-two-stage",), (768, 512, 97), 1.7, 1.3),
    "classic": Row(("classic", "--steps", "40"), (768, 512, 97), 20, 14, against=1, warm_up_steps=3),
    "large": Row(("distilled-two-stage",), (1536, 1024, 121), 9, 7),
    "distilled": Row(("distilled",), (768, 512, 97), against=3),
    "dev": Row(("dev", "--steps", "30"), (768, 512, 121), 41, model="ltx-2.3", against=1, warm_up_steps=3),
}
TINY = ("--width", "64", "--height", "64", "--frames", "9")


def main() -> None:
    """Measure the named rows, those of one model and precision together."""
    given = _arguments()
    settings = replace(Settings.read(os.environ), fast=not given.plain)
    names = given.rows or [
        name + suffix for name in ROWS for suffix in ("", "-fp8") if not suffix or ROWS[name].fp8_bar
    ]
    # Loading takes longer than most rows: rows of the same weights follow each other.
    names = sorted(names, key=lambda name: (ROWS[name.removesuffix("-fp8")].model, name.endswith("-fp8")))
    models: Models | None = None
    held: tuple[str, bool] | None = None
    for name in names:
        row, fp8 = ROWS[name.removesuffix("-fp8")], name.endswith("-fp8")
        try:
            values = _values(row, fp8, given)
            # The kind of a checkpoint changes its card alone, so `choose` may differ while the weights are the same.
            if held != (row.model, fp8):
                models = None
                gc.collect()
                torch.cuda.empty_cache()
                begin = time.perf_counter()
                models, held = _load(values, settings), (row.model, fp8)
                _append(given.results, {"loaded": row.model, "fp8": fp8, "seconds": time.perf_counter() - begin})
            report = measure(values, settings, models)
            bar = row.fp8_bar if fp8 else row.bar
            _append(given.results, {"row": name, "fast": settings.fast, "bar": bar, "tiny": given.tiny, **report})
        except Exception as error:
            trace = traceback.format_exc()[-1500:]
            _append(given.results, {"row": name, "error": f"{type(error).__name__}: {error}", "trace": trace})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("rows", nargs="*", metavar="NAME", help=", ".join(ROWS) + "; NAME-fp8 for a row in fp8")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--picture", choices=("noise", "moving"), default="noise", help="what is encoded: docs/03-speed.md"
    )
    parser.add_argument("--no-against", action="store_true", help="leave Diffusers out")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    if unknown := {name.removesuffix("-fp8") for name in given.rows} - ROWS.keys():
        parser.error(f"there is no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    if not (given.tiny or torch.cuda.is_available()):
        parser.error("full size needs a GPU; --tiny works here")
    return given


def _values(row: Row, fp8: bool, given: argparse.Namespace) -> argparse.Namespace:
    """What `ltx2 bench` would be called with."""
    size = (
        TINY
        if given.tiny
        else [f for pair in zip(("--width", "--height", "--frames"), row.size, strict=True) for f in pair]
    )
    preset = [row.preset[0], *(("--steps", "2") if given.tiny and len(row.preset) > 1 else row.preset[1:])]
    words = [
        "--model",
        "tiny" if given.tiny else row.model,
        "--weights",
        "random",
        "--preset",
        *preset,
        *map(str, size),
    ]
    if row.preset[0].startswith("distilled") and not given.tiny:
        # A distilled checkpoint, as it is published: the LoRA that distils a dev one costs time of its own.
        words += ["--kind", "distilled"]
    words += ["--picture", given.picture, "--repeats", str(given.repeats), *(["--precision", "fp8"] if fp8 else [])]
    if row.against and not fp8 and not given.no_against:
        words += ["--against", "diffusers", "--against-repeats", str(row.against)]
    if row.warm_up_steps and not given.tiny:
        words += ["--warm-up-steps", str(row.warm_up_steps)]
    values = build_parsers()[1]["bench"].parse_args(words)
    values.prompt = PROMPT
    return values


def _load(values: argparse.Namespace, settings: Settings) -> Models:
    choice = choose(values, settings)
    return load_models(choice, values, settings, resolve(to_request(values), choice.card))


def _append(results: Path, line: dict[str, Any]) -> None:
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
