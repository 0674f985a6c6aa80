"""Judges whether a clip shows and sounds what a toy-world prompt says: classical image and signal processing only.

`judge` looks and listens, `score` compares its verdict with a prompt's attributes, `held_out_prompts` has the prompts.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from ltx2.judge.motion import follow
from ltx2.judge.picture import look
from ltx2.judge.sound import Sounding, listen

__all__ = ["Prompt", "Verdict", "held_out_prompts", "judge", "score"]

BEEP_OFFSET_MS = 100.0
EDGE_SECONDS = 0.1  # a bounce this close to the clip's beginning or end is not asked for its beep
OFF_CENTRE = 0.1
CENTRED = 0.25
SIDE_SHARE = 0.8


@dataclass(frozen=True)
class Verdict:
    """What was seen and heard, in the toy world's words; "unclear" or "none" where nothing fits.

    `stereo` says whether the sound comes from where the shape is, `None` when nothing sounds. `beep_offsets_ms` has,
    for every bounce, the distance to the nearest beep, and for every beep that to the nearest bounce; infinite
    without one.
    """

    colour: str
    shape: str
    size: str
    motion: str
    background: str
    sound: str
    pitch: str
    stereo: bool | None
    beep_offsets_ms: tuple[float, ...]


@dataclass(frozen=True)
class Prompt:
    """A prompt whose combination of attributes was kept from training."""

    text: str
    attributes: Mapping[str, str]


def judge(video: NDArray[np.uint8], fps: float, audio: NDArray[np.floating] | None, sampling_rate: int) -> Verdict:
    """Judge a clip: `video` [F, H, W, 3], `audio` [2, S] in -1..1 or `None` for a clip without a sound track."""
    seen, heard = look(video), listen(audio, sampling_rate)
    moved = follow(seen, fps)
    offsets = _beep_offsets(moved.contacts, heard.onsets, len(video) / fps) if heard.kind == "beeps" else ()
    return Verdict(
        colour=seen.colour,
        shape=moved.shape,
        size=moved.size,
        motion=moved.motion,
        background=seen.background,
        sound=heard.kind,
        pitch=heard.pitch,
        stereo=_stereo(moved.x, fps, heard),
        beep_offsets_ms=offsets,
    )


def score(verdict: Verdict, attributes: Mapping[str, str]) -> dict[str, bool]:
    """Which attributes came true; the keys that make no sense for silence (`pitch`, `stereo`) are left out.

    `beep_offset`, only for beeps, asks for a beep within 100 ms of every bounce and for none elsewhere.
    """
    names = ["colour", "shape", "size", "motion", "background", "sound"]
    result = {name: getattr(verdict, name) == attributes[name] for name in names}
    if attributes["sound"] != "silence":
        result["pitch"] = verdict.pitch == attributes["pitch"]
        result["stereo"] = verdict.stereo is True
    if attributes["sound"] == "beeps":
        offsets = verdict.beep_offsets_ms
        result["beep_offset"] = bool(offsets) and max(offsets) <= BEEP_OFFSET_MS
    return result


def held_out_prompts() -> tuple[Prompt, ...]:
    """The prompts that quality is measured on, each with its attributes."""
    rows = json.loads(files("ltx2.judge").joinpath("prompts.json").read_text())
    return tuple(Prompt(row["prompt"], row["attributes"]) for row in rows)


def _beep_offsets(contacts: tuple[float, ...], onsets: tuple[float, ...], seconds: float) -> tuple[float, ...]:
    def nearest(time: float, others: tuple[float, ...]) -> float:
        return min((abs(time - other) * 1000 for other in others), default=float("inf"))

    def asked(times: tuple[float, ...]) -> list[float]:
        return [time for time in times if EDGE_SECONDS < time < seconds - EDGE_SECONDS]

    bounces = [nearest(time, onsets) for time in asked(contacts)]
    return tuple(bounces + [nearest(time, contacts) for time in asked(onsets)])


def _stereo(x: NDArray[np.floating], fps: float, heard: Sounding) -> bool | None:
    """Whether the loud moments lie on the shape's side; of a shape in the middle, whether they lie in the middle."""
    if heard.kind not in ("tone", "beeps"):
        return None
    frame = np.minimum((heard.times * fps).astype(int), len(x) - 1)
    sounding = np.isfinite(heard.pan) & np.isfinite(x[frame])
    if not sounding.any():
        return False
    place, pan = x[frame][sounding] - 0.5, heard.pan[sounding] - 0.5
    aside = np.abs(place) > OFF_CENTRE
    if aside.mean() < 0.1:
        return bool(np.median(np.abs(pan)) < CENTRED)
    return bool((np.sign(pan[aside]) == np.sign(place[aside])).mean() >= SIDE_SHARE)
