"""Finished files before they are published: what passes, what is said about it, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ltx2.doors.inspection import inspect
from ltx2.pipeline.mux import writing
from ltx2.spec.card import Card
from ltx2.spec.errors import InvalidOutput
from ltx2.spec.plan import Plan, resolve
from ltx2.spec.request import request

RATE = 24_000
PLAN = resolve(
    request(prompt="a cat", seed=1, preset="distilled", width=96, height=64, frames=33, fps="24000/1001"),
    Card(name="stand-in", kind="distilled"),
)


def write(path: Path, plan: Plan = PLAN, level: float = 0.5, light: int = 200, lit: slice = slice(None)) -> Path:
    """A video as the engine writes it: a tone, and a bright square on black in the `lit` frames."""
    pixels = np.zeros((plan.frames, plan.height, plan.width, 3), np.uint8)
    pixels[lit, 8:32, 8:32] = light
    length = round(plan.frames / plan.fps * RATE)
    tone = level * np.sin(np.arange(length) / 10, dtype=np.float32)
    with writing(plan, path, RATE if plan.audio else None) as muxer:
        muxer.sound(np.stack([tone, tone]))
        muxer.frames(pixels)
    return path


def test_a_good_video_has_no_warnings(tmp_path: Path) -> None:
    assert inspect(PLAN, write(tmp_path / "clip.mp4")) == ()
    mute = replace(PLAN, audio=False)
    assert inspect(mute, write(tmp_path / "mute.mp4", mute)) == ()


def test_e9_black_and_silent_are_warnings(tmp_path: Path) -> None:
    assert inspect(PLAN, write(tmp_path / "a.mp4", light=0)) == ("the picture is black",)
    assert inspect(PLAN, write(tmp_path / "b.mp4", level=0.0)) == ("the sound is silent",)
    assert inspect(PLAN, write(tmp_path / "c.mp4", light=5, level=1e-4)) == (
        "the picture is black",
        "the sound is silent",
    )


@pytest.mark.parametrize("lit", [slice(0, 1), slice(32, 33), slice(12, 20)])
def test_a_picture_that_is_dark_for_a_while_is_not_black(lit: slice, tmp_path: Path) -> None:
    assert inspect(PLAN, write(tmp_path / "clip.mp4", lit=lit)) == ()


@pytest.mark.parametrize(
    "change",
    [{"frames": 41}, {"frames": 25}, {"width": 128}, {"fps": 25}, {"audio": False}],
    ids=lambda change: next(iter(change)),
)
def test_a_video_that_is_not_what_was_planned_is_refused(change: dict[str, int], tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4")
    with pytest.raises(InvalidOutput):
        inspect(replace(PLAN, **change), path)


def test_e9_a_broken_file_is_refused_without_a_word_about_where_it_lies(tmp_path: Path) -> None:
    good = write(tmp_path / "clip.mp4").read_bytes()
    broken = tmp_path / "broken.mp4"
    half = len(good) // 2
    for content in (b"", b"no video", good[:half], good[: len(good) - 400], b"RIFF" + good[4:]):
        broken.write_bytes(content)
        with pytest.raises(InvalidOutput) as caught:
            inspect(PLAN, broken)
        assert str(tmp_path) not in str(caught.value)


def test_nothing_of_the_file_is_followed_or_fetched(tmp_path: Path) -> None:
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"ffconcat version 1.0\nfile {write(tmp_path / 'clip.mp4')}\n")
    with pytest.raises(InvalidOutput):
        inspect(PLAN, playlist)
