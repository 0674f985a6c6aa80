"""Integer arithmetic of frames, pixels, latents and tokens. Every size in the house comes from here."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

SPATIAL = 32
TEMPORAL = 8
AUDIO_LATENTS_PER_SECOND = Fraction(25)


@dataclass(frozen=True)
class Grid:
    """The latent grid of one stage: video frames, rows and columns, and audio length, in latents."""

    frames: int
    rows: int
    columns: int
    audio: int

    @property
    def video(self) -> tuple[int, int, int]:
        """(frames, rows, columns)."""
        return self.frames, self.rows, self.columns

    @property
    def video_tokens(self) -> int:
        return self.frames * self.rows * self.columns

    @property
    def audio_tokens(self) -> int:
        return self.audio


def grid(width: int, height: int, frames: int, fps: Fraction) -> Grid:
    """Latent grid of a clip of `width` x `height` pixels and `frames` frames at `fps`."""
    return Grid(1 + (frames - 1) // TEMPORAL, height // SPATIAL, width // SPATIAL, audio_latents(frames, fps))


def audio_latents(frames: int, fps: Fraction) -> int:
    """Length of the audio stream: 25 latents a second, rounded half to even as Python and the reference do."""
    return round(Fraction(frames) / fps * AUDIO_LATENTS_PER_SECOND)


def nearest_multiple(value: int, of: int, least: int | None = None) -> int:
    """The multiple of `of` that is nearest to `value`, at least `least` (or `of`)."""
    return max(least or of, (value + of // 2) // of * of)


def nearest_frames(value: float) -> int:
    """The count of the form 8k+1 that is nearest to `value`."""
    return max(0, round((value - 1) / TEMPORAL)) * TEMPORAL + 1


def frames_for(seconds: float, fps: Fraction) -> int:
    """Frames of the form 8k+1 nearest to a duration."""
    return nearest_frames(seconds * fps)


def parse_fps(text: str | float | int | Fraction) -> Fraction:
    """fps exactly as written: `24`, `23.976` or `24000/1001`. Raises ValueError on anything else."""
    if isinstance(text, float):
        text = repr(text)
    return Fraction(str(text).strip())
