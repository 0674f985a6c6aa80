"""Frames and sound into an mp4 that appears whole or not at all, with its Plan inside."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

from ltx2 import __version__
from ltx2.spec.errors import GenerationFailed, RefusedRequest
from ltx2.spec.plan import Plan

CRF = "19"
BT709, LIMITED = 1, 1


class Muxer:
    """Writes H.264 (yuv420p, bt709) and AAC into one mp4 with its index in front.

    `frames` takes uint8 arrays [f, H, W, 3]; `sound` takes the whole waveform [2, S], which is cut or padded with
    silence to the length of the picture.
    """

    def __init__(self, container: Any, plan: Plan, sampling_rate: int | None):
        self.plan = plan
        self.container = container
        self.video: VideoStream = container.add_stream("libx264", rate=plan.fps)
        self.video.width, self.video.height = plan.width, plan.height
        self.video.pix_fmt = "yuv420p"
        self.video.time_base = 1 / plan.fps
        context = self.video.codec_context
        context.options = {"crf": CRF, "preset": "veryfast"}
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = LIMITED
        self.sampling_rate = sampling_rate
        self.audio: AudioStream | None = None
        if sampling_rate:
            audio: AudioStream = container.add_stream("aac", rate=sampling_rate, layout="stereo")
            audio.bit_rate = 192_000
            self.audio = audio
        self.count = 0

    def frames(self, pixels: np.ndarray) -> None:
        for picture in pixels:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            frame.pts, frame.time_base = self.count, 1 / self.plan.fps
            self.count += 1
            self.container.mux(self.video.encode(frame))

    def sound(self, waveform: np.ndarray) -> None:
        if self.audio is None or self.sampling_rate is None:
            return
        length = round(Fraction(self.plan.frames) / self.plan.fps * self.sampling_rate)
        waveform = np.pad(waveform[:, :length], ((0, 0), (0, max(0, length - waveform.shape[1]))))
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform, np.float32), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = self.sampling_rate, 0
        self.container.mux(self.audio.encode(frame))

    def finish(self) -> None:
        self.container.mux(self.video.encode(None))
        if self.audio is not None:
            self.container.mux(self.audio.encode(None))


@contextmanager
def writing(plan: Plan, out: Path, sampling_rate: int | None) -> Iterator[Muxer]:
    """Open a hidden file beside `out`, and rename it to `out` when the block ends well; otherwise remove it.

    Raises GenerationFailed when the disk is full or the folder refuses the file.
    """
    part = out.with_name(f".{out.stem}.{os.getpid()}.part.mp4")
    try:
        with av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            container.metadata["title"] = plan.prompt[:200]
            container.metadata["comment"] = json.dumps({"ltx2": __version__, "plan": plan.as_dict()})
            muxer = Muxer(container, plan, sampling_rate)
            yield muxer
            muxer.finish()
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(out)
    except OSError as error:
        raise GenerationFailed(f"{out} could not be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def read_plan(path: str | Path) -> Plan:
    """The Plan in a video's metadata. Raises RefusedRequest when the file is missing, no video, or holds none."""
    try:
        with av.open(str(path)) as container:
            comment = container.metadata.get("comment", "")
    except (av.FFmpegError, OSError) as error:
        raise RefusedRequest(f"from: {path} cannot be read as a video ({error})", knob="from") from None
    try:
        data = json.loads(comment)
        return Plan.from_dict(data["plan"])
    except (json.JSONDecodeError, KeyError, TypeError):
        raise RefusedRequest(f"from: {path} holds no plan; it was not made by ltx2", knob="from") from None
