"""Frames and sound into an mp4 that appears whole or not at all, with its Plan inside."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from queue import Full, Queue
from threading import Thread
from typing import Any

import av
import numpy as np
import torch
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

from ltx2 import __version__
from ltx2.pipeline.colour import yuv420
from ltx2.pipeline.transfer import Arriving
from ltx2.spec.errors import GenerationFailed, RefusedRequest
from ltx2.spec.plan import Plan

CRF = "19"
# Of the kinds of blocks that x264's veryfast tries, one: the same quality with 20 to 30 % less work. And eight threads that
# look ahead: by itself x264 takes a third of the others, four, and on 16 cores all others wait for those.
X264 = "partitions=i8x8:lookahead-threads=8"
THREADS = 12
# FFmpeg's AAC by its quick search, at more bits a second: nearer to all sounds but white noise than its thorough one at
# 192,000, which takes 0.16 to 0.28 s for four seconds of speech and so longer than the picture.
AAC, AAC_RATE = {"aac_coder": "fast"}, 256_000
# Chunks of the decoder that may wait for the encoder: all of a usual clip, so that the device is free early.
QUEUE = 8
BT709, LIMITED = 1, 1


class Muxer:
    """Writes H.264 (yuv420p, bt709) and AAC into one mp4 with its index in front.

    `frames` takes uint8 values [f, 3H/2, W], as `yuv420` makes them, or RGB [f, H, W, 3]; `sound` the whole waveform
    [2, S], which is cut or padded with silence to the length of the picture. Both return at once, in any order: picture
    and sound are encoded by a thread each, which also waits for what is still arriving, so that decoding goes on
    meanwhile. What goes wrong there is raised by the next call.
    """

    def __init__(self, container: Any, plan: Plan, sampling_rate: int | None):
        self.plan = plan
        self.container = container
        self.video: VideoStream = container.add_stream("libx264", rate=plan.fps)
        self.video.width, self.video.height = plan.width, plan.height
        self.video.pix_fmt = "yuv420p"
        self.video.time_base = 1 / plan.fps
        context = self.video.codec_context
        context.options = _options()
        # Whole frames in parallel, by a fixed number of threads: the file does not depend on the number of cores.
        context.thread_type = "FRAME"
        context.thread_count = THREADS
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = LIMITED
        self.sampling_rate = sampling_rate
        self.audio: AudioStream | None = None
        if sampling_rate:
            audio: AudioStream = container.add_stream("aac", rate=sampling_rate, layout="stereo")
            audio.bit_rate, audio.codec_context.options = AAC_RATE, AAC
            self.audio = audio
        self.count = 0
        self._packets: list[Any] = []
        self._picture, self._sound = Lane(QUEUE), Lane(1)
        # Before the first frame comes, so that its threads do not begin only then.
        self._picture.put(context.open)

    def frames(self, pixels: np.ndarray | Arriving) -> None:
        begin, self.count = self.count, self.count + len(pixels)
        self._picture.put(lambda: self._encode(_there(pixels), begin))

    def sound(self, waveform: np.ndarray | Arriving) -> None:
        if self.audio is not None and self.sampling_rate is not None:
            self._sound.put(lambda: self._encode_sound(_there(waveform)))

    def finish(self) -> None:
        """Wait until everything is encoded, and put it into the container."""
        self._picture.put(lambda: self._packets.extend(self.video.encode(None)))
        for lane in (self._picture, self._sound):
            lane.close()
        # In the order of time, whichever thread was faster.
        for packet in sorted(self._packets, key=lambda one: (one.dts * one.time_base, one.stream.index)):
            self.container.mux(packet)

    def stop(self) -> None:
        """Leave what is not encoded yet; nothing of this runs afterwards."""
        for lane in (self._picture, self._sound):
            lane.stop()

    def _encode(self, pixels: np.ndarray, begin: int) -> None:
        planes = pixels if pixels.ndim == 3 else yuv420(torch.from_numpy(pixels)).numpy()
        for number, picture in enumerate(planes, begin):
            if self._picture.stopped:
                return
            frame = av.VideoFrame.from_numpy_buffer(picture, format="yuv420p")
            frame.pts, frame.time_base = number, 1 / self.plan.fps
            frame.color_range, frame.colorspace = LIMITED, BT709
            self._packets.extend(self.video.encode(frame))

    def _encode_sound(self, waveform: np.ndarray) -> None:
        assert self.audio is not None and self.sampling_rate is not None
        length = round(Fraction(self.plan.frames) / self.plan.fps * self.sampling_rate)
        waveform = np.pad(waveform[:, :length], ((0, 0), (0, max(0, length - waveform.shape[1]))))
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform, np.float32), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = self.sampling_rate, 0
        self._packets.extend([*self.audio.encode(frame), *self.audio.encode(None)])


class Lane:
    """A thread that does one piece of work after another; at most `room` of them wait."""

    def __init__(self, room: int):
        self.waiting: Queue[Callable[[], None] | None] = Queue(room)
        self.error: BaseException | None = None
        self.stopped = False
        self.thread = Thread(target=self._work, name="encoder", daemon=True)
        self.thread.start()

    def put(self, work: Callable[[], None]) -> None:
        """Hand work over; waits while there is no room. Raises what earlier work raised."""
        self._raise()
        self.waiting.put(work)

    def close(self) -> None:
        """Wait until all work is done. Raises what any of it raised."""
        self.waiting.put(None)
        self.thread.join()
        self._raise()

    def stop(self) -> None:
        """Drop what waits, and wait for what is being done."""
        self.stopped = True
        # Wakes the thread if it waits for work; with no room there is some to skip.
        with suppress(Full):
            self.waiting.put_nowait(None)
        self.thread.join()

    def _work(self) -> None:
        while (work := self.waiting.get()) is not None:
            # After an error work is taken and dropped, so that nobody waits for room for ever.
            if self.error is None and not self.stopped:
                try:
                    work()
                except BaseException as error:
                    self.error = error
            if self.stopped and self.waiting.empty():
                return

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error


@contextmanager
def writing(
    plan: Plan, out: Path, sampling_rate: int | None, skipped: int = 0, lossy: Sequence[str] = ()
) -> Iterator[Muxer]:
    """Open a hidden file beside `out`, and rename it to `out` when the block ends well; otherwise remove it.

    Beside the plan the metadata tell how many steps were `skipped`, and what of the machine was `lossy`.
    Raises GenerationFailed when the disk is full or the folder refuses the file.
    """
    part = out.with_name(f".{out.stem}.{os.getpid()}.part.mp4")
    try:
        with av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            container.metadata["title"] = plan.prompt[:200]
            told = {"ltx2": __version__, "plan": _told(plan)} | ({"skipped_steps": skipped} if skipped else {})
            told |= {"lossy": list(lossy)} if lossy else {}
            container.metadata["comment"] = json.dumps(told)
            muxer = Muxer(container, plan, sampling_rate)
            try:
                yield muxer
                muxer.finish()
            finally:
                muxer.stop()
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(out)
    except OSError as error:
        raise GenerationFailed(f"{out.name} could not be written: {error.strerror or type(error).__name__}") from error
    finally:
        part.unlink(missing_ok=True)


def _there(values: np.ndarray | Arriving) -> np.ndarray:
    return values.arrived().numpy() if isinstance(values, Arriving) else values


def _options() -> dict[str, str]:
    """What the encoder is told. With AVX-512, x264's macroblock tree does not give the same bytes every time (192x128 in
    most runs, 576x320 in some), so those machines work with AVX2: as fast, and the same bytes as theirs at their best.
    """
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return {"crf": CRF, "preset": "veryfast", "x264-params": X264 + (":asm=avx2" if wide else "")}


def _told(plan: Plan) -> dict[str, Any]:
    """The Plan as a file tells it: of absolute paths the name only, for whoever gets the file may not know the folders."""
    loras = [[_name(path), strength] for path, strength in plan.loras]
    return plan.as_dict() | {"image": _name(plan.image), "loras": loras}


def _name(path: str) -> str:
    return Path(path).name if Path(path).is_absolute() else path


def read_plan(path: str | Path) -> Plan:
    """The Plan in a video's metadata; its image and LoRAs are names only where they were absolute paths.

    Raises RefusedRequest when the file is missing, no video, or holds none.
    """
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
