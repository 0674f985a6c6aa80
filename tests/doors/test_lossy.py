"""Lossy extras at the command line: asked for by flag, shown, recorded in the file, made again, and never hidden."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pytest

from ltx2.doors.cli import main

SMALL = ["--width", "128", "--height", "128", "--frames", "9", "--device", "cpu", "--seed", "1", "--quiet"]
BOTH = ["--step-cache", "0.5", "--guidance-interval", "0:0.75"]
BIG = ["--model", "ltx-2", "--weights", "random", "--preset", "classic", "--steps", "40"]


def test_a_video_says_how_many_steps_were_skipped_and_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (str(tmp_path / name) for name in ("a.mp4", "b.mp4"))
    ask = ["generate", "a red ball bounces", "--preset", "classic", "--steps", "16", *SMALL]
    assert main([*ask, *BOTH, "-o", first]) == 0
    assert "steps skipped" in capsys.readouterr().out
    assert main(["generate", "--from", first, "-o", second, "--device", "cpu", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert 0 < said["skipped_steps"] <= 11
    assert said["plan"]["stages"][0]["extras"] == {"guided": [0.0, 0.75], "cache": 0.5}
    assert Path(first).read_bytes() == Path(second).read_bytes()
    with av.open(first) as container:
        assert json.loads(container.metadata["comment"])["skipped_steps"] == said["skipped_steps"]


def test_a_plan_shows_them_and_counts_at_most(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "a cat", *BIG, *BOTH]) == 0
    told = capsys.readouterr().out
    assert "lossy: guidance in steps 1 to 30, up to 29 steps skipped" in told
    assert "up to 70 passes" in told and "estimate  up to " in told
    assert main(["plan", "a cat", *BIG]) == 0
    told = capsys.readouterr().out
    assert "lossy" not in told and "up to" not in told


def test_the_flags_say_that_they_are_lossy(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "--step-cache CHANGE lossy: " in told and "--guidance-interval FROM:TO lossy: " in told


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--preset", "hq", "--step-cache", "0.1"], "sampler euler works"),
        (["--preset", "dev", "--step-cache", "2"], "less than or equal to 0.5"),
        (["--preset", "dev", "--guidance-interval", "half"], "write 0:0.5"),
        (["--preset", "distilled", "--guidance-interval", "0:0.5"], "classic, dev, two-stage or hq"),
    ],
)
def test_refusals(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "a cat", "--model", "ltx-2", "--weights", "random", *words]) == 2
    assert says in capsys.readouterr().err


def test_a_benchmark_of_less_work_tells_no_rate_and_is_compared_with_nothing(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "--model", str(checkpoint), "--preset", "classic", "--steps", "4", "--repeats", "1"]
    words += ["--width", "64", "--height", "64", "--frames", "9", "--device", "cpu"]
    assert main([*words, "--step-cache", "0.1"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["tflops"] == {} and len(report["skipped_steps"]) == 1
    assert main([*words, "--step-cache", "0.1", "--against", "diffusers"]) == 2
    assert "lossy extras" in capsys.readouterr().err
