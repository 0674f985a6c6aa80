"""The encoders' threads: the same file whatever the order and the number of cores, and no thread or file left behind."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from ltx2.doors.moving import moving
from ltx2.pipeline import mux
from ltx2.pipeline.colour import yuv420
from ltx2.pipeline.mux import Lane, read_plan, writing
from ltx2.spec.card import Card
from ltx2.spec.errors import GenerationFailed
from ltx2.spec.plan import Plan, resolve
from ltx2.spec.request import request

RATE = 24_000


def _plan() -> Plan:
    card = Card("miniature", "2.0", family="2.0")
    return resolve(request(prompt="p", preset="classic", width=128, height=128, frames=25, seed=1), card)


def _pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (25, 128, 128, 3), dtype=np.uint8)


def _wave() -> np.ndarray:
    time_axis = np.arange(RATE * 2) / RATE
    return np.stack([np.sin(2 * np.pi * 440 * time_axis)] * 2).astype(np.float32)


def _encoders() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("encoder")]


def _write(out: Path, sound_first: bool, chunk: int) -> bytes:
    with writing(_plan(), out, RATE) as muxer:
        if sound_first:
            muxer.sound(_wave())
        for begin in range(0, 25, chunk):
            muxer.frames(_pictures()[begin : begin + chunk])
        if not sound_first:
            muxer.sound(_wave())
    assert not _encoders()
    return out.read_bytes()


def test_order_chunks_and_cores_change_no_byte(tmp_path: Path) -> None:
    first = _write(tmp_path / "v.mp4", True, 16)
    assert _write(tmp_path / "v.mp4", False, 25) == first
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert _write(tmp_path / "v.mp4", False, 3) == first
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.parametrize("size", [(192, 128), (64, 64)])
def test_a_moving_picture_gives_the_same_file_every_time(tmp_path: Path, size: tuple[int, int]) -> None:
    """Of sizes at which x264 with AVX-512 gives one file in three runs."""
    width, height = size
    plan, picture = replace(_plan(), width=width, height=height, frames=17), moving(width, height, 17).numpy()
    files: set[bytes] = set()
    for _ in range(8):
        with writing(plan, tmp_path / "v.mp4", None) as muxer:
            muxer.frames(picture)
        files.add((tmp_path / "v.mp4").read_bytes())
    assert len(files) == 1


def test_planes_and_pictures_make_the_same_file(tmp_path: Path) -> None:
    first = _write(tmp_path / "v.mp4", True, 16)
    with writing(_plan(), tmp_path / "v.mp4", RATE) as muxer:
        muxer.frames(yuv420(torch.from_numpy(_pictures())).numpy())
        muxer.sound(_wave())
    assert (tmp_path / "v.mp4").read_bytes() == first


@pytest.mark.parametrize("slow", ["_encode", "_encode_sound"])
def test_picture_and_sound_do_not_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    """Either encoder is held until the other is done; the file is the same, in the order of time."""
    first = _write(tmp_path / "v.mp4", False, 25)
    done = threading.Event()
    other = {"_encode": "_encode_sound", "_encode_sound": "_encode"}[slow]
    late, early = getattr(mux.Muxer, slow), getattr(mux.Muxer, other)

    def wait(*given: object) -> None:
        assert done.wait(60), "one encoder waits for the other"
        late(*given)

    def go(*given: object) -> None:
        early(*given)
        done.set()

    monkeypatch.setattr(mux.Muxer, slow, wait)
    monkeypatch.setattr(mux.Muxer, other, go)
    assert _write(tmp_path / "v.mp4", False, 25) == first
    with av.open(str(tmp_path / "v.mp4")) as container:
        packets = sorted((packet for packet in container.demux() if packet.dts is not None), key=lambda one: one.pos)
    assert len({packet.stream.index for packet in packets}) == 2
    times = [packet.dts * packet.time_base for packet in packets]
    assert times == sorted(times), "picture and sound lie side by side in the file"


def test_every_frame_and_the_whole_sound_are_in_the_file(tmp_path: Path) -> None:
    _write(tmp_path / "v.mp4", False, 16)
    with av.open(str(tmp_path / "v.mp4")) as container:
        times = [frame.pts for frame in container.decode(video=0)]
        assert len(times) == 25 and times == sorted(times)
    with av.open(str(tmp_path / "v.mp4")) as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
    # AAC comes in blocks of 1024 and begins with one of its own.
    assert abs(samples - 25 / 24 * RATE) <= 2 * 1024


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_leaving_early_ends_the_threads_and_removes_the_file(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), writing(_plan(), tmp_path / "v.mp4", RATE) as muxer:
        muxer.frames(_pictures())
        raise error
    assert not _encoders() and not list(tmp_path.iterdir())


def test_what_fails_in_the_thread_fails_the_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mux.Muxer, "_encode", full)
    with (
        pytest.raises(GenerationFailed, match=r"^v\.mp4 could not be written: No space left"),
        writing(_plan(), tmp_path / "v.mp4", RATE) as muxer,
    ):
        for _ in range(3 * mux.QUEUE):
            muxer.frames(_pictures()[:1])
    assert not _encoders() and not list(tmp_path.iterdir())


def test_a_file_tells_names_not_folders(tmp_path: Path) -> None:
    loras = (("/srv/loras/style.safetensors", 0.5), ("mine/other.safetensors", 1.0))
    plan = replace(_plan(), image="/srv/ltx2/inputs/abc.png", loras=loras)
    with writing(plan, tmp_path / "v.mp4", None) as muxer:
        muxer.frames(_pictures())
    assert b"/srv" not in (tmp_path / "v.mp4").read_bytes()
    told = read_plan(tmp_path / "v.mp4")
    assert told == replace(plan, image="abc.png", loras=(("style.safetensors", 0.5), loras[1]))


def test_a_lane_keeps_order_bounds_what_waits_and_stops() -> None:
    done: list[int] = []
    gate = threading.Event()
    lane = Lane(2)
    lane.put(lambda: (gate.wait(10), done.append(0))[1])
    adder = threading.Thread(target=lambda: [lane.put(lambda n=n: done.append(n)) for n in range(1, 6)])
    adder.start()
    time.sleep(0.1)
    assert adder.is_alive() and not done
    gate.set()
    adder.join(10)
    lane.close()
    assert done == [0, 1, 2, 3, 4, 5]
    lane.stop()
    held = Lane(2)
    held.put(lambda: gate.wait(10))
    held.stop()
    assert not held.thread.is_alive()
