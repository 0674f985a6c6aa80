"""A finished video is looked at before it is published: does it decode, is it as planned, is anything seen and heard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError

from ltx2.spec.errors import InvalidOutput
from ltx2.spec.plan import Plan

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Luma of BT.709 limited range begins at 16; a picture is black when next to no pixel is brighter than this.
BLACK, BRIGHT_SHARE = 24, 0.001
# -60 dBFS: below it nothing is heard beside anything.
SILENT = 1e-3
LOOKS = 8


def inspect(plan: Plan, path: Path) -> tuple[str, ...]:
    """The `Inspect` of a worker: warnings for a black picture and a silent sound track.

    Decodes everything, and judges eight frames from the first to the last. Raises InvalidOutput for a
    file that cannot be decoded, or whose size, frames, length or sound track are not those of the plan.
    """
    try:
        # Named, so that nothing else is tried, whatever the file looks like.
        with av.open(str(path), format="mp4") as container:
            _check_streams(plan, container)
            black = _is_black(plan, container)
        with av.open(str(path), format="mp4") as container:
            silent = plan.audio and _is_silent(plan, container)
    except (FFmpegError, OSError, StopIteration) as error:
        raise InvalidOutput(f"the video cannot be decoded: {type(error).__name__}") from error
    return (*(["the picture is black"] if black else []), *(["the sound is silent"] if silent else []))


def _check_streams(plan: Plan, container: InputContainer) -> None:
    if len(container.streams.video) != 1 or len(container.streams.audio) != int(plan.audio):
        raise InvalidOutput("the video has not the streams that were planned")
    video = container.streams.video[0]
    found, wanted = (video.width, video.height, video.frames), (plan.width, plan.height, plan.frames)
    if found != wanted:
        raise InvalidOutput(f"the video is {_size(found)}, not {_size(wanted)}")
    seconds = float((video.duration or 0) * (video.time_base or 0))
    if abs(seconds - plan.frames / float(plan.fps)) > 1 / float(plan.fps):
        raise InvalidOutput(f"the video lasts {seconds:.2f} s, not {plan.frames / float(plan.fps):.2f} s")


def _size(size: tuple[int, int, int]) -> str:
    return f"{size[0]}x{size[1]} with {size[2]} frames"


def _is_black(plan: Plan, container: InputContainer) -> bool:
    """Whether every frame that is looked at is black. The last one must be there."""
    looks = {round(number * (plan.frames - 1) / (LOOKS - 1)) for number in range(LOOKS)}
    black, number = True, -1
    container.streams.video[0].thread_type = "AUTO"
    for number, frame in enumerate(container.decode(video=0)):
        if number in looks and black:
            black = float((_luma(frame) > BLACK).mean()) < BRIGHT_SHARE
    if number + 1 != plan.frames:
        raise InvalidOutput(f"{number + 1} of {plan.frames} frames can be decoded")
    return black


def _luma(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """The stored luma [H, W], 16 to 235."""
    plane = frame.planes[0]
    return np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]


def _is_silent(plan: Plan, container: InputContainer) -> bool:
    """Whether no sample is louder than -60 dBFS. The track must be as long as the picture, to a frame or two."""
    loudest, samples, rate = 0.0, 0, 1
    for frame in container.decode(audio=0):
        sound: NDArray[Any] = frame.to_ndarray()
        loudest, rate = max(loudest, float(np.abs(sound).max(initial=0.0))), frame.sample_rate
        samples += frame.samples
    if not np.isfinite(loudest):
        raise InvalidOutput("the sound has values that are not finite")
    if abs(samples / rate - plan.frames / float(plan.fps)) > 0.1 + 1 / float(plan.fps):
        raise InvalidOutput(f"the sound lasts {samples / rate:.2f} s, not {plan.frames / float(plan.fps):.2f} s")
    return loudest < SILENT
