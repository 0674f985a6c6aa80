"""Twice the width and height, in latent space, between two stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ltx2.models.components import Models


@torch.inference_mode()
def upsample(models: Models, latent: Tensor) -> Tensor:
    """Normalised video latent [1, C, F, H, W] -> [1, C, F, 2H, 2W], normalised with the same statistics.

    The upsampler works on un-normalised latents, so the statistics of the video VAE go off before and on after it.
    """
    with models.use("vae") as vae:
        mean = vae.latents_mean.view(1, -1, 1, 1, 1).clone()
        std = vae.latents_std.view(1, -1, 1, 1, 1).clone()
    with models.use("upsampler") as upsampler:
        raw = (latent * std.to(latent) + mean.to(latent)).to(upsampler.dtype)
        doubled = upsampler(raw).to(latent.dtype)
    return (doubled - mean.to(latent)) / std.to(latent)
