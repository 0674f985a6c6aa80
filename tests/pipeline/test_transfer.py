"""What leaves the device: whole, beside its work, and waited for by those who need it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from ltx2.pipeline.mux import writing
from ltx2.pipeline.transfer import Arriving, to_host
from ltx2.spec.errors import InvalidOutput
from tests.pipeline.test_mux import RATE, _encoders, _pictures, _plan, _wave


class Gate:
    """An event of a GPU that is played: whoever waits for it waits until the gate opens."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def synchronize(self) -> None:
        assert self.opened.wait(10), "nobody opened the gate"


def test_on_a_cpu_values_are_there() -> None:
    values = torch.arange(4)
    assert to_host(values).arrived() is values
    assert to_host(values, lambda one: one * 2).arrived().tolist() == [0, 2, 4, 6]


def test_only_the_encoders_wait_for_what_is_on_its_way(tmp_path: Path) -> None:
    with writing(_plan(), tmp_path / "plain.mp4", RATE) as muxer:
        muxer.sound(_wave())
        muxer.frames(_pictures())
    gate = Gate()
    pictures, wave = torch.zeros(25, 128, 128, 3, dtype=torch.uint8), torch.zeros(2, 2 * RATE)
    with writing(_plan(), tmp_path / "waited.mp4", RATE) as muxer:
        muxer.frames(Arriving(pictures, gate, lambda one: one))
        muxer.sound(Arriving(wave, gate, lambda one: one))
        assert muxer.count == 25
        # They arrive only now.
        pictures.copy_(torch.from_numpy(_pictures()))
        wave.copy_(torch.from_numpy(_wave()))
        gate.opened.set()
    assert (tmp_path / "waited.mp4").read_bytes() == (tmp_path / "plain.mp4").read_bytes()


def test_what_is_wrong_with_what_arrives_leaves_no_file(tmp_path: Path) -> None:
    def refuse(_: torch.Tensor) -> torch.Tensor:
        raise InvalidOutput("not finite")

    with pytest.raises(InvalidOutput, match="not finite"), writing(_plan(), tmp_path / "v.mp4", RATE) as muxer:
        muxer.sound(to_host(torch.zeros(2, RATE), refuse))
        muxer.frames(np.zeros((25, 128, 128, 3), np.uint8))
    assert not _encoders() and not list(tmp_path.iterdir())


@pytest.mark.gpu
def test_chunks_arrive_whole_while_the_gpu_makes_the_next_ones() -> None:
    """Each is the last of much work on memory that is given away at once, so a copy that came early or late would show."""
    leaving: list[Arriving] = []
    for number in range(12):
        values = torch.zeros(16, 1 << 20, device="cuda")
        for _ in range(50):
            values = values + 1
        leaving.append(to_host((values + number).to(torch.uint8)))
    with ThreadPoolExecutor(1) as other:
        for number, chunk in enumerate(other.map(Arriving.arrived, leaving)):
            assert chunk.is_pinned() and bool((chunk == 50 + number).all())
