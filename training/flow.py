"""Flow matching on tokens: what a noisy clip is, the velocity that the transformer predicts, guidance, Euler steps.

x_sigma = (1 - sigma) x0 + sigma noise, velocity = noise - x0; sigma goes from 1 (noise) to 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltx2.models.velocity import Stream, velocity
from ltx2.pipeline.latents import audio_positions, video_positions
from training.loop import FPS

Contexts = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Clip:
    """Clips at one noise level: `video` [B, Tv, C], `audio` [B, Ta, D]; `known` [B, Tv] marks clean tokens."""

    video: Tensor
    audio: Tensor
    known: Tensor

    def noised(self, sigma: Tensor, video: Tensor, audio: Tensor) -> Clip:
        """The clip at `sigma` [B] with the given noise; known tokens stay as they are."""
        level = sigma[:, None, None]
        mixed = torch.where(self.known[..., None], self.video, (1 - level) * self.video + level * video)
        return Clip(mixed, (1 - level) * self.audio + level * audio, self.known)

    def stepped(self, delta: float, video: Tensor, audio: Tensor) -> Clip:
        """One Euler step of `delta` along the velocities; known tokens stay as they are."""
        moved = self.video + delta * video.masked_fill(self.known[..., None], 0)
        return Clip(moved, self.audio + delta * audio, self.known)


def predict(
    transformer: nn.Module, clip: Clip, sigma: Tensor, contexts: Contexts, grid: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """Velocities of video and audio in float32 for a clip at `sigma` [B]; known tokens carry timestep zero."""
    batch, device = len(sigma), sigma.device
    timesteps = sigma[:, None].masked_fill(clip.known, 0.0)
    places = video_positions(grid, FPS, device).expand(batch, -1, -1, -1)
    video = Stream(clip.video, timesteps, sigma, places, contexts[0])
    length = clip.audio.shape[1]
    moments = audio_positions(length, device).expand(batch, -1, -1, -1)
    audio = Stream(clip.audio, sigma[:, None].expand(-1, length), sigma, moments, contexts[1])
    made = velocity(transformer, video, audio)
    return made[0].float(), made[1].float()


def guided(
    transformer: nn.Module,
    clip: Clip,
    sigma: Tensor,
    contexts: tuple[Contexts, Contexts],
    grid: tuple[int, int, int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Velocities with classifier-free guidance at `sigma` [B]; `contexts` are those of the prompts and the empty one."""
    twice = Clip(*(torch.cat([part, part]) for part in (clip.video, clip.audio, clip.known)))
    both = tuple(torch.cat(pair) for pair in zip(*contexts, strict=True))
    video, audio = (part.chunk(2) for part in predict(transformer, twice, torch.cat([sigma, sigma]), both, grid))
    return video[1] + scale * (video[0] - video[1]), audio[1] + scale * (audio[0] - audio[1])


def noise_like(clip: Clip) -> tuple[Tensor, Tensor]:
    """Fresh noise in float32 for video and audio."""
    return torch.randn_like(clip.video.float()), torch.randn_like(clip.audio.float())


def first_frame(video: Tensor, grid: tuple[int, int, int], share: float) -> Tensor:
    """Known tokens [B, T]: the first latent frame of a random `share` of the batch."""
    chosen = torch.rand(len(video), 1, device=video.device) < share
    return chosen & (torch.arange(video.shape[1], device=video.device) < grid[1] * grid[2])
