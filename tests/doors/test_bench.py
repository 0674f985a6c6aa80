"""The benchmark's report, alone and against Diffusers, and the counting of judged clips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltx2.doors.cli import main
from ltx2.doors.quality import Clip, read_clip, shares
from ltx2.spec.cost import need
from ltx2.spec.plan import Plan

SMALL = ["--width", "128", "--height", "64", "--frames", "17", "--device", "cpu", "--seed", "1"]


def report_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(["bench", *words, *SMALL, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_two_stages(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora = str(checkpoint / "distilled_lora.safetensors")
    words = ["--model", str(checkpoint), "--preset", "distilled-two-stage", "--distilled-lora", lora, "--repeats", "3"]
    report = report_of([*words, "--warm-up-steps", "1"], capsys)
    assert {"text", "stage 1", "upsample", "stage 2", "sound", "rest", "total"} <= report["warm"].keys()
    assert report["steps"] == [8, 3] and report["attention"] == ["torch", "torch"]
    assert (report["passes"], len(report["runs"])) == (11, 3)
    assert report["warm"]["total"] == pytest.approx(sorted(report["runs"])[1])
    assert report["tflops"].keys() == {"stage 1", "stage 2"}
    assert report["versions"].keys() >= {"python", "torch", "diffusers", "transformers"}
    assert report["cold"]["load"] > 0


def test_against_diffusers_at_the_same_passes(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(checkpoint), "--preset", "classic", "--steps", "2", "--repeats", "1"]
    report = report_of([*words, "--against", "diffusers", "--against-repeats", "1"], capsys)
    against = report["against"]
    assert against["passes"] == report["passes"] == 4
    assert against["ratio"] == pytest.approx(against["total"] / report["warm"]["total"])


def test_two_stages_against_diffusers(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(checkpoint), "--kind", "distilled", "--preset", "distilled-two-stage", "--repeats", "1"]
    report = report_of([*words, "--against", "diffusers", "--against-repeats", "1", "--warm-up-steps", "1"], capsys)
    assert report["against"]["passes"] == report["passes"] == 11


def test_every_run_has_its_own_prompt_and_seed(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ltx2.engine.engine import Engine

    plans: list[Plan] = []
    plain = Engine.generate

    def watched(self: Engine, plan: Plan, out: Path):
        plans.append(plan)
        return plain(self, plan, out)

    monkeypatch.setattr(Engine, "generate", watched)
    report = report_of(["--model", str(checkpoint), "--preset", "classic", "--steps", "1", "--repeats", "2"], capsys)
    assert len({plan.prompt for plan in plans}) == len({plan.seed for plan in plans}) == len(plans) == 3
    from ltx2.models.describe import Source, read_card

    cost = need(plans[0], read_card(Source(str(checkpoint))))
    assert report["tflops"]["stage 1"] == pytest.approx(cost.flops / report["warm"]["stage 1"] / 1e12)


def test_a_moving_picture_stands_in_for_the_noise_of_random_weights(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ltx2.doors.moving import moving
    from ltx2.pipeline import generate as generate_module

    encoded: list[np.ndarray] = []
    decoded = 0
    planes, decode = generate_module.yuv420, generate_module.decode_video

    def see(frames):
        encoded.append(frames.numpy())
        return planes(frames)

    def count(*given):
        nonlocal decoded
        for frames in decode(*given):
            decoded += len(frames)
            yield frames

    monkeypatch.setattr(generate_module, "yuv420", see)
    monkeypatch.setattr(generate_module, "decode_video", count)
    words = [
        "--model",
        "tiny",
        "--weights",
        "random",
        "--preset",
        "distilled",
        "--repeats",
        "1",
        "--warm-up-steps",
        "1",
    ]
    report = report_of([*words, "--picture", "moving"], capsys)
    expected = moving(128, 64, 17).numpy()
    assert report["picture"] == "moving" and decoded == 34, "the model's own frames are decoded all the same"
    assert np.array_equal(np.concatenate(encoded), np.concatenate([expected, expected]))
    assert np.array_equal(moving(128, 64, 17).numpy(), expected), "the same every time"
    still = np.abs(np.diff(expected.astype(int), axis=0)).mean((1, 2, 3))
    assert still.min() > 2, "no frame stands still"


def test_a_moving_picture_is_refused_for_real_weights(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--model", str(checkpoint), *SMALL, "--picture", "moving"]) == 2
    assert "--weights random works with it" in capsys.readouterr().err


def test_quality_of_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--quality",
        "--preset",
        "distilled",
        "--prompts",
        "2",
        "--sheet",
        str(tmp_path),
        "--device",
        "cpu",
        "--json",
    ]
    assert main(["bench", *words]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert (report["prompts"], report["model"]) == (2, "tiny")
    assert report["counts"]["colour"] == report["counts"]["shape"] == 2
    assert report["all"] == 1 - len(report["wrong"]) / 2
    assert "all at once" in captured.err
    with Image.open(tmp_path / "distilled.png") as sheet:
        assert sheet.height > 2 * 192


def test_shares() -> None:
    clips = [
        Clip("a", {"colour": True, "shape": True}),
        Clip("b", {"colour": True, "shape": False, "pitch": True}),
    ]
    assert shares(clips) == {
        "shares": {"colour": 1.0, "shape": 0.5, "pitch": 1.0},
        "counts": {"colour": 2, "shape": 2, "pitch": 1},
        "all": 0.5,
    }


def test_a_written_clip_is_read_back(tmp_path: Path) -> None:
    from ltx2.pipeline.mux import writing
    from ltx2.spec.card import Card
    from ltx2.spec.plan import resolve
    from ltx2.spec.request import request

    plan = resolve(request(prompt="x", width=64, height=32, frames=9, preset="classic"), Card(name="LTX-2"))
    ramp = np.repeat(np.arange(9, dtype=np.uint8)[:, None] * 20 + 40, 64 * 32 * 3, axis=1).reshape(9, 32, 64, 3)
    tone = np.sin(np.arange(9000) * 2 * np.pi * 440 / 24_000, dtype=np.float32)[None].repeat(2, axis=0) * 0.5
    out = tmp_path / "a.mp4"
    with writing(plan, out, 24_000) as muxer:
        muxer.sound(tone)
        muxer.frames(ramp)
    video, audio, rate = read_clip(out)
    assert (video.shape, rate) == ((9, 32, 64, 3), 24_000)
    assert np.abs(video.astype(int) - ramp).max() <= 4
    assert audio.shape[0] == 2
    assert audio.shape[1] >= 9000
    assert np.abs(audio).max() == pytest.approx(0.5, abs=0.1)
