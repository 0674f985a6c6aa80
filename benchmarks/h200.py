"""The table of workloads of docs/03-speed.md on one GPU, each against its bar, with full-size random weights.

    python benchmarks/h200.py RESULTS.jsonl [NAME ...]       all when none is named, of those in fp8 the ones with a bar
    python benchmarks/h200.py RESULTS.jsonl --tiny           rehearsal on the embedded model, also without a GPU

A row that fails leaves its error in the file, and the next one goes on. Diffusers' own pipeline runs after all rows of the
same weights, with one run of ours beside it, as rows named NAME-diffusers. `--plain` takes the transformer's slow path.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from command import append, arguments, failure, parse

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
    "two-stage": Row(("distilled-two-stage",), (768, 512, 97), 1.7, 1.3, against=3),
    "classic": Row(("classic", "--steps", "40"), (768, 512, 97), 20, 14, against=1, warm_up_steps=3),
    "large": Row(("distilled-two-stage",), (1536, 1024, 121), 9, 7, against=1),
    "distilled": Row(("distilled",), (768, 512, 97), against=3),
    "dev": Row(("dev", "--steps", "30"), (768, 512, 121), 41, model="ltx-2.3", against=1, warm_up_steps=3),
}
FP8 = "-fp8"
NAMES = [name + suffix for name in ROWS for suffix in ("", FP8)]
TINY = ("--width", "64", "--height", "64", "--frames", "9")


@dataclass(frozen=True)
class Case:
    """A row in a precision, alone or beside Diffusers' pipeline."""

    name: str
    against: bool = False

    @property
    def row(self) -> Row:
        return ROWS[self.name.removesuffix(FP8)]

    @property
    def fp8(self) -> bool:
        return self.name.endswith(FP8)

    @property
    def weights(self) -> tuple[str, bool]:
        """What must be loaded: the kind of a checkpoint changes its card alone."""
        return self.row.model, self.fp8


class Shelf:
    """The models of the latest case: cases of the same weights share them."""

    def __init__(self, settings: Settings, results: Path):
        self.settings, self.results = settings, results
        self.models: Models | None = None
        self.held: tuple[str, bool] | None = None

    def get(self, case: Case, values: argparse.Namespace) -> Models:
        """The models, loaded where they are not there."""
        if self.models is None or self.held != case.weights:
            self.drop()
            begin = time.perf_counter()
            choice = choose(values, self.settings)
            plan = resolve(to_request(values), choice.card)
            self.models, self.held = load_models(choice, values, self.settings, plan), case.weights
            seconds = time.perf_counter() - begin
            append(self.results, {"loaded": case.row.model, "fp8": case.fp8, "seconds": seconds})
        return self.models

    def drop(self) -> None:
        """Give their memory back."""
        self.models = self.held = None
        gc.collect()
        # After a fault of the device this fails as everything does, and the fault has its line.
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


def main(words: Sequence[str] | None = None) -> None:
    """Measure the named rows, those of one model and precision together."""
    given = _arguments(words)
    shelf = Shelf(replace(Settings.read(os.environ), fast=not given.plain), given.results)
    for case in _cases(given):
        try:
            _measure(case, given, shelf)
            continue
        except Exception as error:
            append(given.results, {"row": _label(case), **failure(error)})
        # Whatever state it left them in is not for the next one.
        shelf.drop()


def _cases(given: argparse.Namespace) -> list[Case]:
    """Rows of the same weights follow each other, and what compares them comes after the rows themselves."""
    cases = [Case(name) for name in given.names or NAMES]
    if not given.names:
        cases = [case for case in cases if case.row.fp8_bar or not case.fp8]
    if not given.no_against:
        cases += [Case(case.name, against=True) for case in cases if case.row.against and not case.fp8]
    return sorted(cases, key=lambda case: (case.weights, case.against))


def _label(case: Case) -> str:
    return case.name + ("-diffusers" if case.against else "")


def _measure(case: Case, given: argparse.Namespace, shelf: Shelf) -> None:
    values = _values(case, given)
    report = measure(values, shelf.settings, shelf.get(case, values))
    bar = case.row.fp8_bar if case.fp8 else case.row.bar
    head = {"row": _label(case), "fast": shelf.settings.fast, "bar": bar, "tiny": given.tiny}
    append(given.results, {**head, **report})


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__, NAMES, rehearsal="the embedded model, 64x64, 9 frames")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--picture", choices=("noise", "moving"), default="noise", help="what is encoded: docs/03-speed.md"
    )
    parser.add_argument("--no-against", action="store_true", help="leave Diffusers out")
    parser.add_argument("--plain", action="store_true")
    return parse(parser, words, NAMES, gpu=True)


def _values(case: Case, given: argparse.Namespace) -> argparse.Namespace:
    """What `ltx2 bench` would be called with."""
    row, (preset, *steps) = case.row, case.row.preset
    words = ["--model", "tiny" if given.tiny else row.model, "--weights", "random", "--preset", preset]
    if given.tiny:
        words += [*(("--steps", "2") if steps else ()), *TINY]
    else:
        names = ("--width", "--height", "--frames")
        words += [*steps, *(word for name, count in zip(names, row.size, strict=True) for word in (name, str(count)))]
    if preset.startswith("distilled") and not given.tiny:
        # A distilled checkpoint, as it is published: the LoRA that distils a dev one costs time of its own.
        words += ["--kind", "distilled"]
    words += ["--picture", given.picture, "--repeats", "1" if case.against else str(given.repeats)]
    if case.fp8:
        words += ["--precision", "fp8"]
    if case.against:
        words += ["--against", "diffusers", "--against-repeats", str(row.against)]
    if row.warm_up_steps and not given.tiny:
        words += ["--warm-up-steps", str(row.warm_up_steps)]
    values = build_parsers()[1]["bench"].parse_args(words)
    values.prompt = PROMPT
    return values


if __name__ == "__main__":
    main()
