"""The audio stream in a lane of its own: nothing is read before it is there, and no memory given away too early."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from ltx2.models.fast import Stage, Twin
from ltx2.models.fast.lanes import ONE, lanes_of
from ltx2.models.small import small
from ltx2.models.velocity import Perturbation
from ltx2.pipeline.generate import generate
from ltx2.spec.plan import resolve
from ltx2.spec.request import request
from tests.models.fast.lane_checker import CheckedLanes
from tests.models.fast.test_forward import WEAK, _random_streams, _small
from tests.models.fast.test_graphs import _to

ATTENTION = "aten.scaled_dot_product_attention.default"


def _checked(version: str, lanes: CheckedLanes, weak: tuple[Perturbation, ...] = (), levels: bool = False) -> Any:
    transformer = _small(version)
    video, audio = _random_streams(transformer, 2, levels)
    stage = Stage(Twin(transformer, lanes=lanes))
    # What a stage computes once is made before the lanes part.
    stage(video, audio, weak)
    lanes.breaches.clear()
    lanes.done.clear()
    lanes.met = 0
    with lanes:
        return stage(video, audio, weak)


@pytest.mark.parametrize("version", ["2.0", "2.3", "2.5"])
@pytest.mark.parametrize("weak", ["none", "all", "from the first block"])
@torch.inference_mode()
def test_an_evaluation_has_no_race_and_the_same_result(version: str, weak: str) -> None:
    lanes = CheckedLanes()
    result = _checked(version, lanes, WEAK[weak], levels=True)
    assert not lanes.breaches, lanes.breaches[:3]
    assert lanes.alone() and not lanes.kept, "the evaluation ends with both lanes together, and nothing kept"
    video, audio = _random_streams(_small(version), 2, True)
    plain = Stage(Twin(_small(version), lanes=ONE))(video, audio, WEAK[weak])
    for pair, expected in zip(result, plain, strict=True):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(pair, expected, strict=True))


@torch.inference_mode()
def test_the_audio_layers_really_go_aside() -> None:
    lanes = CheckedLanes()
    _checked("2.0", lanes)
    blocks = len(_small("2.0").transformer_blocks)
    attentions = {lane: lanes.done[lane, ATTENTION] for lane in ("main", "side")}
    # Video and audio each look at themselves, at their text and at the other.
    assert attentions == {"main": 3 * blocks, "side": 3 * blocks}
    assert lanes.met == 1 + blocks + 1 + 1, "at the beginning, in every block, after the last one, at the end"


class _Forgets(CheckedLanes):
    """Lanes with a mistake in them."""

    def __init__(self, what: str):
        super().__init__()
        self.what = what

    def meet(self, *crossing: Any) -> None:
        super().meet(*(() if self.what == "to keep" else crossing))

    def _wait(self, lane: str, other: str) -> None:
        if self.what != f"{lane} to wait":
            super()._wait(lane, other)


@pytest.mark.parametrize(
    ("what", "found"),
    [("main to wait", "does not wait"), ("side to wait", "does not wait"), ("to keep", "still uses")],
)
@torch.inference_mode()
def test_every_mistake_is_found(what: str, found: str) -> None:
    lanes = _Forgets(what)
    _checked("2.3", lanes, WEAK["all"])
    assert any(found in breach for breach in lanes.breaches)


@torch.inference_mode()
def test_what_was_given_aside_is_waited_for_when_something_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    transformer, lanes = _small("2.0"), CheckedLanes()
    video, audio = _random_streams(transformer, 1, False)
    stage = Stage(Twin(transformer, lanes=lanes))
    stage(video, audio)

    def fails(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no more")

    # Of the second block's video, when its audio has work under way.
    monkeypatch.setattr(stage.twin.forward.blocks[1].video, "feed", fails)
    with lanes, pytest.raises(torch.OutOfMemoryError):
        stage(video, audio)
    assert lanes.alone() and not lanes.kept


def test_a_cpu_has_one_lane() -> None:
    assert lanes_of(torch.device("cpu")) is ONE


def _on_gpu(version: str) -> tuple[Any, list[Any]]:
    transformer = small(version, dtype=torch.bfloat16, device="cuda").networks["transformer"]
    sides = [_to(side, "cuda", torch.bfloat16) for side in _random_streams(transformer, 2, True)]
    return transformer, sides


@pytest.mark.gpu
@pytest.mark.parametrize("version", ["2.0", "2.3"])
@pytest.mark.parametrize("graphs", [True, False])
@torch.inference_mode()
def test_two_cuda_streams_give_the_bytes_of_one_every_time(version: str, graphs: bool) -> None:
    transformer, sides = _on_gpu(version)
    weak = WEAK["all"]
    expected = None
    for lanes in (ONE, lanes_of(torch.device("cuda"))):
        stage = Stage(Twin(transformer, lanes=lanes))
        if not graphs:
            stage.twin.graphs = None
        for _ in range(20):
            result = [tensor for pair in stage(*sides, weak) for tensor in pair]
            expected = expected or [tensor.clone() for tensor in result]
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(result, expected, strict=True))
        assert not graphs or (stage.twin.graphs and len(stage.twin.graphs.recorded) == 1)


@pytest.mark.gpu
@torch.inference_mode()
def test_a_failed_evaluation_leaves_no_work_and_no_memory_behind() -> None:
    transformer, sides = _on_gpu("2.0")
    stage = Stage(Twin(transformer, lanes=lanes_of(torch.device("cuda"))))
    stage.twin.graphs = None
    expected = stage(*sides)[0][0].clone()
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    block, feed = stage.twin.forward.blocks[1].video, stage.twin.forward.blocks[1].video.feed

    def fails(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no more")

    block.feed = fails
    with pytest.raises(torch.OutOfMemoryError):
        stage(*sides)
    block.feed = feed
    gc.collect()
    assert torch.cuda.memory_allocated() == before
    assert torch.equal(stage(*sides)[0][0], expected)


@pytest.mark.gpu
def test_a_cancelled_video_leaves_no_memory_behind(tmp_path: Path) -> None:
    models = small("2.0", dtype=torch.bfloat16, device="cuda")
    plan = resolve(
        request(prompt="a cat", preset="classic", steps=4, width=128, height=128, frames=9, seed=1), models.card
    )
    out = tmp_path / "v.mp4"

    def held() -> int:
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    # The first evaluation runs as it is, the second is recorded, and what both need stays with the transformer.
    for _ in generate(models, plan, out):
        pass
    before, wanted = held(), out.read_bytes()
    for evaluations in (1, 2, 3):
        run = generate(models, plan, out)
        for progress in run:
            if progress.phase == "stage 1" and progress.step == evaluations:
                break
        run.close()
        assert held() == before
    for _ in generate(models, plan, out):
        pass
    assert out.read_bytes() == wanted and held() == before
