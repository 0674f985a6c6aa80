"""The fast video decoder against Diffusers' own, in both forms of the published decoders."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn import functional

from ltx2.models.fast.decoder import decode, unsupported
from ltx2.models.fast.ops import PLAIN
from ltx2.models.randoms import fill_randomly
from ltx2.models.singlefile import load_component, open_singlefile
from ltx2.models.small import small_configs
from ltx2.models.weights import build
from tests.data_files import DATA, largest_difference

CPU = torch.device("cpu")


def _vae(version: str, **changes: object):
    config = {**small_configs("2.3" if version == "2.3" else "2.0")["vae"], **changes}
    return fill_randomly(build("vae", config), dtype=torch.float32, device=CPU, seed=3)


def _decoded(vae: Any, latent: torch.Tensor, piece: int | None = None) -> torch.Tensor:
    return torch.cat([*decode(vae, latent, PLAIN, piece)], 2)


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("version", ["2.0", "2.3"])
@torch.inference_mode()
def test_equals_the_plain_decoder(version: str, causal: bool, padding: str) -> None:
    vae = _vae(version, decoder_causal=causal, decoder_spatial_padding_mode=padding)
    assert unsupported(vae) is None
    latent = torch.randn(1, vae.config.latent_channels, 3, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = vae.decode(latent, return_dict=False)[0]
    ours = _decoded(vae, latent)
    assert ours.shape == expected.shape
    assert largest_difference(ours, expected) <= 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("version", ["2.0", "2.3"])
@torch.inference_mode()
def test_equals_the_plain_decoder_of_official_files(version: str) -> None:
    file = open_singlefile(DATA / f"video_vae_{version}.safetensors")
    vae = load_component(file, "vae", dtype=torch.float32, device=CPU)
    assert unsupported(vae) is None
    latent = torch.randn(1, vae.config.latent_channels, 2, 3, 2, generator=torch.Generator().manual_seed(1))
    expected = vae.decode(latent, return_dict=False)[0]
    assert largest_difference(_decoded(vae, latent), expected) <= 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("version", ["2.0", "2.3"])
@pytest.mark.parametrize("frames", [1, 2, 7])
@torch.inference_mode()
def test_pieces_are_exact(version: str, causal: bool, frames: int) -> None:
    vae = _vae(version, decoder_causal=causal)
    latent = torch.randn(1, vae.config.latent_channels, frames, 2, 2, generator=torch.Generator().manual_seed(2))
    whole = _decoded(vae, latent)
    for piece in (1, 3, 8, 20):
        pieces = _decoded(vae, latent, piece)
        assert pieces.shape == whole.shape
        assert largest_difference(pieces, whole) <= 1e-5 * max(1.0, float(whole.abs().max()))


@torch.inference_mode()
def test_a_frame_is_told_as_soon_as_all_that_it_depends_on_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """And each frame of each layer is computed once: as many in eight pieces as in one."""
    vae, computed = _vae("2.0"), []
    latent = torch.randn(1, vae.config.latent_channels, 33, 2, 2, generator=torch.Generator().manual_seed(2))
    real = functional.conv3d

    def counted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        result = real(x, weight, bias)
        computed.append(result.numel())
        return result

    monkeypatch.setattr(functional, "conv3d", counted)
    (whole,) = decode(vae, latent, PLAIN, 1000)
    once = sum(computed)
    computed.clear()
    early: list[tuple[int, float]] = []
    for piece in decode(vae, latent, PLAIN, 32):
        early.append((piece.shape[2], sum(computed) / once))
    assert sum(frames for frames, _ in early) == whole.shape[2] == 257 and early[-1][1] == 1.0
    assert len(early) >= 7 and early[0][1] < 0.5
    # Nor is what the layers kept back one large piece in the end.
    assert max(frames for frames, _ in early) <= 32
    # What a piece costs is known before the next one is made: nothing is done ahead.
    assert all(a[1] < b[1] for a, b in pairwise(early))


def test_what_it_cannot_do_is_said() -> None:
    assert "timestep" in str(unsupported(_vae("2.0", timestep_conditioning=True)))
    noisy = _vae("2.0", decoder_inject_noise=[True] * 4)
    assert "noise" in str(unsupported(noisy))
    tiled = _vae("2.0")
    tiled.enable_tiling()
    assert "tiles" in str(unsupported(tiled))
