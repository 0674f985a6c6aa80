"""One transformer forward against the official implementation, in every guidance and conditioning case."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from ltx2.models.singlefile import load_component, open_singlefile
from ltx2.models.velocity import NONE, Perturbation, Stream, velocity
from tests.data_files import DATA, largest_difference, metadata, tensors

VERSIONS = ("2.0", "2.3", "2.5")
CASES = [(version, case) for version in VERSIONS for case in metadata(f"transformer_{version}_cases", "cases")]


@cache
def _transformer(version: str):
    file = open_singlefile(DATA / f"transformer_{version}.safetensors")
    return load_component(file, "transformer", dtype=torch.float32, device=torch.device("cpu"))


def _streams(version: str, case: str) -> tuple[Stream, Stream, dict]:
    values = tensors(f"transformer_{version}_cases")
    streams = []
    for side in ("video", "audio"):
        held = {
            name: values.get(f"{case}.{side}.{name}")
            for name in ("latent", "timesteps", "sigma", "positions", "context")
        }
        held["timesteps"] = held["timesteps"][..., 0]
        keyframes = values.get(f"{case}.video.keyframes_mask") if side == "video" else None
        streams.append(Stream(**held, keyframes=None if case == "keyframes_mask_none" else keyframes))
    return streams[0], streams[1], values


def _perturbation(case: str, blocks: tuple[int, ...]) -> Perturbation:
    return {
        "stg": Perturbation(blocks, blocks),
        "stg_video_only": Perturbation(video_blocks=blocks),
        "isolated": Perturbation(isolated=True),
    }.get(case, NONE)


@pytest.mark.parametrize(("version", "case"), CASES)
def test_forward_equals_the_official_one(version: str, case: str) -> None:
    video, audio, values = _streams(version, case)
    blocks = tuple(metadata(f"transformer_{version}_cases", "stg_blocks"))
    with torch.inference_mode():
        results = velocity(_transformer(version), video, audio, _perturbation(case, blocks))
    for side, result in zip(("video", "audio"), results, strict=True):
        assert largest_difference(result, values[f"{case}.{side}.velocity"]) <= 1e-5
        assert result.grad_fn is None


def test_hooks_leave_nothing_behind() -> None:
    transformer = _transformer("2.3")
    video, audio, values = _streams("2.3", "t2v")
    with torch.inference_mode():
        velocity(transformer, video, audio, Perturbation(video_blocks=(1,)))
        result, _ = velocity(transformer, video, audio)
    assert largest_difference(result, values["t2v.video.velocity"]) <= 1e-5
    assert not any(module._forward_pre_hooks for module in transformer.modules())


def test_stg_without_perturbed_attention_is_refused() -> None:
    video, audio, _ = _streams("2.0", "t2v")

    class Plain(torch.nn.Module):
        config = type("Config", (), {"timestep_scale_multiplier": 1000, "perturbed_attn": False})

    with pytest.raises(ValueError, match="no-op"):
        velocity(Plain(), video, audio, Perturbation(video_blocks=(1,)))
