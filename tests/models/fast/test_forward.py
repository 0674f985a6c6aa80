"""The fast forward against the slow one and the official vectors, pass by pass."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from ltx2.models.fast import Stage, Twin
from ltx2.models.randoms import fill_randomly
from ltx2.models.small import small
from ltx2.models.velocity import NONE, Perturbation, Stream, velocities, velocity
from ltx2.models.weights import build
from tests.data_files import largest_difference, metadata
from tests.models.test_velocity import CASES, VERSIONS, _perturbation, _streams, _transformer

TOLERANCE = 1e-5


def _relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return largest_difference(ours, theirs) / max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize(("version", "case"), CASES)
@torch.inference_mode()
def test_equals_the_official_forward(version: str, case: str) -> None:
    video, audio, values = _streams(version, case)
    blocks = tuple(metadata(f"transformer_{version}_cases", "stg_blocks"))
    perturbation = _perturbation(case, blocks)
    plain, *weak = Stage(Twin(_transformer(version)))(video, audio, [] if perturbation == NONE else [perturbation])
    for side, result in zip(("video", "audio"), weak[0] if weak else plain, strict=True):
        assert largest_difference(result, values[f"{case}.{side}.velocity"]) <= TOLERANCE
    for ours, slow in zip(plain, velocity(_transformer(version), video, audio), strict=True):
        assert _relative(ours, slow) <= TOLERANCE


@cache
def _small(version: str):
    """The small model's transformer; 2.5 is 2.3's with its own switches."""
    network = small("2.0" if version == "2.0" else "2.3").networks["transformer"]
    if version != "2.5":
        return network
    changes = {"use_keyframes_abs_pos_embedding": True, "ff_bias": False, "use_prompt_adaln_single": False}
    config = {key: value for key, value in network.config.items() if not key.startswith("_")} | changes
    return fill_randomly(build("transformer", config), dtype=torch.float32, device=torch.device("cpu"), seed=5)


def _random_streams(transformer, rows: int, levels: bool, seed: int = 0) -> tuple[Stream, Stream]:
    config, draw = transformer.config, torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    wide = config.caption_channels if config.use_prompt_embeddings else None
    sides = (
        (3, 12, config.in_channels, config.num_attention_heads * config.attention_head_dim),
        (1, 7, config.audio_in_channels, config.audio_num_attention_heads * config.audio_attention_head_dim),
    )
    streams = []
    for axes, tokens, channels, width in sides:
        start = torch.rand(1, axes, tokens, 1, generator=draw).expand(rows, -1, -1, -1) * 4
        timesteps, index = torch.full((1, 1), 0.7), None
        if levels:
            timesteps, index = torch.tensor([[0.0, 0.07, 0.7]]), torch.arange(tokens, dtype=torch.int32) % 3
        streams.append(
            Stream(
                randn(1, tokens, channels).expand(rows, -1, -1), timesteps.expand(rows, -1), torch.full((rows,), 0.7),
                torch.cat([start, start + 0.5], -1), randn(rows, 16, wide or width), levels=index,
                keyframes=(torch.arange(tokens) < 4)[None, :, None].float().expand(rows, -1, -1),
            )
        )  # fmt: skip
    return streams[0], streams[1]


WEAK = {
    "none": (),
    "stg": (Perturbation((1,), (1,)),),
    "stg of one stream each": (Perturbation((2,), (1,)),),
    "all": (Perturbation((1,), (1,)), Perturbation(isolated=True)),
    "from the first block": (Perturbation((0, 2), (0,)),),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("weak", WEAK)
@pytest.mark.parametrize("levels", [False, True], ids=["uniform", "first frame given"])
@torch.inference_mode()
def test_guidance_passes_equal_the_slow_ones(version: str, weak: str, levels: bool) -> None:
    transformer = _small(version)
    video, audio = _random_streams(transformer, 2, levels)
    ours = Stage(Twin(transformer))(video, audio, WEAK[weak])
    slow = velocities(transformer, video, audio, WEAK[weak])
    assert len(ours) == len(slow) == 1 + len(WEAK[weak])
    for pair, expected in zip(ours, slow, strict=True):
        for one, other in zip(pair, expected, strict=True):
            assert one.shape == other.shape
            assert _relative(one, other) <= TOLERANCE


@pytest.mark.parametrize("version", VERSIONS)
@torch.inference_mode()
def test_rows_that_differ_in_their_text_alone_share_the_first_self_attention(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer = _small(version)
    video, audio = _random_streams(transformer, 2, True)
    stage, seen = Stage(Twin(transformer)), []
    for block in stage.twin.forward.blocks:
        own = block.video.own
        monkeypatch.setattr(block.video, "own", lambda n, *given, own=own: (seen.append(len(n)), own(n, *given))[1])
    [shared] = stage(video, audio)
    blocks = len(stage.twin.forward.blocks)
    assert seen == [1, *[2] * (blocks - 1)]
    # Rows that are not one row expanded are computed one by one, to the same result.
    apart = [replace(side, latent=side.latent.clone()) for side in (video, audio)]
    [both] = stage(*apart)
    assert seen[blocks:] == [2] * blocks
    for one, other in zip(shared, both, strict=True):
        assert one.shape == other.shape and _relative(one, other) <= TOLERANCE
