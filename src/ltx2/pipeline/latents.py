"""Latents as the transformer sees them: tokens, their positions in seconds and pixels, and where a stage starts."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor

from ltx2.spec.geometry import SPATIAL, TEMPORAL

MEL_RATE, MEL_HOP = 16_000, 160
MEL_FRAMES_PER_LATENT = 4


def tokens_from_video(latent: Tensor) -> Tensor:
    """[B, C, F, H, W] -> [B, F*H*W, C], ordered frame, row, column."""
    return latent.flatten(2).transpose(1, 2)


def video_from_tokens(tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """[B, F*H*W, C] -> [B, C, F, H, W] for `grid` = (F, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def tokens_from_audio(latent: Tensor) -> Tensor:
    """[B, C, T, bins] -> [B, T, C*bins]."""
    return latent.transpose(1, 2).flatten(2)


def audio_from_tokens(tokens: Tensor, channels: int) -> Tensor:
    """[B, T, C*bins] -> [B, C, T, bins]."""
    return tokens.unflatten(2, (channels, -1)).transpose(1, 2)


def video_positions(grid: tuple[int, int, int], fps: float | Fraction, device: torch.device | str = "cpu") -> Tensor:
    """Bounds of every video token: [1, 3, T, 2] float32, [start, end) of time in seconds, y and x in pixels.

    The first latent frame stands for one pixel frame and each later one for eight (the causal video VAE), so time
    starts at [0, 1/fps] and goes on in spans of 8/fps.
    """
    frames, rows, columns = grid
    time = _bounds(frames, TEMPORAL, device)
    time = (time + 1 - TEMPORAL).clamp(min=0) / float(fps)
    axes = [time, _bounds(rows, SPATIAL, device), _bounds(columns, SPATIAL, device)]
    shape = (frames, rows, columns, 2)
    spread = [
        axis.reshape([-1 if i == n else 1 for i in range(3)] + [2]).expand(shape).reshape(-1, 2)
        for n, axis in enumerate(axes)
    ]
    return torch.stack(spread).unsqueeze(0)


def audio_positions(length: int, device: torch.device | str = "cpu") -> Tensor:
    """Bounds of every audio token in seconds: [1, 1, T, 2] float32; the first is [0, 0.01], the others 0.04 s long."""
    mel = (_bounds(length, MEL_FRAMES_PER_LATENT, device) + 1 - MEL_FRAMES_PER_LATENT).clamp(min=0)
    return (mel * MEL_HOP / MEL_RATE).unsqueeze(0).unsqueeze(0)


def _bounds(count: int, step: int, device: torch.device | str) -> Tensor:
    start = torch.arange(count, dtype=torch.float32, device=device) * step
    return torch.stack([start, start + step], dim=-1)


@dataclass(frozen=True)
class Levels:
    """The distinct values [1, U] of a denoise mask, and which of them each token has: [T] int32."""

    values: Tensor
    index: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> Levels | None:
        """The levels of a mask [1, T, 1], or None for one that is the same for all tokens [1, 1, 1]."""
        if mask.shape[1] == 1:
            return None
        values, index = torch.unique(mask[0, :, 0], return_inverse=True)
        return cls(values[None], index.to(torch.int32))


@dataclass(frozen=True)
class State:
    """One modality at the start of a stage: latent [B, T, C], denoise mask and clean [B, T, C].

    The mask is 1 where a token is free, 0 where it is given: [B, T, 1], or [B, 1, 1] when all tokens are alike, so that
    the transformer computes its modulation once instead of for every token.
    """

    latent: Tensor
    mask: Tensor
    clean: Tensor

    @cached_property
    def levels(self) -> Levels | None:
        """The mask's levels, found once."""
        return Levels.of(self.mask)

    def settle(self, latent: Tensor) -> Tensor:
        """Put the given part of the clean latent back: latent * mask + clean * (1 - mask)."""
        return (latent * self.mask + self.clean * (1 - self.mask)).to(latent.dtype)


def start(clean: Tensor, sigma: float, draw: Tensor, given: Tensor | None = None, strength: float = 1.0) -> State:
    """Noise `clean` [1, T, C] up to `sigma` with `draw` of the same shape.

    `given` [1, G, C] replaces the first G tokens and is held with `strength` (1 keeps them exactly as they are).
    """
    mask = torch.ones(len(clean), 1, 1, device=clean.device)
    if given is not None:
        count = given.shape[1]
        clean = torch.cat([given.to(clean), clean[:, count:]], dim=1)
        mask = mask.repeat(1, clean.shape[1], 1)
        mask[:, :count] = 1 - strength
    share = mask * sigma
    latent = (draw.float() * share + clean.float() * (1 - share)).to(clean.dtype)
    return State(latent, mask, clean)
