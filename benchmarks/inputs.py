"""What goes into a transformer that is measured: noise, random text and positions, for a video of any size."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from ltx2.models.velocity import Stream
from ltx2.pipeline.latents import audio_positions, video_positions
from ltx2.spec.geometry import grid

Size = tuple[int, int, int]
"""Width, height and frames."""

FPS = Fraction(24)
SMALL, MIDDLE, LARGE = (384, 256, 97), (768, 512, 97), (1536, 1024, 121)
TINY = (64, 64, 9)


@dataclass(frozen=True)
class Ask:
    """A video as the transformer sees it: `rows` prompts of `text` tokens; `given` makes the first latent frame clean."""

    size: Size
    rows: int = 1
    text: int = 1024
    given: bool = False
    seed: int = 1
    sigma: float = 0.7


def streams(transformer: Any, ask: Ask) -> tuple[Stream, Stream]:
    """Random inputs for picture and sound, where the transformer lies and of its type."""
    config, like = transformer.config, transformer.scale_shift_table
    cells, device = grid(*ask.size, FPS), like.device
    prompts = config.use_prompt_embeddings
    widths = (config.num_attention_heads * config.attention_head_dim,
              config.audio_num_attention_heads * config.audio_attention_head_dim)  # fmt: skip
    places = (video_positions(cells.video, FPS, device), audio_positions(cells.audio, device))
    channels = (config.in_channels, config.audio_in_channels)
    draw = torch.Generator(device).manual_seed(ask.seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=device).to(like.dtype)

    made: list[Stream] = []
    for side, (place, width, channel) in enumerate(zip(places, widths, channels, strict=True)):
        # One timestep for all tokens, as the loop passes it where no first frame is given.
        levels, values = None, torch.full((1, 1), ask.sigma, device=device)
        if ask.given and side == 0:
            values = torch.tensor([[0.0, ask.sigma]], device=device)
            levels = (torch.arange(place.shape[2], device=device) >= cells.rows * cells.columns).int()
        made.append(
            Stream(
                randn(1, place.shape[2], channel).expand(ask.rows, -1, -1), values.expand(ask.rows, -1),
                torch.full((ask.rows,), ask.sigma, device=device), place.expand(ask.rows, -1, -1, -1),
                randn(ask.rows, ask.text, config.caption_channels if prompts else width), levels=levels,
            )
        )  # fmt: skip
    return made[0], made[1]
