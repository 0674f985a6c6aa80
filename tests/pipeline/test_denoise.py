"""How far the denoising loop lets the host run ahead of a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ltx2.pipeline.denoise import _Pace, denoise
from ltx2.pipeline.latents import start
from ltx2.spec.lossy import Extras
from tests.pipeline.test_caching import EVEN, Toy, scene_of, stage_of


class Stream:
    """A CUDA stream that only writes down what is asked of it."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.count = 0

    def record_event(self) -> Any:
        self.count += 1
        return Event(self.told, self.count)


class Event:
    def __init__(self, told: list[str], number: int):
        self.told, self.number = told, number
        told.append(f"given {number}")

    def synchronize(self) -> None:
        self.told.append(f"done {self.number}")


def test_the_host_is_one_evaluation_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    pace = _Pace(torch.device("cuda", 0))
    for _ in range(3):
        pace.wait()
    assert stream.told == ["given 1", "given 2", "done 1", "given 3", "done 2"]


def test_on_a_cpu_there_is_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: pytest.fail("there is none"))
    _Pace(torch.device("cpu")).wait()


@pytest.mark.gpu
def test_a_counted_evaluation_is_at_most_the_one_that_the_gpu_is_at() -> None:
    """Each evaluation sleeps for a tenth of a second or so, which takes no time to launch."""
    done: list[Any] = []

    class Slow(Toy):
        def __call__(self, *given: Any) -> Any:
            torch.cuda._sleep(200_000_000)
            result = [(torch.zeros_like(given[0].latent), torch.zeros_like(given[1].latent))]
            done.append(torch.cuda.current_stream().record_event())
            return result

    draw = torch.ones(1, 2, 3, device="cuda")
    states = (start(draw * 0, 1.0, draw), start(draw * 0, 1.0, draw))
    at_work = 0
    for count in denoise(Slow(lambda _: 0.0), stage_of(Extras()), states, scene_of("cuda"), lambda _kind: ()):
        assert all(event.query() for event in done[: count.done - 1]), "what was counted before is done"
        at_work += not done[-1].query()
    assert at_work >= len(EVEN) - 3, "and the GPU does not wait for the host"
