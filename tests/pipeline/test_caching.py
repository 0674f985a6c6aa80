"""Step caching and partial guidance in the loop: toy denoisers with known answers, then whole videos."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ltx2.pipeline.denoise as denoise_module
from ltx2.engine.engine import Engine
from ltx2.engine.messages import Done, finished_of, report_of
from ltx2.models.small import small
from ltx2.models.velocity import Perturbation, Stream
from ltx2.pipeline.caching import Velocities
from ltx2.pipeline.denoise import Count, Scene, denoise
from ltx2.pipeline.latents import State, start
from ltx2.pipeline.mux import read_plan
from ltx2.pipeline.sampling import euler
from ltx2.pipeline.text import Context
from ltx2.spec.events import Finished, Progress
from ltx2.spec.lossy import Extras
from ltx2.spec.plan import UNGUIDED, Guidance, Plan, Stage, resolve
from ltx2.spec.request import request

EVEN = tuple(1 - step / 10 for step in range(11))
CFG = Guidance(3.0, 0.0, 1.0, 0.0, ())
Field = Callable[[float], float]


class Toy:
    """Guidance passes whose velocity depends on sigma alone; remembers what was asked."""

    def __init__(self, video: Field, audio: Field = lambda sigma: 0.0):
        self.fields = (video, audio)
        self.sigmas: list[float] = []
        self.rows: list[int] = []

    def __call__(self, video: Stream, audio: Stream, weak: Sequence[Perturbation]) -> list[tuple[Tensor, Tensor]]:
        sigma = video.sigma[0].item()
        self.sigmas.append(sigma)
        self.rows.append(len(video.latent))
        sides = tuple(
            torch.full_like(stream.latent, field(sigma))
            for stream, field in zip((video, audio), self.fields, strict=True)
        )
        # The unconditional row stands still.
        for side in sides:
            side[1:] = 0
        return [(sides[0], sides[1])] * (1 + len(weak))


def stage_of(extras: Extras, guidance: Guidance = UNGUIDED, sigmas: tuple[float, ...] = EVEN) -> Stage:
    return Stage(32, 32, sigmas, "euler", guidance, guidance, 0.0, extras)


def scene_of(device: str) -> Scene:
    video, audio, words = (torch.zeros(1, *shape, device=device) for shape in ((3, 2, 2), (1, 2, 2), (1, 4)))
    text = Context(words, words)
    return Scene(video, audio, text, text)


def run(toy: Any, stage: Stage, states: tuple[State, State] | None = None) -> tuple[list[Count], tuple[Tensor, ...]]:
    """All counts, and the final latents."""
    draw = torch.ones(1, 2, 3)
    states = states or (start(torch.zeros(1, 2, 3), 1.0, draw), start(torch.zeros(1, 2, 3), 1.0, draw))
    counts: list[Count] = []
    running = denoise(toy, stage, states, scene_of("cpu"), lambda _kind: ())
    while True:
        try:
            counts.append(next(running))
        except StopIteration as finished:
            return counts, finished.value


def computed(toy: Toy, steps: int = 10) -> str:
    """Which steps were computed, as a picture."""
    return "".join("#" if any(abs(s - (1 - n / steps)) < 1e-6 for s in toy.sigmas) else "." for n in range(steps))


def test_a_velocity_that_does_not_change_is_computed_at_the_beginning_and_at_the_end_only() -> None:
    toy = Toy(lambda sigma: 1.5)
    counts, latents = run(toy, stage_of(Extras(cache=0.01)))
    assert computed(toy) == "###......#"
    assert [count.done for count in counts] == list(range(1, 11)), "progress goes on"
    assert [count.skipped for count in counts] == [0, 0, 0, 1, 2, 3, 4, 5, 6, 6]
    assert torch.allclose(latents[0], torch.full((1, 2, 3), 1 - 1.5), atol=1e-6)


def test_steps_are_skipped_while_the_change_adds_up_to_less_and_a_straight_line_is_hit() -> None:
    # A hundredth of the velocity a step: two steps stay below 0.025, the third would not.
    toy, plain = Toy(lambda sigma: 1 + 0.1 * sigma), Toy(lambda sigma: 1 + 0.1 * sigma)
    _, skipping = run(toy, stage_of(Extras(cache=0.025)))
    _, whole = run(plain, stage_of(Extras()))
    assert computed(toy) == "###..#..##" and computed(plain) == "#" * 10
    assert torch.allclose(skipping[0], whole[0], atol=1e-6), "the line through two velocities is the field itself"


def test_the_modality_that_changes_more_decides() -> None:
    toy = Toy(lambda sigma: 1.0, lambda sigma: 1 + 0.1 * sigma)
    run(toy, stage_of(Extras(cache=0.025)))
    assert computed(toy) == "###..#..##"


def test_fast_changes_skip_nothing() -> None:
    toy = Toy(lambda sigma: 1 + sigma)
    counts, latents = run(toy, stage_of(Extras(cache=0.025)))
    assert computed(toy) == "#" * 10 and counts[-1] == (10, 0)
    _, whole = run(Toy(lambda sigma: 1 + sigma), stage_of(Extras()))
    assert torch.equal(latents[0], whole[0]), "watching changes nothing"


def test_values_that_are_not_finite_are_computed() -> None:
    seen = Velocities(0.5)
    for sigma in (1.0, 0.9):
        seen.learn((torch.ones(1), torch.ones(1)), sigma, (torch.zeros(1), torch.zeros(1)))
    assert seen.guess((torch.ones(1), torch.ones(1)), 0.8) is not None
    assert seen.guess((torch.ones(1), torch.tensor([float("nan")])), 0.8) is None


def test_given_tokens_stay_as_they_are() -> None:
    given = torch.full((1, 1, 3), 0.25, dtype=torch.bfloat16)
    clean = torch.zeros(1, 2, 3, dtype=torch.bfloat16)
    draw = torch.ones(1, 2, 3)
    states = (start(clean, 1.0, draw, given), start(clean, 1.0, draw))
    toy = Toy(lambda sigma: 1 + 0.1 * sigma)
    counts, latents = run(toy, stage_of(Extras(cache=0.025)), states)
    assert counts[-1].skipped == 4
    assert torch.equal(latents[0][:, :1], given) and not torch.equal(latents[0][:, 1:], given)


def test_guidance_runs_in_its_interval_only() -> None:
    toy = Toy(lambda sigma: 1.0)
    _, latents = run(toy, stage_of(Extras((0.2, 0.5)), CFG))
    assert toy.rows == [1, 1, 2, 2, 2, 1, 1, 1, 1, 1]
    # The unconditional velocity is 0, so that guidance triples it: three steps of 0.3 and seven of 0.1.
    assert torch.allclose(latents[0], torch.full((1, 2, 3), 1 - 3 * 0.3 - 7 * 0.1), atol=1e-6)


def test_a_guided_velocity_is_not_carried_into_plain_steps() -> None:
    toy = Toy(lambda sigma: 1.0)
    _, latents = run(toy, stage_of(Extras((0.0, 0.5), cache=0.1), CFG))
    assert computed(toy) == "###..##..#", "two plain steps are computed before one is skipped"
    assert toy.rows == [2, 2, 2, 1, 1, 1]
    assert torch.allclose(latents[0], torch.full((1, 2, 3), 1 - 5 * 0.3 - 5 * 0.1), atol=1e-6)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(small("2.3"))


def plan_of(engine: Engine, **asked: Any) -> Plan:
    wish = {"prompt": "a cat", "negative_prompt": "dull", "preset": "dev", "steps": 12, "seed": 1}
    return resolve(request(**(wish | {"width": 128, "height": 128, "frames": 9} | asked)), engine.models.card)


def skipping(plan: Plan) -> Plan:
    """The plan with a threshold that no request may have: velocities of random weights change by more than they are."""
    first, *others = plan.stages
    return replace(plan, stages=(replace(first, extras=replace(first.extras, cache=1e3)), *others))


def finish(engine: Engine, plan: Plan, out: Path) -> tuple[Finished, list[Progress]]:
    *events, finished = engine.generate(plan, out)
    assert isinstance(finished, Finished)
    return finished, [event for event in events if isinstance(event, Progress) and event.phase == "stage 1"]


def told(path: Path) -> dict[str, Any]:
    with av.open(str(path)) as container:
        return json.loads(container.metadata["comment"])


def test_without_extras_the_loop_is_the_plain_one(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit by bit: the sampler, every evaluation predicted and settled, nothing else."""
    calls: list[tuple[Any, ...]] = []
    predict = denoise_module.predict

    def spy(*arguments: Any) -> tuple[Tensor, Tensor]:
        calls.append((*arguments, predict(*arguments)))
        return calls[-1][-1]

    ends: list[tuple[Tensor, ...]] = []
    stepper = denoise_module.SAMPLERS["euler"]

    def stepping(*arguments: Any) -> Any:
        ends.append((yield from stepper(*arguments)))
        return ends[-1]

    monkeypatch.setattr(denoise_module, "predict", spy)
    monkeypatch.setitem(denoise_module.SAMPLERS, "euler", stepping)
    plan = plan_of(engine)
    finished, steps = finish(engine, plan, tmp_path / "clip.mp4")
    assert finished.skipped == 0 and [step.skipped for step in steps] == [0] * 12
    assert "skipped_steps" not in told(tmp_path / "clip.mp4")
    states = calls[0][3]
    sampling = euler(calls[0][2], plan.stages[0].sigmas, lambda _kind: (), lambda latents: latents)
    next(sampling)
    for _, stage, _, _, _, _, x0s in calls:
        assert stage == plan.stages[0]
        try:
            sampling.send(tuple(state.settle(x0) for state, x0 in zip(states, x0s, strict=True)))
        except StopIteration as ended:
            assert all(torch.equal(one, other) for one, other in zip(ended.value, ends[0], strict=True))
    assert len(calls) == 12


@pytest.mark.parametrize("pictured", [False, True], ids=["text", "first frame"])
def test_a_video_with_skipped_steps_is_made_again_from_its_plan(engine: Engine, pictured: bool, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"guidance_interval": "0:0.8"}
    if pictured:
        asked["image"] = str(tmp_path / "first.png")
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 160, 3), np.uint8)).save(asked["image"])
    plan = skipping(plan_of(engine, **asked))
    first, steps = finish(engine, plan, tmp_path / "a.mp4")
    # The last two of twelve are plain, and too few to be told ahead.
    assert first.skipped == 8 - 1
    assert [step.step for step in steps] == list(range(1, 13)) and steps[-1].skipped == first.skipped
    assert told(tmp_path / "a.mp4")["skipped_steps"] == first.skipped
    again = replace(read_plan(tmp_path / "a.mp4"), image=plan.image)
    assert again == plan
    second, _ = finish(engine, again, tmp_path / "b.mp4")
    assert second.skipped == first.skipped
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_cancelling_at_a_skipped_step_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    plan = skipping(plan_of(engine))
    with closing(engine.generate(plan, tmp_path / "clip.mp4")) as events:
        assert any(isinstance(event, Progress) and event.skipped for event in events)
    assert not list(tmp_path.iterdir())
    finished, _ = finish(engine, plan, tmp_path / "clip.mp4")
    assert finished.skipped > 0


def test_a_wish_without_sound_and_two_stages_can_be_cached(engine: Engine, tmp_path: Path) -> None:
    plan = skipping(plan_of(engine, preset="two-stage", audio=False))
    finished, _ = finish(engine, plan, tmp_path / "clip.mp4")
    assert finished.skipped == 8, "all but the first three and the last of the guided stage, none of the other"


def test_skipped_steps_cross_the_pipe() -> None:
    finished = Finished(Path("x.mp4"), 1, 2.0, 3, {"text": 0.5}, ("w",), 7)
    report = report_of(1, finished)
    assert isinstance(report, Done)
    assert finished_of(report, Path("x.mp4")) == finished
