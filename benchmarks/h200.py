"""The four workloads of docs/results, one after the other on one GPU, with one set of full-size random weights.

Run `python benchmarks/h200.py RESULTS.jsonl [NAME ...]`; every finished workload is appended at once as a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from ltx2.doors.bench import PROMPT, measure
from ltx2.doors.cli import build_parsers
from ltx2.models.components import load
from ltx2.models.describe import Source
from ltx2.spec.settings import Settings

SMALL = ["--width", "768", "--height", "512", "--frames", "97"]
LARGE = ["--width", "1536", "--height", "1024", "--frames", "121"]
AGAINST = ["--against", "diffusers", "--against-repeats"]
ROWS = {
    "two-stage": ["--preset", "distilled-two-stage", *SMALL],
    "distilled": ["--preset", "distilled", *SMALL, *AGAINST, "3"],
    "large": ["--preset", "distilled-two-stage", *LARGE],
    "classic": ["--preset", "classic", "--steps", "40", *SMALL, *AGAINST, "1", "--warm-up-steps", "2"],
}


def main(results: Path, names: list[str]) -> None:
    """Measure the named rows, or all, and append their reports."""
    settings = Settings.read(os.environ)
    models = load(Source("ltx-2", weights="random"), device="cuda", dtype=torch.bfloat16)
    parser = build_parsers()[1]["bench"]
    for name in names or ROWS:
        values = parser.parse_args(["--model", "ltx-2", "--weights", "random", *ROWS[name]])
        values.prompt = PROMPT
        report = measure(values, settings, models)
        with results.open("a") as file:
            file.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
