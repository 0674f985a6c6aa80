"""Recorded evaluations, with a recorder that replays as a GPU does: the same work on the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_flatten

from ltx2.models.fast import Stage, Twin
from ltx2.models.fast.graphs import Graphs
from ltx2.models.small import small
from ltx2.models.velocity import Perturbation, velocities
from tests.data_files import largest_difference
from tests.models.fast.test_forward import _random_streams


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


@pytest.mark.gpu
@torch.inference_mode()
def test_graphs_replay_exactly_what_runs_without_them() -> None:
    transformer = small("2.3", dtype=torch.bfloat16, device="cuda").networks["transformer"]
    video, audio = _random_streams(transformer, 2, True)
    sides = []
    for side in (video, audio):
        on_device = {key: value.cuda() for key, value in vars(side).items() if value is not None}
        on_device |= {"latent": on_device["latent"].bfloat16(), "context": on_device["context"].bfloat16()}
        sides.append(replace(side, **on_device))
    stage = Stage(Twin(transformer))
    runs = [stage(sides[0], sides[1], STG) for _ in range(4)]
    for run in runs[1:]:
        for pair, first in zip(run, runs[0], strict=True):
            assert all(torch.equal(one, other) for one, other in zip(pair, first, strict=True))
    assert stage.twin.graphs and len(stage.twin.graphs.recorded) == 1
