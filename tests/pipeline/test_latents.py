"""Tokens and positions against the official ones, by value and by digest of the whole grid."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from ltx2.pipeline.latents import (
    audio_from_tokens,
    audio_positions,
    tokens_from_audio,
    tokens_from_video,
    video_from_tokens,
    video_positions,
)
from ltx2.spec.geometry import grid, parse_fps
from tests.data_files import DATA

GRIDS = json.loads((DATA / "positions.json").read_text())["grids"]


@pytest.mark.parametrize(
    "case", GRIDS, ids=lambda case: f"{case['width']}x{case['height']}x{case['frames']}@{case['fps']}"
)
def test_positions_have_the_official_digest(case: dict) -> None:
    cells = grid(case["width"], case["height"], case["frames"], parse_fps(case["fps"]))
    assert [cells.frames, cells.rows, cells.columns] == case["video_latent"][2:]
    assert (cells.video_tokens, cells.audio_tokens) == (case["video_tokens"], case["audio_tokens"])
    video, audio = video_positions(cells.video, parse_fps(case["fps"])), audio_positions(cells.audio)
    for tensor, side in ((video, "video"), (audio, "audio")):
        assert list(tensor.shape) == case[f"{side}_positions_shape"]
        digest = hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
        assert digest == case[f"{side}_positions_sha256"]


def test_tokens_round_trip_and_order() -> None:
    latent = torch.arange(2 * 3 * 2 * 2 * 4.0).reshape(2, 3, 2, 2, 4)
    tokens = tokens_from_video(latent)
    assert tokens.shape == (2, 16, 3)
    assert torch.equal(tokens[0, 5], latent[0, :, 0, 1, 1]), "frame, row, column"
    assert torch.equal(video_from_tokens(tokens, (2, 2, 4)), latent)
    sound = torch.arange(2 * 3 * 5 * 4.0).reshape(2, 3, 5, 4)
    flat = tokens_from_audio(sound)
    assert torch.equal(flat[1, 2], sound[1, :, 2].flatten()), "channel, bin"
    assert torch.equal(audio_from_tokens(flat, 3), sound)
