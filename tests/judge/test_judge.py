"""The judge is right on clips of the toy world, clean and spoilt, and says no to every wrong attribute."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from ltx2.judge import Verdict, held_out_prompts, judge, score
from ltx2.judge.picture import templates
from ltx2.judge.sheet import contact_sheet, stack
from training import world
from training.world import Scene, clip, sample_scenes

FPS, RATE = 24.0, 16000
BALL = Scene("red", "circle", "large", "bounce", "dark", "beeps", "high", x=0.1, hertz=1760.0)
ARROW = Scene("blue", "triangle", "small", "right", "striped", "tone", "low", hertz=220.0)


def spoil(video: NDArray[np.uint8], passes: int, noise: float, seed: int) -> NDArray[np.uint8]:
    """Blur by `passes` of (1, 2, 1) both ways and add Gaussian noise of `noise` (0..1)."""
    frames = video.astype(np.float32)
    for _ in range(passes):
        for axis in (1, 2):
            edged = np.pad(frames, [(1, 1) if axis == other else (0, 0) for other in range(4)], mode="edge")
            parts = [edged.take(range(shift, shift + frames.shape[axis]), axis) for shift in range(3)]
            frames = (parts[0] + 2 * parts[1] + parts[2]) / 4
    frames += np.random.default_rng(seed).normal(0, noise * 255, frames.shape)
    return np.clip(frames, 0, 255).round().astype(np.uint8)


def look_at(scene: Scene, frames: int = 49, height: int = 96, passes: int = 0, noise: float = 0.0) -> Verdict:
    video, audio = clip(scene, frames, height, height * 4 // 3, FPS, RATE)
    if passes:
        video = spoil(video, passes, noise, seed=1)
        audio = audio + np.random.default_rng(1).normal(0, 0.01, audio.shape).astype(np.float32)
    return judge(video, FPS, audio, RATE)


@pytest.mark.parametrize(
    ("count", "frames", "height", "passes", "noise"),
    [(24, 49, 96, 0, 0.0), (10, 49, 96, 3, 0.04), (3, 49, 192, 3, 0.04), (8, 25, 96, 1, 0.03), (3, 97, 96, 1, 0.03)],
)
def test_real_clips_are_judged_right(count: int, frames: int, height: int, passes: int, noise: float) -> None:
    wrong: Counter[str] = Counter()
    for scene in sample_scenes(count, seed=count, held_out=True):
        result = score(look_at(scene, frames, height, passes, noise), scene.attributes())
        wrong.update(name for name, right in result.items() if not right)
    assert not wrong


@pytest.mark.parametrize("scene", [BALL, ARROW], ids=["beeps", "tone"])
def test_every_wrong_attribute_is_refused(scene: Scene) -> None:
    verdict = look_at(scene)
    assert all(score(verdict, scene.attributes()).values())
    for name in world.ATTRIBUTES:
        words = world.PITCHES if name == "pitch" else getattr(world, name.upper() + "S")
        for word in set(words) - {getattr(scene, name)}:
            result = score(verdict, scene.attributes() | {name: word})
            assert result.get(name, False) is False


def test_swapped_channels_sound_from_the_wrong_side() -> None:
    for scene in (BALL, ARROW):
        video, audio = clip(scene, 49, 96, 128)
        assert judge(video, FPS, audio, RATE).stereo is True
        assert judge(video, FPS, audio[::-1], RATE).stereo is False


def test_the_middle_asks_for_a_sound_in_the_middle() -> None:
    video, audio = clip(replace(BALL, x=0.5), 49, 96, 128)
    assert judge(video, FPS, audio, RATE).stereo is True
    assert judge(video, FPS, audio * np.float32([[1], [0]]), RATE).stereo is False


@pytest.mark.parametrize(("shift_ms", "right"), [(0, True), (60, True), (-60, True), (160, False), (-160, False)])
def test_beeps_must_come_with_the_bounces(shift_ms: int, right: bool) -> None:
    video, audio = clip(BALL, 49, 96, 128)
    verdict = judge(video, FPS, np.roll(audio, shift_ms * RATE // 1000, axis=1), RATE)
    assert score(verdict, BALL.attributes())["beep_offset"] is right
    assert np.median(verdict.beep_offsets_ms) == pytest.approx(abs(shift_ms), abs=20)


def test_a_bounce_without_its_beep_is_wrong() -> None:
    video, audio = clip(BALL, 49, 96, 128)
    audio = audio.copy()
    audio[:, round(0.9 * RATE) : round(1.2 * RATE)] = 0
    verdict = judge(video, FPS, audio, RATE)
    assert verdict.sound == "beeps"
    assert score(verdict, BALL.attributes())["beep_offset"] is False


def test_played_backwards_the_motion_turns_round() -> None:
    for motion, back in (("left", "right"), ("up", "down"), ("grow", "shrink")):
        video, audio = clip(replace(ARROW, motion=motion), 49, 96, 128)
        assert judge(video, FPS, audio, RATE).motion == motion
        assert judge(video[::-1], FPS, audio, RATE).motion == back


def test_what_is_not_of_the_world_satisfies_nothing() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (25, 96, 128, 3), dtype=np.uint8)
    empty = np.full((25, 96, 128, 3), 15, dtype=np.uint8)
    for video in (noise, empty):
        verdict = judge(video, FPS, None, RATE)
        result = score(verdict, BALL.attributes())
        assert not any(result[name] for name in result if name != "background")
        assert verdict.sound == "missing"
    assert judge(noise, FPS, None, RATE).background == "unclear"
    # a clip with no sound track is not a clip that is silent
    assert score(judge(empty, FPS, None, RATE), BALL.attributes() | {"sound": "silence"})["sound"] is False


def test_pitches_between_and_beyond_the_classes() -> None:
    for hertz, pitch in ((60.0, "none"), (330.0, "low"), (450.0, "middle"), (1200.0, "high"), (5000.0, "none")):
        assert look_at(replace(ARROW, hertz=hertz), frames=9).pitch == pitch


def test_the_judges_backgrounds_are_the_worlds() -> None:
    for name, picture in templates(96, 128).items():
        scene = replace(ARROW, background=name)
        drawn = world._backgrounds([scene], 96, 128, "cpu")[0].permute(1, 2, 0).numpy()
        assert np.abs(drawn - picture).max() < 1e-5


def test_prompts_are_there_with_their_attributes() -> None:
    prompts = held_out_prompts()
    assert len(prompts) >= 240
    assert all(set(prompt.attributes) == set(world.ATTRIBUTES) and prompt.text for prompt in prompts)
    assert sum(prompt.attributes["sound"] == "beeps" for prompt in prompts) >= 25


def test_still_clips_rest_and_slow_drift_does_not_count() -> None:
    slow = replace(ARROW, start=0.45, stop=0.55)
    assert look_at(slow).motion == "rest"


def test_the_sheet_shows_frames_and_the_two_channels() -> None:
    video, audio = clip(replace(BALL, x=0.0), 49, 96, 128)
    sheet = contact_sheet(video, audio, RATE, "a red ball")
    assert sheet.size == (9 * 132 - 4, 112)
    loud = np.asarray(sheet.convert("L"), dtype=float)[16:, -128:]
    assert loud[:47].mean() > loud[-47:].mean() > 0
    first = np.asarray(sheet)[16:112, :128]
    assert np.array_equal(first, video[0])
    assert contact_sheet(video, None, RATE, "").size == (8 * 132 - 4, 112)
    assert stack([sheet, sheet]).size == (sheet.width, 2 * 116)
