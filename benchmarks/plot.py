"""The lines of `speed.py growth` as a picture: seconds, TFLOP/s and memory of one forward over the video's tokens.

    python benchmarks/plot.py RESULTS.jsonl growth.png

Lines of other parts are passed over, and so are those of measurements that failed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from command import arguments, parse

# What this GPU does in bf16 at best: docs/03-speed.md.
BEST_TFLOPS = 790


def main(words: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("picture", type=Path)
    given = parse(parser, words)
    points = _points(given.results)
    if not points:
        parser.error(f"{given.results} has no line of growth")
    draw(points, given.picture)


def _points(results: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    return sorted(
        (line for line in lines if line.get("part") == "growth" and "ms" in line), key=lambda line: line["tokens"]
    )


def draw(points: Sequence[dict[str, Any]], picture: Path) -> None:
    """Three panels over the tokens of `points`, lines of one file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tokens = [point["tokens"] for point in points]
    # Operations that are done, without those on the text, which is over once a stage begins.
    rates = [point["tflops_done"] for point in points]
    floors = [point["ms"] * rate / BEST_TFLOPS for point, rate in zip(points, rates, strict=True)]
    figure, (seconds, speed, memory) = pyplot.subplots(1, 3, figsize=(13, 4))
    seconds.plot(tokens, [point["ms"] for point in points], marker="o", label="measured")
    seconds.plot(tokens, floors, linestyle="--", label=f"floor: {BEST_TFLOPS} TFLOP/s")
    # Room for the name of the last one.
    seconds.set(title="one forward, ms", yscale="log", xlim=(tokens[0] / 1.5, tokens[-1] * 5))
    seconds.legend()
    for point in points:
        where, size = (point["tokens"], point["ms"]), "x".join(str(side) for side in point["size"])
        seconds.annotate(size, where, textcoords="offset points", xytext=(5, -11), fontsize=7)
    speed.plot(tokens, rates, marker="o")
    speed.set(title="TFLOP/s", ylim=(0, BEST_TFLOPS))
    # None without a GPU.
    memory.plot(tokens, [point["peak_gib"] or 0 for point in points], marker="o")
    memory.set(title="memory beside the weights, GiB", ylim=(0, None))
    for panel in (seconds, speed, memory):
        panel.set(xlabel="video tokens", xscale="log")
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
