"""The embedded model in a child process, struck at every moment: the next job succeeds, and memory is where it was.

Those marked `gpu` need a device that can run out, be asserted on, and be left in a broken state.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ltx2.engine.process import Limits, ProcessEngine
from ltx2.models.describe import Source, read_card
from ltx2.spec.errors import OutOfMemory, WorkerCrashed
from ltx2.spec.events import Event, Finished, Progress, Retrying
from ltx2.spec.plan import Plan, resolve
from ltx2.spec.request import request
from tests.engine.children import HERE

MIB = 1 << 20
# Of the whole device: other processes of it come and go.
SLACK = 64 * MIB


class Bench:
    """A device with an engine on it, the file of orders, and what stood between jobs."""

    def __init__(self, device: str, folder: Path):
        self.device = device
        self.folder, self.orders, self.floors = folder, folder / "orders", folder / "floors"
        options = {"device": device, "orders": str(self.orders), "floors": str(self.floors)}
        limits = Limits(start=300.0, rest=0.1, kill=2.0)
        self.engine = ProcessEngine(options, "tests.engine.faulty_device:make", limits, HERE)
        wish = request(prompt="a red ball", preset="dev", steps=2, seed=5, width=64, height=64, frames=9)
        self.plan: Plan = resolve(wish, read_card(Source("tiny")))
        self.good = self.make()

    def events(self) -> Any:
        return self.engine(self.plan, self.folder / "clip.mp4")

    def make(self) -> bytes:
        """A job without faults; what it made."""
        self.orders.unlink(missing_ok=True)
        events: list[Event] = list(self.events())
        assert isinstance(events[-1], Finished)
        clip = self.folder / "clip.mp4"
        made = clip.read_bytes()
        clip.unlink()
        return made

    def floor(self) -> dict[str, int]:
        return json.loads(self.floors.read_text().splitlines()[-1])

    def warm(self) -> None:
        """Have this process make a job before the floor is read, so that the fast path keeps what it keeps; a CPU has no
        floor."""
        if self.device != "cpu":
            self.make()

    def strike(self, order: str) -> list[Event]:
        """A job with a fault."""
        self.warm()
        self.orders.write_text(order)
        return list(self.events())

    def check(self, same_process: bool) -> None:
        """The next job makes the same video, and the floor is where it was before."""
        before = self.floor()
        assert not (self.folder / "clip.mp4").exists() and not list(self.folder.glob(".*.part.mp4"))
        assert self.make() == self.good
        self.warm()
        after = self.floor()
        assert (after["pid"] == before["pid"]) == same_process
        # Weights that went to the CPU and back lie in blocks of other sizes.
        assert abs(after["allocated"] - before["allocated"]) < MIB
        assert abs(after["free"] - before["free"]) < SLACK


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(request.param, tmp_path_factory.mktemp("bench"))
    yield bench
    bench.engine.close()


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench("cuda", tmp_path_factory.mktemp("cuda"))
    yield bench
    bench.engine.close()


def test_b9_one_seed_makes_one_video_also_in_another_process(bench: Bench, tmp_path: Path) -> None:
    assert bench.make() == bench.good
    if bench.device != "cpu":
        other = Bench(bench.device, tmp_path)
        other.engine.close()
        assert other.good == bench.good


@pytest.mark.gpu
def test_b9_one_seed_makes_one_video_also_on_another_gpu(cuda: Bench, tmp_path: Path) -> None:
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    other = Bench("cuda:1", tmp_path)
    try:
        assert other.good == cuda.good == other.make()
    finally:
        other.engine.close()


@pytest.mark.parametrize("phase", ["stage 1", pytest.param("decode", marks=pytest.mark.gpu)])
def test_e2_a_child_that_is_killed_is_a_crash_and_the_next_makes_the_same_video(bench: Bench, phase: str) -> None:
    with pytest.raises(WorkerCrashed):
        bench.strike(f"kill {phase}")
    # The half-made file of a killed process goes with its draft folder; here there is none.
    for part in bench.folder.glob(".*.part.mp4"):
        part.unlink()
    bench.check(same_process=False)


@pytest.mark.parametrize(
    "phase",
    ["stage 1", "decode", *(pytest.param(phase, marks=pytest.mark.gpu) for phase in ("text", "sound", "write"))],
)
def test_d5_a_cancel_in_any_phase_leaves_nothing_and_a_warm_child(bench: Bench, phase: str) -> None:
    bench.warm()
    bench.orders.unlink(missing_ok=True)
    events = bench.events()
    assert next(event for event in events if isinstance(event, Progress) and event.phase == phase)
    events.close()
    (bench.folder / "clip.mp4").unlink(missing_ok=True)
    bench.check(same_process=True)


@pytest.mark.gpu
def test_e4_a_balloon_that_gives_way_lets_the_frugal_try_succeed(cuda: Bench) -> None:
    events = cuda.strike("balloon text")
    assert any(isinstance(event, Retrying) for event in events) and isinstance(events[-1], Finished)
    (cuda.folder / "clip.mp4").unlink()
    cuda.check(same_process=True)


@pytest.mark.gpu
def test_e4_a_balloon_that_stays_is_out_of_memory_and_the_next_job_works(cuda: Bench) -> None:
    with pytest.raises(OutOfMemory):
        cuda.strike("stay text")
    cuda.check(same_process=True)


@pytest.mark.gpu
def test_e5_a_failed_device_assertion_ends_the_process(cuda: Bench) -> None:
    with pytest.raises(WorkerCrashed, match="the device was lost"):
        cuda.strike("assert stage 1")
    cuda.check(same_process=False)


@pytest.mark.gpu
def test_e11_a_killed_child_gives_its_memory_back(cuda: Bench) -> None:
    import torch

    cuda.make()
    before = torch.cuda.mem_get_info()[0]
    for _ in range(3):
        with pytest.raises(WorkerCrashed):
            cuda.strike("kill stage 1")
        for part in cuda.folder.glob(".*.part.mp4"):
            part.unlink()
        cuda.make()
    assert abs(torch.cuda.mem_get_info()[0] - before) < SLACK
