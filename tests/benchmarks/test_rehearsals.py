"""Every benchmark that has a rehearsal goes through all of its parts without an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Script = Callable[[str], Any]
Lines = Callable[[], list[dict[str, Any]]]


def check(found: list[dict[str, Any]]) -> None:
    assert [line for line in found if "error" in line or line.get("failed")] == []


def test_encode(script: Script, results: Path, lines: Lines) -> None:
    script("encode").main([str(results), "--tiny", "--repeats", "1"])
    check(lines())
    measured = [(line["picture"], line["threads"]) for line in lines() if "threads" in line and "write" in line]
    assert measured == [(picture, threads) for picture in ("noise", "moving") for threads in (12, 16, 24)]


@pytest.mark.slow
def test_h200(script: Script, results: Path, lines: Lines) -> None:
    script("h200").main([str(results), "two-stage", "classic-fp8", "distilled", "--tiny", "--repeats", "1"])
    check(lines())
    rows = {line["row"]: line for line in lines() if "row" in line}
    assert [*rows] == ["two-stage", "distilled", "two-stage-diffusers", "distilled-diffusers", "classic-fp8"]
    assert rows["two-stage-diffusers"]["against"]["passes"] == rows["two-stage"]["passes"]
    assert rows["distilled-diffusers"]["against"]["passes"] == rows["distilled"]["passes"]


@pytest.mark.slow
def test_speed(script: Script, results: Path, lines: Lines) -> None:
    speed = script("speed")
    speed.main([str(results), "--tiny", "--repeats", "1"])
    check(lines())
    assert {line["part"] for line in lines() if line.get("finished")} == speed.PARTS.keys()
    assert all(line["ok"] for line in lines() if line["part"] == "ops check")


def test_plot(script: Script, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "growth.png"
    results.write_text('{"part": "load", "ms": 1}\n')
    with pytest.raises(SystemExit):
        script("plot").main([str(results), str(out)])
    assert "no line of growth" in capsys.readouterr().err and not out.exists()
    line = '{"part": "growth", "size": [64, 64, 9], "tokens": 8, "ms": 2.0, "tflops_done": 0.5, "peak_gib": null}\n'
    results.write_text(line + '{"part": "growth", "size": [64, 64, 17], "error": "RuntimeError: no"}\n' + line)
    script("plot").main([str(results), str(out)])
    assert out.stat().st_size > 1000


@pytest.mark.slow
def test_load(script: Script, results: Path, lines: Lines) -> None:
    load = script("load")
    load.main([str(results), "--tiny", "--seconds", "0.01"])
    check(lines())
    assert {line["part"] for line in lines() if line.get("finished")} == load.PARTS.keys()


@pytest.mark.slow
def test_weights(script: Script, results: Path, lines: Lines) -> None:
    weights = script("weights")
    # Of three blocks one is held in fp8.
    weights.main([str(results), "--tiny", "--layers", "3"])
    check(lines())
    assert all(
        line["error_video_to_bf16"] > 0 for line in lines() if line.get("form") in ("fp8-static", "fp8-per-tensor")
    )
    assert {line["bench"] for line in lines()} == {f"weights-{name}" for name in weights.BENCHES}


@pytest.mark.slow
def test_loading(script: Script, results: Path, lines: Lines, tmp_path: Path) -> None:
    script("loading").main([str(results), "--folder", str(tmp_path), "--tiny"])
    check(lines())
    assert [line["form"] for line in lines()] == ["disk", "bf16", "to-fp8", "fp8"]
    assert all(line["load_gb_s"] > 0 for line in lines()[1:])


@pytest.mark.slow
def test_start(script: Script, results: Path, lines: Lines) -> None:
    script("start").main([str(results), "--tiny", "--requests", "1"])
    check(lines())
    assert [(line["cache"], line["warm_up"]) for line in lines()] == [
        ("empty", True),
        ("filled", True),
        ("filled", False),
    ]
    assert all(len(line["requests"]) == 2 for line in lines())


@pytest.mark.slow
def test_first_frame(script: Script, results: Path, lines: Lines) -> None:
    script("first_frame").main([str(results), "--prompts", "2", "--device", "cpu"])
    check(lines())
    one, two, last = lines()
    assert last["prompts"] == 2 and last["psnr_worst"] == min(one["psnr"], two["psnr"]) > 20
