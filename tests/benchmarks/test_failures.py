"""A measurement that fails is a line with its error; what was done before stays, and the others have their turn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

Script = Callable[[str], Any]
Lines = Callable[[], list[dict[str, Any]]]


def test_unknown_names_are_refused_before_anything_runs(
    script: Script, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        script("speed").main([str(results), "growt", "--tiny"])
    assert "there is no growt; there are ops, " in capsys.readouterr().err
    assert not results.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_full_size_wants_a_gpu(script: Script, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("speed", "load", "h200"):
        with pytest.raises(SystemExit):
            script(name).main([str(results)])
        assert "full size needs a GPU; --tiny works here" in capsys.readouterr().err


def test_a_part_that_fails_leaves_its_line_and_no_networks(script: Script, results: Path, lines: Lines) -> None:
    lab = script("lab").Lab(results, torch.device("cpu"), tiny=True)
    lab.networks["tiny", "transformer"] = nn.Linear(1, 1)

    def quantise_half() -> None:
        lab.write("first", ms=1.0)
        raise RuntimeError("no such kernel")

    lab.attempt("first", quantise_half)
    lab.attempt("second", lambda: lab.write("second", ms=2.0))
    assert [line["part"] for line in lines()] == ["first", "first", "first", "second", "second"]
    assert lines()[1]["error"] == "RuntimeError: no such kernel"
    assert [line["finished"] for line in lines() if "finished" in line] == [False, True]
    assert not lab.networks


def test_a_measurement_that_fails_says_which_one_it_was(script: Script, results: Path, lines: Lines) -> None:
    lab = script("lab").Lab(results, torch.device("cpu"), tiny=True)

    def fail() -> None:
        raise torch.OutOfMemoryError("1 GiB")

    lab.attempt_line("growth", fail, size=(64, 64, 9))
    assert lines()[0]["size"] == [64, 64, 9]
    assert "1 GiB" in lines()[0]["error"]


def test_a_form_that_fails_takes_no_other_form_with_it(
    script: Script, results: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = script("speed")
    made = speed.switched

    def one_broken(device: torch.device, transformer: Any) -> Any:
        forms = made(device, transformer)

        def broken() -> Any:
            raise RuntimeError("illegal memory access")

        return forms | {"gelu in a kernel": broken}

    monkeypatch.setattr(speed, "switched", one_broken)
    speed.main([str(results), "switches", "--tiny", "--repeats", "1"])
    found = [line for line in lines() if line["part"] == "switches" and "form" in line]
    assert [line["form"] for line in found if "error" in line] == ["gelu in a kernel"] * 2
    measured = {(line["weights"], line["form"]) for line in found if "ms" in line}
    forms = ("whole", "q and k in two kernels", "fp8 attention")
    assert measured >= {(weights, form) for weights in ("bf16", "fp8") for form in forms}


def test_a_row_that_fails_gives_its_models_back(
    script: Script, results: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    h200 = script("h200")
    loaded: list[object] = []
    given: list[tuple[str, int, bool]] = []

    def load(*_: Any) -> object:
        loaded.append(object())
        return loaded[-1]

    def measure(values: Any, _settings: Any, models: object) -> dict[str, Any]:
        given.append((values.preset, loaded.index(models), bool(values.against)))
        if len(given) == 1:
            raise RuntimeError("CUDA error")
        return {"ratio": 2.0} if values.against else {"runs": [1.0]}

    monkeypatch.setattr(h200, "load_models", load)
    monkeypatch.setattr(h200, "measure", measure)
    h200.main([str(results), "two-stage", "classic-fp8", "classic", "--tiny"])
    # A failed row's models are loaded anew, rows of the same weights share theirs, and Diffusers comes after them.
    assert given == [
        ("distilled-two-stage", 0, False),
        ("classic", 1, False),
        ("distilled-two-stage", 1, True),
        ("classic", 1, True),
        ("classic", 2, False),
    ]
    rows = [line for line in lines() if "row" in line]
    assert [row["row"] for row in rows] == [
        "two-stage",
        "classic",
        "two-stage-diffusers",
        "classic-diffusers",
        "classic-fp8",
    ]
    assert rows[0]["error"] == "RuntimeError: CUDA error"
    assert rows[2]["ratio"] == rows[3]["ratio"] == 2.0


def test_a_load_that_fails_does_not_stop_the_next_form(
    script: Script, results: Path, lines: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading = script("loading")

    def measure(_root: Path, form: str, _values: Any) -> dict[str, Any]:
        if form == "fp8":
            raise RuntimeError("the loading process ended with -9")
        return {"seconds": 1.0}

    monkeypatch.setattr(loading, "measure", measure)
    loading.main([str(results), "--folder", str(tmp_path), "--tiny", "--layers", "1", "--forms", "fp8", "to-fp8"])
    assert [line["form"] for line in lines()] == ["disk", "fp8", "to-fp8"]
    assert "ended with -9" in lines()[1]["error"]
    assert lines()[2]["seconds"] == 1.0
    assert not (tmp_path / "ltx2-loading").exists()


def test_a_prompt_that_fails_does_not_count(
    script: Script, results: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    quality = script("fp8_quality")
    made, calls = quality._clip, list[int]()

    def clip(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("the second form failed")
        return made(*given)

    monkeypatch.setattr(quality, "_clip", clip)
    quality.main([str(results), "--prompts", "2", "--preset", "distilled", "--device", "cpu"])
    prompts = [line for line in lines() if "prompt" in line]
    assert ["error" in line for line in prompts] == [True, False]
    steps = [line for line in lines() if "step" in line]
    assert [line["step"] for line in steps] == [*range(8)]
    # Both begin with the same noise, and rounded weights take them apart.
    assert steps[0]["video"] == 0.0 < steps[-1]["video"] < 0.5
    assert lines()[-1]["prompts"] == 1
    assert lines()[-1]["fp8"]["counts"]["shape"] == 1


def test_a_shape_that_fails_is_named_beside_the_others(
    script: Script, capsys: pytest.CaptureFixture[str], results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    start = script("start")

    def videos(_engine: Any, plan: Any, count: int) -> Any:
        if plan.preset == "distilled":
            raise RuntimeError("no room")
        yield from range(count)

    monkeypatch.setattr(start, "_videos", videos)
    # What it tells the compilers is for a process of its own.
    monkeypatch.setattr("ltx2.doors.machine.use_cache", lambda _: None)
    start.main([str(results), "--began", "1.0", "--cache", str(tmp_path), "--tiny", "--requests", "2"])
    report = start.json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["failed"]["64x64x9:distilled"]["error"] == "RuntimeError: no room"
    assert len(report["requests"]["64x64x9:dev"]) == 2
