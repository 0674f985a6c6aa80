"""What a clip sounds like: tone, beeps or silence, the pitch class, when beeps begin, and from which side."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

WINDOW_SECONDS = 0.064
HOP_SECONDS = 0.010
SILENCE_LEVEL = 0.03  # root mean square over both channels
LOUD = 0.35  # of the level of the loudest moments
TONE_SHARE = 0.55  # of the time that a tone is loud; beeps are loud for less than a third
ONSET_GAP = 0.15  # seconds: two beeps are further apart
PITCH_EDGES = (110.0, 381.0, 1078.0, 3400.0)  # geometric means between 220, 660 and 1760 Hz
PITCHES = ("low", "middle", "high")


@dataclass(frozen=True)
class Sounding:
    """`kind` is tone, beeps, silence or missing; `pitch` low, middle, high or none; `onsets` are seconds.

    `times` [T] seconds and `pan` [T] (0 left, 1 right, NaN where nothing is loud) follow the stereo position.
    """

    kind: str
    pitch: str
    onsets: tuple[float, ...]
    times: Array
    pan: Array


def listen(audio: NDArray[np.floating] | None, sampling_rate: int) -> Sounding:
    """Judge a waveform [2, S] in -1..1; `None`, or one too short for a window, counts as missing."""
    hop = round(HOP_SECONDS * sampling_rate)
    if audio is None or audio.shape[-1] < 4 * hop:
        return Sounding("missing", "none", (), np.zeros(0), np.zeros(0))
    level = _levels(np.asarray(audio, dtype=np.float64), hop)
    total = np.sqrt((level**2).sum(axis=0))
    times = (np.arange(total.size) + 0.5) * hop / sampling_rate
    loudest = np.percentile(total, 97)
    if loudest < SILENCE_LEVEL:
        return Sounding("silence", "none", (), times, np.full(total.size, np.nan))
    loud = total > LOUD * loudest
    pan = np.where(loud, np.arctan2(level[1], level[0]) * 2 / np.pi, np.nan)
    kind = "tone" if loud.mean() > TONE_SHARE else "beeps"
    onsets = _onsets(loud, times) if kind == "beeps" else ()
    return Sounding(kind, _pitch(np.asarray(audio), sampling_rate), onsets, times, pan)


def spectrogram(channel: NDArray[np.floating], sampling_rate: int) -> tuple[Array, Array, Array]:
    """Power [T, K] of a waveform [S] in Hann windows of 64 ms every 10 ms, with the seconds [T] and Hz [K]."""
    size, hop = round(WINDOW_SECONDS * sampling_rate), round(HOP_SECONDS * sampling_rate)
    padded = np.pad(np.asarray(channel, dtype=np.float64), size // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop] * np.hanning(size)
    power = np.abs(np.fft.rfft(windows)) ** 2 / (size / 4) ** 2
    hertz = np.arange(size // 2 + 1) * sampling_rate / size
    return power, np.arange(len(power)) * hop / sampling_rate, hertz


def _levels(audio: Array, hop: int) -> Array:
    """Root mean square of every hop, smoothed over three: [2, T]."""
    blocks = audio[:, : audio.shape[1] // hop * hop].reshape(2, -1, hop)
    power = np.pad((blocks**2).mean(axis=2), ((0, 0), (1, 1)), mode="edge")
    return np.sqrt((power[:, :-2] + power[:, 1:-1] + power[:, 2:]) / 3)


def _onsets(loud: NDArray[np.bool_], times: Array) -> tuple[float, ...]:
    onsets: list[float] = []
    for index in np.flatnonzero(loud & ~np.concatenate(([False], loud[:-1]))):
        if not onsets or times[index] - onsets[-1] > ONSET_GAP:
            onsets.append(float(times[index]))
    return tuple(onsets)


def _pitch(audio: NDArray[np.floating], sampling_rate: int) -> str:
    power, _, hertz = spectrogram(audio[0], sampling_rate)
    spectrum = power.sum(axis=0) + spectrogram(audio[1], sampling_rate)[0].sum(axis=0)
    spectrum[hertz < PITCH_EDGES[0] / 2] = 0.0
    peak = hertz[spectrum.argmax()]
    return next(
        (name for name, low, high in zip(PITCHES, PITCH_EDGES, PITCH_EDGES[1:], strict=False) if low <= peak < high),
        "none",
    )
