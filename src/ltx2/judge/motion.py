"""What the shape is and how it moves: its outline as a Fourier series, and the tracks of place, size and rotation."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ltx2.judge.picture import Seen

Array = NDArray[np.float64]

ANGLES, RADII, REACH = 120, 48, 1.9
ORDER = {"triangle": 3, "square": 4, "star": 5}  # the harmonic of the outline that only this shape has
STRENGTH = {"triangle": 0.16, "square": 0.065, "star": 0.13}  # its amplitude; a circle has none of them
MEDIUM_RADIUS = 0.148  # heights: between small (0.115) and large (0.19)
HALF_MOVE = {"x": 0.5, "y": 0.32, "scale": 0.55, "turns": 0.32}  # what a clear motion amounts to (turns: per second)
STILL = 0.3  # of that: less is rest
SEEN_SHARE = 0.8
SHORT_SECONDS = 1.5  # a shorter clip may hold a single bounce
HOP_HEIGHT = 0.05  # heights: how far a shape leaves the floor between two bounces


@dataclass(frozen=True)
class Movement:
    """`shape`, `size` and `motion` are words or "unclear"; `contacts` are seconds of the bounces.

    `x` [F] is the centre as a share of the width, NaN where no shape was seen.
    """

    shape: str
    size: str
    motion: str
    contacts: tuple[float, ...]
    x: Array


def follow(seen: Seen, fps: float) -> Movement:
    """Classify the shape and the motion of a segmented clip."""
    good = np.flatnonzero(np.isfinite(seen.radius))
    _, height, width = seen.cover.shape
    if len(good) < max(2, SEEN_SHARE * len(seen.cover)):
        return Movement("unclear", "unclear", "unclear", (), np.full(len(seen.cover), np.nan))
    series = _outlines(seen, good)
    shape = _shape(series)
    radius = seen.radius[good] / height
    size = "small" if np.exp(np.log(radius).mean()) < MEDIUM_RADIUS else "large"
    times, x, y = good / fps, seen.x[good] / height, seen.y[good] / height
    contacts = _contacts(times, y)
    bounces = len(contacts) >= (2 if len(seen.cover) / fps >= SHORT_SECONDS else 1)
    motion = "bounce" if bounces else _motion(times, x, y, radius, _turned(series, shape))
    return Movement(shape, size, motion, contacts, (seen.x + 0.5) / width)


def _outlines(seen: Seen, good: NDArray[np.intp]) -> NDArray[np.complex128]:
    """Fourier series [G, K] of the outline of every good frame, scaled to the circle of equal area."""
    angles = np.arange(ANGLES) * 2 * np.pi / ANGLES
    steps = (np.arange(RADII) + 0.5) * REACH / RADII
    scale = seen.radius[good][:, None, None]
    x = seen.x[good][:, None, None] + scale * steps * np.cos(angles)[:, None]
    y = seen.y[good][:, None, None] + scale * steps * np.sin(angles)[:, None]
    outline = _sample(seen.cover[good], x, y).sum(axis=2) * REACH / RADII
    return np.fft.rfft(outline, axis=1)[:, :13] / ANGLES


def _sample(cover: NDArray[np.float32], x: Array, y: Array) -> Array:
    """Bilinear values of [G, h, w] at [G, A, R]; nothing lies outside the frame."""
    padded = np.pad(cover, ((0, 0), (1, 1), (1, 1)))
    x = np.clip(x + 1, 0, padded.shape[2] - 1.001)
    y = np.clip(y + 1, 0, padded.shape[1] - 1.001)
    left, top = x.astype(int), y.astype(int)
    fx, fy, g = x - left, y - top, np.arange(len(cover))[:, None, None]
    upper = padded[g, top, left] * (1 - fx) + padded[g, top, left + 1] * fx
    lower = padded[g, top + 1, left] * (1 - fx) + padded[g, top + 1, left + 1] * fx
    return upper * (1 - fy) + lower * fy


def _shape(series: NDArray[np.complex128]) -> str:
    amplitude = np.median(np.abs(series), axis=0)
    if amplitude[2] > 0.12:
        return "unclear"
    strength = {name: amplitude[order] / STRENGTH[name] for name, order in ORDER.items()}
    best = max(strength, key=lambda name: strength[name])
    return best if strength[best] > 0.5 else "circle"


def _turned(series: NDArray[np.complex128], shape: str) -> Array:
    """Revolutions of the outline since the first frame [G]; zeros for a circle."""
    if shape not in ORDER:
        return np.zeros(len(series))
    order = ORDER[shape]
    return -np.unwrap(np.angle(series[:, order])) / order / (2 * np.pi)


def _motion(times: Array, x: Array, y: Array, radius: Array, turned: Array) -> str:
    def change(track: Array) -> float:
        return float(np.polyfit(times, track, 1)[0] * (times[-1] - times[0]))

    moves = {
        "x": change(x),
        "y": change(y),
        "scale": change(np.log(radius)),
        "turns": change(turned) / (times[-1] - times[0]),
    }
    best = max(moves, key=lambda name: abs(moves[name]) / HALF_MOVE[name])
    if abs(moves[best]) < STILL * HALF_MOVE[best]:
        return "rest"
    words = {"x": ("left", "right"), "y": ("up", "down"), "scale": ("shrink", "grow"), "turns": ("spin", "spin")}
    return words[best][int(moves[best] > 0)]


def _contacts(times: Array, y: Array) -> tuple[float, ...]:
    """Seconds of the lowest points between two hops, refined by a parabola through three frames."""
    found: list[float] = []
    floor = float(np.percentile(y, 97))
    for index in range(1, len(y) - 1):
        low = y[index] >= y[index - 1] and y[index] > y[index + 1]
        if not low or floor - y[index] > HOP_HEIGHT:
            continue
        earlier = y[: index + 1] if not found else y[np.searchsorted(times, found[-1]) : index + 1]
        later = y[index : index + max(2, len(y) // 4)]
        if y[index] - earlier.min() < HOP_HEIGHT or y[index] - later.min() < HOP_HEIGHT / 2:
            continue
        bend = y[index - 1] - 2 * y[index] + y[index + 1]
        shift = 0.5 * (y[index - 1] - y[index + 1]) / bend if bend < 0 else 0.0
        found.append(float(times[index] + shift * (times[1] - times[0])))
    return tuple(found)
