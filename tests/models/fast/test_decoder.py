"""The fast video decoder against Diffusers' own, in both forms of the published decoders."""

from __future__ import annotations

import pytest
import torch

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


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("version", ["2.0", "2.3"])
@torch.inference_mode()
def test_equals_the_plain_decoder(version: str, causal: bool, padding: str) -> None:
    vae = _vae(version, decoder_causal=causal, decoder_spatial_padding_mode=padding)
    assert unsupported(vae) is None
    latent = torch.randn(1, vae.config.latent_channels, 3, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = vae.decode(latent, return_dict=False)[0]
    ours = decode(vae, latent, PLAIN)
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
    assert largest_difference(decode(vae, latent, PLAIN), expected) <= 1e-5 * max(1.0, float(expected.abs().max()))


def test_what_it_cannot_do_is_said() -> None:
    assert "timestep" in str(unsupported(_vae("2.0", timestep_conditioning=True)))
    noisy = _vae("2.0", decoder_inject_noise=[True] * 4)
    assert "noise" in str(unsupported(noisy))
    tiled = _vae("2.0")
    tiled.enable_tiling()
    assert "tiles" in str(unsupported(tiled))
