"""How a machine's settings and flags decide the way a model is held, through whole runs of the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ltx2.doors.cli import main
from ltx2.models.compact import Int8Linear
from ltx2.models.components import Models
from ltx2.models.precision import fp8_linears

SMALL = [
    "--preset",
    "distilled-two-stage",
    "--width",
    "64",
    "--height",
    "64",
    "--frames",
    "9",
    "--seed",
    "1",
    "--quiet",
]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Models]:
    """What the command line loads."""
    import ltx2.models.components as components

    kept: list[Models] = []
    load = components.load

    def keep(*given: Any, **named: Any) -> Models:
        kept.append(load(*given, **named))
        return kept[-1]

    monkeypatch.setattr(components, "load", keep)
    return kept


def test_a_video_in_fp8_with_a_small_text_encoder_and_a_cache(
    checkpoint: Path, tmp_path: Path, loaded: list[Models], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("LTX2_PROMPT_CACHE", str(cache))
    out = tmp_path / "a.mp4"
    flags = ["--precision", "fp8", "--text-encoder-precision", "int8", "--text-encoder-device", "cpu"]
    assert main(["generate", "a cat", "-o", str(out), "--model", str(checkpoint), *SMALL, *flags]) == 0
    assert out.stat().st_size > 0
    models = loaded[0]
    assert len(list(fp8_linears(models.networks["transformer"]))) == 28
    assert any(isinstance(module, Int8Linear) for module in models.networks["text_encoder"].modules())
    assert (models.held.precision, models.held.text_encoder, models.held.merges) == ("fp8", "int8", False)
    assert len(list(cache.glob("*.safetensors"))) == 1


def test_the_same_video_with_and_without_remembered_prompts(
    checkpoint: Path, tmp_path: Path, loaded: list[Models], capsys: pytest.CaptureFixture[str]
) -> None:
    files: list[bytes] = []
    for number, where in enumerate(("off", str(tmp_path / "cache"), str(tmp_path / "cache"))):
        out = tmp_path / f"{number}.mp4"
        words = ["generate", "a cat", "-o", str(out), "--model", str(checkpoint), *SMALL, "--prompt-cache", where]
        assert main(words) == 0
        files.append(out.read_bytes())
    assert files[0] == files[1] == files[2]
    assert loaded[0].embeddings is None


def test_the_plan_counts_what_is_held(capsys: pytest.CaptureFixture[str]) -> None:
    def bytes_of(*flags: str) -> int:
        words = ["plan", "a cat", "--model", "ltx-2", "--weights", "random", "--preset", "distilled", "--json", *flags]
        assert main(words) == 0
        return json.loads(capsys.readouterr().out)["cost"]["weight_bytes"]

    plain, fp8 = bytes_of(), bytes_of("--precision", "fp8")
    # Random weights get a LoRA to be added, where a merged one would cost nothing.
    assert plain - fp8 == pytest.approx(16.2e9 - 7.4e9, rel=0.01)
    assert fp8 - bytes_of("--precision", "fp8", "--text-encoder-device", "cpu") == pytest.approx(24.4e9, rel=0.01)
    assert bytes_of("--text-encoder-precision", "int4") < bytes_of("--text-encoder-precision", "int8") < plain


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--precision", "fp4"], "precision: there is no 'fp4'"),
        (["--text-encoder-precision", "fp8"], "text_encoder_precision: there is no 'fp8'"),
        (["--text-encoder-device", "cuda"], "text_encoder_device: there is no cuda here"),
        (["--lora-mode", "fused"], "lora_mode: there is no 'fused'"),
        (["--precision", "fp8", "--lora-mode", "merged"], "lora_mode: a LoRA cannot be merged into fp8"),
        (["--attention", "fp4"], "attention: there is no 'fp4'"),
        (["--activation-scales", "row"], "activation_scales: there is no 'row'"),
        (["--activation-scales", "static"], "activation_scales: static goes with fp8 only\nhint: --precision fp8"),
        (["--precision", "fp8", "--activation-scales", "static"], "has no input_scale, which published fp8 files have"),
        (["--attention", "fp8"], "attention: no fp8 here: only GPUs have fp8 units\nhint: auto works"),
        (["--prompt-cache", "{file}"], "is no folder that can be written"),
    ],
)
def test_ways_that_there_are_not_are_refused_by_name(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], complaint: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    flags = [flag.format(file=file) for flag in flags]
    out = tmp_path / "a.mp4"
    assert main(["generate", "a cat", "-o", str(out), "--model", str(checkpoint), *SMALL, *flags]) == 2
    assert complaint in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    "flags",
    [["--precision", "fp4"], ["--attention", "fp4"], ["--activation-scales", "row"], ["--activation-scales", "static"]],
    ids=" ".join,
)
def test_a_plan_refuses_the_same_ways(capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    assert main(["plan", "a cat", *flags]) == 2
    assert flags[0].strip("-").replace("-", "_") + ": " in capsys.readouterr().err


def test_kernels_are_kept_where_the_setting_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ltx2.doors.machine import KERNELS, use_cache
    from ltx2.spec.settings import Settings

    for variable in KERNELS:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("CUDA_CACHE_PATH", "/elsewhere")
    use_cache(Settings(kernel_cache=tmp_path))
    folders = {variable: os.environ.get(variable) for variable in KERNELS}
    assert folders == {
        "TRITON_CACHE_DIR": str(tmp_path / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
        "CUDA_CACHE_PATH": "/elsewhere",
    }
