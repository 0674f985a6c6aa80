"""A moving picture with grain, which `ltx2 bench` encodes in place of the noise that random weights show.

A texture pans, a disc with another one moves over it, and every frame has grain of its own: work for an encoder as a
video's, where noise is as much work as there can be. The same bytes for a size on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import ceil, pi, sin

import torch
from torch import Tensor
from torch.nn.functional import interpolate

# Pixels a frame that the texture moves, and the grain's standard deviation in levels of 255.
PAN, GRAIN = 3, 2.5
# Cells of the texture in pixels, and how strong they are in levels.
OCTAVES = ((256, 40.0), (64, 25.0), (16, 12.0), (4, 4.0))
DISC_OCTAVES = ((64, 30.0), (8, 15.0))


class Moving:
    """Stands in for decoded frames: hands out its own, one after the other, from the first one again after the last."""

    def __init__(self, width: int, height: int, frames: int, device: torch.device):
        self.pictures, self.at = moving(width, height, frames).to(device), 0

    def __call__(self, frames: Tensor) -> Tensor:
        """As many frames of the picture as `frames` [f, H, W, 3] has."""
        begin, self.at = self.at, (self.at + len(frames)) % len(self.pictures)
        return self.pictures[begin : begin + len(frames)]


def moving(width: int, height: int, frames: int) -> Tensor:
    """uint8 [frames, height, width, 3] on the CPU."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    ground = _texture(draw, width + PAN * frames, height, OCTAVES)
    disc = _texture(draw, width, height, DISC_OCTAVES)
    rows = torch.arange(height)[:, None].float()
    columns = torch.arange(width).float()
    result = torch.empty(frames, height, width, 3, dtype=torch.uint8)
    for number in range(frames):
        across, down = width * (0.3 + 0.4 * number / frames), height * (0.5 + 0.2 * sin(2 * pi * number / 75))
        inside = (columns - across) ** 2 + (rows - down) ** 2 < (0.22 * height) ** 2
        picture = torch.where(inside, disc, ground[..., PAN * number : PAN * number + width])
        result[number] = (picture + GRAIN * draw((height, width))).clamp(0, 255).to(torch.uint8).movedim(0, -1)
    return result


def _texture(draw: Callable[..., Tensor], width: int, height: int, octaves: tuple[tuple[int, float], ...]) -> Tensor:
    """Smooth noise of several cell sizes around grey: [3, height, width]."""
    total = torch.full((3, height, width), 127.0)
    for cell, strength in octaves:
        cells = draw((1, 3, ceil(height / cell) + 1, ceil(width / cell) + 1))
        smooth = interpolate(cells, scale_factor=cell, mode="bicubic", align_corners=False)
        total += strength * smooth[0, :, :height, :width]
    return total
