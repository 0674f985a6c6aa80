"""Sigma schedules against the reference lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ltx2.spec import geometry
from ltx2.spec.presets import DISTILLED_SIGMAS, REFINE_SIGMAS
from ltx2.spec.schedule import shifted_sigmas

REFERENCE = json.loads((Path(__file__).parents[1] / "data" / "schedules.json").read_text())


@pytest.mark.parametrize("steps", list(REFERENCE["one_and_two_stage"]["steps"]))
def test_constant_shift(steps: str) -> None:
    assert shifted_sigmas(int(steps)) == pytest.approx(REFERENCE["one_and_two_stage"]["steps"][steps], abs=5e-7)


@pytest.mark.parametrize("case", REFERENCE["hq_stage_1"], ids=lambda case: f"{case['tokens']}-{case['steps']}")
def test_shift_by_token_count(case: dict) -> None:
    # float32 of the reference loses digits where sigmas crowd at 1, at very many tokens.
    assert shifted_sigmas(case["steps"], case["tokens"]) == pytest.approx(case["sigmas"], abs=1e-5)


def test_fixed_lists() -> None:
    assert pytest.approx(REFERENCE["distilled_stage_1"], abs=1e-7) == DISTILLED_SIGMAS
    assert pytest.approx(REFERENCE["distilled_stage_2"], abs=1e-7) == REFINE_SIGMAS


def test_one_step_goes_straight_to_zero() -> None:
    assert shifted_sigmas(1) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("width", "height", "frames", "fps", "video", "audio"),
    [(768, 512, 97, 24, (13, 16, 24), 101), (1536, 1024, 121, 24, (16, 32, 48), 126), (64, 96, 17, 24, (3, 3, 2), 18)],
)
def test_latent_grid(width: int, height: int, frames: int, fps: int, video: tuple[int, ...], audio: int) -> None:
    grid = geometry.grid(width, height, frames, geometry.parse_fps(fps))
    assert (grid.video, grid.audio_tokens) == (video, audio)
    assert grid.video_tokens == video[0] * video[1] * video[2]
