"""Draws the curves of all stages from their logs into one picture."""

from __future__ import annotations

import json
from pathlib import Path

CURVES = ("loss", "mse", "video", "audio", "mel_l1", "wave_l1")


def plot(logs: Path, out: Path) -> None:
    """One panel per `log_*.jsonl` of `logs`, losses over steps on a logarithmic axis, written to `out`.

    Raises FileNotFoundError when the folder holds no log.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    histories = {path.stem.removeprefix("log_"): _read(path) for path in sorted(logs.glob("log_*.jsonl"))}
    histories = {stage: lines for stage, lines in histories.items() if lines}
    if not histories:
        raise FileNotFoundError(f"no log_*.jsonl with curves in {logs}")
    figure, axes = pyplot.subplots(1, len(histories), figsize=(4 * len(histories), 3.2), squeeze=False)
    for axis, (stage, lines) in zip(axes[0], histories.items(), strict=True):
        for key in CURVES:
            points = [(line["step"], line[key]) for line in lines if key in line]
            if points:
                axis.plot(*zip(*points, strict=True), label=key, linewidth=1)
        axis.set(title=stage, xlabel="step", yscale="log")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def _read(path: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if "step" in line and line.keys() & set(CURVES) and line.get("event") != "done"]
