"""Finds the shape in every frame: which background, which colour, and how much of each pixel the shape covers."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

WORK_HEIGHT = 96
OFFSET = 0.12  # how far a background's brightness may lie from its template
MISFIT = 0.09  # median residual beyond which a background is none of the known
DISTANCE = 0.24  # of a shape's colour to the background, in RGB of 0..1
AREA = (0.006, 0.4)  # share of the frame that a shape may cover
REACH = 1.8  # a star's arm reaches 1.46 times as far as the circle of equal area
SATURATION = 0.4
HUES = {"red": 358.0, "orange": 30.0, "yellow": 56.0, "green": 130.0, "blue": 229.0, "purple": 284.0}


@dataclass(frozen=True)
class Seen:
    """`cover` [F, h, w] in 0..1 is the shape; `colour` and `background` are words, or "unclear".

    `x`, `y` [F] are the shape's centre and `radius` [F] that of the circle of equal area, in pixels of `cover`; NaN in
    frames that show no shape.
    """

    colour: str
    background: str
    cover: Array
    x: Array
    y: Array
    radius: Array


def look(video: NDArray[np.uint8]) -> Seen:
    """Segment a clip [F, H, W, 3]."""
    frames = _shrink(video)
    background, ground = _background(np.median(frames, axis=0))
    ink = _ink(frames, ground)
    if ink is None:
        empty = np.full(len(frames), np.nan, dtype=np.float32)
        return Seen("unclear", background, np.zeros(frames.shape[:3], np.float32), empty, empty, empty)
    toward = ink - ground
    cover = ((frames - ground) * toward).sum(axis=-1) / np.maximum((toward**2).sum(axis=-1), 1e-6)
    return _locate(_colour(ink), background, np.clip(cover, 0, 1, out=cover))


def templates(height: int, width: int) -> dict[str, Array]:
    """The backgrounds that the judge knows, [h, w, 3] in 0..1."""
    y = ((np.arange(height) + 0.5) / height)[:, None, None]
    x = ((np.arange(width) + 0.5) / width)[None, :, None]
    sky, ground = np.array((0.08, 0.12, 0.32)), np.array((0.62, 0.76, 0.92))

    def wave(value: NDArray[np.float64], cells: int) -> NDArray[np.float64]:
        return np.clip(np.sin(np.pi * cells * value) * (height / 6 / cells), -1, 1)

    known = {
        "dark": np.full_like(y, 0.06),
        "light": np.full_like(y, 0.92),
        "gradient": sky + (ground - sky) * y,
        "striped": 0.48 + 0.16 * wave(x, 8),
        "checkered": 0.48 + 0.16 * wave(x, 4) * wave(y, 3),
    }
    return {name: np.broadcast_to(value, (height, width, 3)).astype(np.float32) for name, value in known.items()}


def _shrink(video: NDArray[np.uint8]) -> Array:
    """Average blocks of pixels until about 96 rows are left: [F, h, w, 3] in 0..1."""
    factor = max(1, round(video.shape[1] / WORK_HEIGHT))
    height, width = video.shape[1] // factor, video.shape[2] // factor
    frames = video[:, : height * factor, : width * factor].astype(np.float32) / 255
    return frames.reshape(len(video), height, factor, width, factor, 3).mean(axis=(2, 4))


def _background(still: Array) -> tuple[str, Array]:
    """Name the template that most pixels of the median frame agree with, and shift it to their brightness."""
    fits = {}
    for name, template in templates(*still.shape[:2]).items():
        offset = np.clip(np.median(still - template), -OFFSET, OFFSET)
        fits[name] = (float(np.median(np.abs(still - template - offset))), template + offset)
    name = min(fits, key=lambda key: fits[key][0])
    misfit, ground = fits[name]
    return (name if misfit < MISFIT else "unclear"), ground


def _ink(frames: Array, ground: Array) -> Array | None:
    """The shape's colour [3]: the median of the pixels that differ most from the background."""
    distance = np.sqrt(((frames - ground) ** 2).sum(axis=-1))
    front = distance > DISTANCE
    if not AREA[0] / 2 < front.mean() < AREA[1]:
        return None
    core = distance > 0.75 * np.percentile(distance[front], 80)
    return np.median(frames[core], axis=0)


def _colour(ink: Array) -> str:
    high, low = float(ink.max()), float(ink.min())
    if high <= 0 or (high - low) / high < SATURATION:
        return "unclear"
    red, green, blue = (float(part) for part in ink)
    if high == red:
        hue = (green - blue) / (high - low)
    elif high == green:
        hue = 2 + (blue - red) / (high - low)
    else:
        hue = 4 + (red - green) / (high - low)
    return min(HUES, key=lambda name: abs((hue * 60 - HUES[name] + 180) % 360 - 180))


def _locate(colour: str, background: str, cover: Array) -> Seen:
    """Drop what lies far from the shape in each frame and measure the rest."""
    _, height, width = cover.shape
    rows, columns = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None]
    centre = np.full((3, len(cover)), np.nan, dtype=np.float32)
    for index, frame in enumerate(cover):
        inside = frame > 0.5
        if not AREA[0] < inside.mean() < AREA[1]:
            continue
        y, x = (np.median(part) for part in np.nonzero(inside))
        reach = REACH * np.sqrt(inside.sum() / np.pi)
        frame[(rows - y) ** 2 + (columns - x) ** 2 > reach**2] = 0
        frame[frame < 0.2] = 0
        area = frame.sum()
        centre[:, index] = (frame * columns).sum() / area, (frame * rows).sum() / area, np.sqrt(area / np.pi)
    return Seen(colour, background, cover, *centre)
