"""Recorded evaluations, with a recorder that replays as a GPU does: the same work on the same tensors."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from ltx2.models import encoder
from ltx2.models.fast import Stage, Twin, graphs, passes, slow_paths
from ltx2.models.fast.graphs import CudaRecorder, Graphs
from ltx2.models.fast.stage import given
from ltx2.models.holding import quantise_network
from ltx2.models.precision import fp8_linears, use_calibration
from ltx2.models.small import small
from ltx2.models.velocity import Perturbation, Stream, velocities
from tests.data_files import largest_difference
from tests.models.fast.host import Apart
from tests.models.fast.test_forward import _random_streams, _small


class FakeRecorder:
    """Keeps the work, and on replay does it again into the tensors of the first result, as a CUDA graph would."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.recorded += 1
        result = work()
        # Recording computes nothing: whoever reads the result before a replay gets nonsense.
        for leaf in tree_flatten(result)[0]:
            leaf.fill_(float("nan"))

        def replay() -> None:
            self.replayed += 1
            for into, value in zip(tree_flatten(result)[0], tree_flatten(work())[0], strict=True):
                into.copy_(value)

        return result, replay


class Someone:
    """Owns what stays the same."""

    def __init__(self) -> None:
        self.forgot = 0

    def forget(self) -> None:
        self.forgot += 1


STG = (Perturbation((1,), (1,)), Perturbation(isolated=True))


@pytest.mark.parametrize("version", ["2.0", "2.3"])
@pytest.mark.parametrize("levels", [False, True], ids=["uniform", "first frame given"])
@torch.inference_mode()
def test_replays_follow_latents_sigma_text_and_stage(version: str, levels: bool) -> None:
    transformer = small(version).networks["transformer"]
    recorder = FakeRecorder()
    twin = Twin(transformer, graphs=Graphs(recorder))
    runs = 0
    for seed in range(3):
        video, audio = _random_streams(transformer, 2, levels, seed)
        stage = Stage(twin)
        for step in range(4):
            share = 1 - step / 5
            now = [
                replace(side, latent=side.latent * share, timesteps=side.timesteps * share, sigma=side.sigma * share)
                for side in (video, audio)
            ]
            made = stage(now[0], now[1], STG)
            for pair, expected in zip(made, velocities(transformer, now[0], now[1], STG), strict=True):
                for ours, slow in zip(pair, expected, strict=True):
                    assert largest_difference(ours, slow) <= 2e-5
            runs += 1
    # The first evaluation ran as it is; all others were replays of one recording.
    assert (recorder.recorded, recorder.replayed) == (1, runs - 1)


@torch.inference_mode()
def test_results_outlive_the_next_replay() -> None:
    recorder = FakeRecorder()
    graphs = Graphs(recorder)
    owner = Someone()
    results = [
        graphs.run("k", lambda x, y: [x + y], torch.full((2,), float(n)), torch.ones(2), owner) for n in range(4)
    ]
    assert [float(result[0][0]) for result in results] == [1, 2, 3, 4]


@torch.inference_mode()
def test_what_stays_the_same_is_copied_for_a_new_owner_only() -> None:
    graphs = Graphs(FakeRecorder())

    def run(fixed: float, owner: Someone) -> float:
        return float(graphs.run("k", lambda x, y: x * y, torch.tensor(2.0), torch.tensor(fixed), owner))

    first, second = Someone(), Someone()
    assert [run(3.0, first) for _ in range(3)] == [6, 6, 6]
    assert run(5.0, second) == 10
    assert (first.forgot, second.forgot) == (1, 0)
    assert run(3.0, first) == 6


@torch.inference_mode()
def test_two_stages_may_take_turns() -> None:
    transformer = small("2.0").networks["transformer"]
    recorder = FakeRecorder()
    twin = Twin(transformer, graphs=Graphs(recorder))
    stages = [(Stage(twin), _random_streams(transformer, 2, False, seed)) for seed in range(2)]
    for turn in range(3):
        for stage, (video, audio) in stages:
            [(ours, _)] = stage(video, audio)
            [(slow, _)] = velocities(transformer, video, audio)
            assert largest_difference(ours, slow) <= 2e-5, turn
    assert (recorder.recorded, recorder.replayed) == (1, 5)


@torch.inference_mode()
def test_the_number_of_recordings_is_bounded() -> None:
    recorder = FakeRecorder()
    graphs, owner = Graphs(recorder, limit=2), Someone()
    for key in (0, 1, 2, 0):
        for _ in range(3):
            assert float(graphs.run(key, lambda x, y: x + y, torch.tensor(1.0), torch.tensor(1.0), owner)) == 2
        assert len(graphs.recorded) <= 2
    assert recorder.recorded == 4


@torch.inference_mode()
def test_what_cannot_be_recorded_runs_as_it_is_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    def refuses(_work: Callable[[], Any]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = Graphs(refuses)
    results = [
        float(graphs.run("k", lambda x, y: x + y, torch.tensor(float(n)), torch.tensor(1.0), Someone()))
        for n in range(5)
    ]
    assert results == [1, 2, 3, 4, 5]
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "not permitted" in caplog.text


@torch.inference_mode()
def test_a_video_says_that_its_passes_could_not_be_recorded() -> None:
    def refuses(_work: Callable[[], Any]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    networks = small("2.0").networks
    stage = passes(networks["transformer"])
    assert isinstance(stage, Stage)
    stage.twin.graphs = Graphs(refuses)
    streams, cpu = _random_streams(networks["transformer"], 1, False), torch.device("cpu")
    for said in ((), ("the transformer ran without a CUDA graph: operation not permitted when stream is capturing",)):
        stage(*streams)
        assert slow_paths(networks["transformer"], networks["vae"], cpu) == said


@torch.inference_mode()
def test_a_recording_that_runs_out_of_memory_is_no_refusal() -> None:
    def runs_out(_work: Callable[[], Any]) -> Any:
        raise torch.OutOfMemoryError("no more")

    graphs = Graphs(runs_out)

    def run() -> Any:
        return graphs.run("k", lambda x, y: x + y, torch.tensor(1.0), torch.tensor(1.0), Someone())

    run()
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            run()


def _to(stream: Stream, device: str, dtype: torch.dtype = torch.float32) -> Stream:
    """The stream there, one row expanded where it is one row here: copied, it would be rows that differ."""
    moved: dict[str, torch.Tensor] = {}
    for name, value in vars(stream).items():
        if value is not None:
            there = (value[:1] if value.stride(0) == 0 else value).to(device)
            moved[name] = (there.to(dtype) if name in ("latent", "context") else there).expand(value.shape)
    return replace(stream, **moved)


@pytest.mark.parametrize("version", ["2.0", "2.3", "2.5"])
@pytest.mark.parametrize("how", ["bf16", "fp8", "fp8 attention"])
@torch.inference_mode()
def test_what_is_recorded_asks_nothing_of_the_host(version: str, how: str) -> None:
    transformer = copy.deepcopy(_small(version)).to(torch.bfloat16)
    if how == "fp8":
        quantise_network(transformer, "fp8")
        for _, layer in fp8_linears(transformer):
            layer.input_scale = nn.Parameter(torch.tensor(0.01), requires_grad=False)
        assert use_calibration(transformer), "which counts what it clamps"
    video, audio = _random_streams(transformer, 2, True)
    sides = [
        _to(replace(side, positions=side.positions[:1].expand_as(side.positions)), "meta", torch.bfloat16)
        for side in (video, audio)
    ]
    transformer.to("meta")
    forward = Twin(transformer, fp8_from=1 if how == "fp8 attention" else None).forward
    constant, now = forward.constant(sides[0], sides[1]), given(sides[0], sides[1])
    with Apart() as apart:
        [plain, *_] = forward.evaluate(now, constant, STG)
    assert apart.done > 300 and not apart.touched
    assert [one.shape for one in plain] == [side.latent.shape for side in sides]


class FakeCuda:
    """What a recorder uses of torch.cuda, with the habits of torch 2.11: one current stream for each device, and a
    recording that breaks so that it cannot be ended leaves the stream, and the pool, as they were in it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.device_now, self.streams, self.pools = 0, {0: "default 0", 1: "default 1"}, 0
        self.open: list[Any] = []
        self.held: list[Any] = []
        self.recorded_on: list[tuple[int, str]] = []
        self.breaks = False
        for name in ("device", "current_device", "current_stream", "set_stream", "graph_pool_handle", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", type("Graph", (), {"replay": lambda _self: None}))
        monkeypatch.setattr(graphs, "_stream", lambda number: f"recording {number}")
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda _device, pool: self.held.remove(pool), raising=False)

    @contextmanager
    def device(self, device: torch.device | str) -> Iterator[None]:
        before, self.device_now = self.device_now, torch.device(device).index or 0
        try:
            yield
        finally:
            self.device_now = before

    def current_device(self) -> int:
        return self.device_now

    def current_stream(self) -> str:
        return self.streams[self.device_now]

    def set_stream(self, stream: str) -> None:
        self.device_now = int(stream.split()[1])
        self.streams[self.device_now] = stream

    def graph_pool_handle(self) -> tuple[int, int]:
        self.pools += 1
        return 0, self.pools

    @contextmanager
    def graph(self, _graph: Any, pool: Any, stream: str) -> Iterator[None]:
        before = self.current_stream()
        self.set_stream(stream)
        if pool in self.open:
            raise RuntimeError("already recording to mempool_id")
        self.open.append(pool)
        self.held.append(pool)
        self.recorded_on.append((self.device_now, self.current_stream()))
        try:
            yield
        finally:
            if self.breaks:
                raise RuntimeError("operation failed due to a previous error during capture")
            self.open.remove(pool)
            self.set_stream(before)

    def end(self, _device: int, pool: Any) -> None:
        if pool not in self.open:
            raise RuntimeError("not currently recording to mempool_id")
        self.open.remove(pool)


@pytest.mark.parametrize("number", [0, 1])
def test_a_recording_is_made_on_the_gpu_of_its_tensors(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """On another one nothing would be recorded, and every replay would give the first results."""
    cuda = FakeCuda(monkeypatch)
    recorder = CudaRecorder(torch.device("cuda", number))
    assert recorder(lambda: 7)[0] == 7
    assert cuda.recorded_on == [(number, f"recording {number}")]
    assert (cuda.device_now, cuda.streams[number]) == (0, f"default {number}"), "and then all is as it was"
    assert encoder._Text(torch.device("cuda", number)).recorder.device == torch.device("cuda", number)


def test_a_recording_that_breaks_leaves_stream_and_pool_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cuda = FakeCuda(monkeypatch)
    kept = Graphs(CudaRecorder(torch.device("cuda", 1)))

    def work(_x: Any, _y: Any) -> torch.Tensor:
        if cuda.breaks and cuda.streams[1] == "recording 1":
            raise RuntimeError("not permitted when stream is capturing")
        return torch.ones(1)

    def run(key: str) -> float:
        return float(kept.run(key, work, torch.ones(1), torch.ones(1), owner))

    owner = Someone()
    assert [run("first") for _ in range(3)] == [1, 1, 1] and cuda.held == [(0, 1)]
    cuda.breaks = True
    assert [run("second") for _ in range(3)] == [1, 1, 1]
    assert "previous error during capture; before that: not permitted" in caplog.text
    assert cuda.streams[1] == "default 1" and cuda.device_now == 0 and not cuda.open
    assert cuda.held == [(0, 1)], "the pool of the first graph stays, what the second one took of it is given back"
    cuda.breaks = False
    assert [run("third") for _ in range(3)] == [1, 1, 1] and len(kept.recorded) == 2


def test_a_recording_that_breaks_for_lack_of_memory_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    kept, owner = Graphs(CudaRecorder()), Someone()

    def work(_x: Any, _y: Any) -> torch.Tensor:
        if cuda.breaks:
            raise torch.OutOfMemoryError("no more")
        return torch.ones(1)

    kept.run("k", work, torch.ones(1), torch.ones(1), owner)
    cuda.breaks = True
    with pytest.raises(torch.OutOfMemoryError, match="no more"):
        kept.run("k", work, torch.ones(1), torch.ones(1), owner)
    assert not kept.refused


@pytest.mark.gpu
@pytest.mark.parametrize("number", [0, 1])
@torch.inference_mode()
def test_graphs_replay_exactly_what_runs_without_them(number: int) -> None:
    if number >= torch.cuda.device_count():
        pytest.skip("there is one GPU")
    # Also on one that is not the current one.
    device = f"cuda:{number}"
    transformer = small("2.3", dtype=torch.bfloat16, device=device).networks["transformer"]
    stage = Stage(Twin(transformer))
    for seed in range(2):
        sides = [_to(side, device, torch.bfloat16) for side in _random_streams(transformer, 2, True, seed)]
        stage.forget()
        recorded, stage.twin.graphs = stage.twin.graphs, None
        plain = stage(sides[0], sides[1], STG)
        stage.twin.graphs = recorded
        stage = Stage(stage.twin)
        for run in [stage(sides[0], sides[1], STG) for _ in range(4)]:
            for pair, first in zip(run, plain, strict=True):
                assert all(torch.equal(one, other) for one, other in zip(pair, first, strict=True))
    assert stage.twin.graphs and len(stage.twin.graphs.recorded) == 1


@pytest.mark.gpu
@torch.inference_mode()
def test_a_recording_that_breaks_on_a_gpu_leaves_stream_and_memory(caplog: pytest.LogCaptureFixture) -> None:
    kept, owner, room = Graphs(CudaRecorder()), Someone(), 2**28
    x, fixed = torch.ones(room // 4, device="cuda"), torch.ones(1, device="cuda")

    def work(x: torch.Tensor, y: torch.Tensor, waits: bool) -> torch.Tensor:
        total = (x + y).sum()
        if waits and torch.cuda.is_current_stream_capturing():
            total.item()
        return total

    def run(key: str) -> float:
        return float(kept.run(key, lambda x, y: work(x, y, key == "waits"), x, fixed, owner))

    wanted = run("before")
    torch.cuda.empty_cache()
    before, stream = torch.cuda.memory_reserved(), torch.cuda.current_stream()
    assert [run("waits") for _ in range(3)] == [wanted] * 3 and list(kept.refused) == ["waits"]
    assert caplog.text.count("cannot be recorded") == 1
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.current_stream() == stream
    assert torch.cuda.memory_reserved() - before < room // 4, "nothing of it is held"
    assert [run("after") for _ in range(3)] == [wanted] * 3 and "after" in kept.recorded
