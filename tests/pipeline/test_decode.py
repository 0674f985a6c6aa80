"""Decoded frames on their way to the encoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ltx2.models.small import small
from ltx2.pipeline.decode import audible, decode_audio, decode_video
from ltx2.spec.errors import InvalidOutput


@pytest.mark.parametrize("part", ["vae", "vocoder"])
def test_a_value_that_is_not_finite_is_an_error(part: str) -> None:
    models = small("2.0")
    networks: dict[str, Any] = models.networks
    layer = networks["vae"].decoder.conv_out.conv if part == "vae" else networks["vocoder"].conv_out
    layer.bias.data.fill_(torch.nan)
    shape = models.card.shape
    with pytest.raises(InvalidOutput, match="picture" if part == "vae" else "sound"):
        if part == "vae":
            list(decode_video(models, torch.zeros(1, shape.latent_channels, 3, 2, 2)))
        else:
            audible(decode_audio(models, torch.zeros(1, 9, shape.audio_channels * shape.audio_bins)))
