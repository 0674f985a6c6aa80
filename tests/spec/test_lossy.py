"""Lossy extras: off unless asked for, in the plan, counted by what runs, and refused where they do nothing or harm."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ltx2.spec.card import Card
from ltx2.spec.cost import need
from ltx2.spec.errors import RefusedRequest
from ltx2.spec.lossy import NO_EXTRAS, Extras
from ltx2.spec.plan import Plan, Stage, resolve
from ltx2.spec.precision import Held
from ltx2.spec.presets import PRESETS
from ltx2.spec.request import request

CARD = Card(name="LTX-2", distilled_lora=True, upsampler=True)


def plan_of(**asked: Any) -> Plan:
    return resolve(request(prompt="a cat", seed=1, **asked), CARD)


@pytest.mark.parametrize("preset", list(PRESETS["2.0"]))
def test_nothing_is_left_out_unless_it_is_asked_for(preset: str) -> None:
    plan = plan_of(preset=preset)
    assert all(stage.extras == NO_EXTRAS for stage in plan.stages)
    assert plan == plan_of(preset=preset, **({"step_cache": 0} if preset != "distilled" else {}))
    assert not plan.skips and not need(plan, CARD).at_most
    assert all(stage.passes == stage.evaluations * stage.passes_per_step for stage in plan.stages)


@pytest.mark.parametrize(
    ("interval", "steps", "guided"),
    [
        ("0:0.5", 30, range(15)),
        ("0:0.5", 7, range(4)),  # step 3 of 7 begins at 0.43
        ("0.1:0.6", 10, range(1, 6)),
        ("0.3:0.7", 10, range(3, 7)),  # decimals that no float holds exactly
        ("0:1", 4, range(4)),
        ([0.25, 1], 8, range(2, 8)),
    ],
)
def test_an_interval_is_a_share_of_the_steps(interval: Any, steps: int, guided: range) -> None:
    stage = plan_of(preset="classic", steps=steps, guidance_interval=interval).stages[0]
    assert [step for step in range(steps) if stage.extras.guides(step, steps)] == list(guided)
    assert (stage.guided_evaluations, stage.passes) == (len(guided), steps + len(guided))


def test_both_evaluations_of_a_step_of_res_2s_are_guided_alike() -> None:
    stage = plan_of(preset="hq", guidance_interval="0:0.2").stages[0]
    assert stage.steps == 15 and stage.evaluations == 31
    guided = [n for n in range(31) if stage.extras.guides(stage.step_of(n), 15)]
    assert guided == [0, 1, 2, 3, 4, 5]
    assert stage.passes == 6 * 3 + 25
    late = plan_of(preset="hq", guidance_interval="0.9:1").stages[0]
    assert late.guided_evaluations == 3, "the last evaluation belongs to the last step"


def test_extras_are_of_the_guided_stage_alone() -> None:
    first, second = plan_of(preset="two-stage", guidance_interval="0:0.5", step_cache=0.1).stages
    assert first.extras == Extras((0.0, 0.5), 0.1)
    assert second.extras == NO_EXTRAS


def test_the_first_quarter_and_the_last_step_are_always_computed() -> None:
    extras = plan_of(preset="dev", steps=30, step_cache=0.1).stages[0].extras
    assert [step for step in range(30) if extras.may_skip(step, 30)] == list(range(8, 29))
    assert not any(NO_EXTRAS.may_skip(step, 30) for step in range(30))


def test_a_plan_with_extras_survives_json_and_one_without_the_field_is_read() -> None:
    plan = plan_of(preset="two-stage", guidance_interval="0.1:0.6", step_cache=0.2)
    data = json.loads(json.dumps(plan.as_dict()))
    assert Plan.from_dict(data) == plan
    for stage in data["stages"]:
        del stage["extras"]
    assert Plan.from_dict(data) == plan_of(preset="two-stage")
    data["stages"][0]["extras"] = {"guided": [0], "cache": "much"}
    with pytest.raises(RefusedRequest, match="no plan"):
        Plan.from_dict(data)


# What is asked, the knob at fault, and asks that the hint names.
REFUSED = [
    ({"preset": "distilled", "guidance_interval": "0:0.5"}, "guidance_interval", {"preset": "dev"}),
    ({"preset": "distilled-two-stage", "step_cache": 0.1}, "step_cache", {"preset": "two-stage"}),
    ({"preset": "dev", "guidance_interval": "0.5:0.5"}, "guidance_interval", {"guidance_interval": "0:0.5"}),
    ({"preset": "dev", "guidance_interval": "0.7:0.2"}, "guidance_interval", {"guidance_interval": "0:0.5"}),
    ({"preset": "classic", "guidance_interval": "0.11:0.19"}, "guidance_interval", {"guidance_interval": "0.2:0.3"}),
    ({"preset": "classic", "guidance_interval": "0.95:0.99"}, "guidance_interval", {"guidance_interval": "0.9:1"}),
    (
        {"preset": "classic", "video_cfg": 1, "audio_cfg": 1, "guidance_interval": "0:0.5"},
        "guidance_interval",
        {"video_cfg": 3},
    ),
    (
        {"preset": "dev", "sampler": "gradient-estimation", "guidance_interval": "0:0.5"},
        "guidance_interval",
        {"sampler": "euler"},
    ),
    ({"preset": "hq", "step_cache": 0.1}, "step_cache", {"sampler": "euler"}),
    ({"preset": "dev", "sampler": "euler-ancestral", "step_cache": 0.1}, "step_cache", {"sampler": "euler"}),
    ({"preset": "dev", "sampler": "gradient-estimation", "step_cache": 0.1}, "step_cache", {"sampler": "euler"}),
    ({"preset": "dev", "steps": 3, "step_cache": 0.1}, "step_cache", {"steps": 4}),
]


@pytest.mark.parametrize(("asked", "knob", "works"), REFUSED, ids=lambda value: str(value))
def test_refusals_name_the_knob_and_what_works(asked: dict, knob: str, works: dict) -> None:
    with pytest.raises(RefusedRequest) as caught:
        plan_of(**asked)
    assert caught.value.knob == knob and caught.value.message.startswith(f"{knob}: ")
    named = next(iter(works.values()))
    assert str(named) in (caught.value.hint or "") or "video_cfg above 1" in (caught.value.hint or "")
    assert plan_of(**(asked | works)).stages[0].extras != NO_EXTRAS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("guidance_interval", "half"), ("guidance_interval", "0:"), ("guidance_interval", "0:1.5"),
        ("guidance_interval", "nan:1"), ("guidance_interval", [0.5]), ("guidance_interval", "0:0.5:1"),
        ("step_cache", -0.1), ("step_cache", 0.6), ("step_cache", "nan"), ("step_cache", "much"),
    ],
)  # fmt: skip
def test_values_that_are_none_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(RefusedRequest) as caught:
        plan_of(preset="dev", **{field: value})
    assert (caught.value.knob or "").startswith(field)


def test_an_interval_costs_less_and_a_cache_at_most_the_same() -> None:
    size: dict[str, Any] = {"preset": "classic", "steps": 40}
    whole, half = need(plan_of(**size), CARD), need(plan_of(**size, guidance_interval="0:0.5"), CARD)
    assert (whole.passes, half.passes) == (80, 60)
    assert half.flops == pytest.approx(0.75 * whole.flops)
    assert half.seconds < 0.8 * whole.seconds
    cached = need(plan_of(**size, step_cache=0.1), CARD)
    assert replace(cached, at_most=False) == whole and cached.at_most


def test_an_interval_has_a_graph_of_each_kind() -> None:
    size: dict[str, Any] = {"preset": "classic", "steps": 40}
    whole, half = need(plan_of(**size), CARD), need(plan_of(**size, guidance_interval="0:0.5"), CARD)
    assert half.kept_bytes == pytest.approx(1.5 * whole.kept_bytes), "text keys of two rows, and of one"
    assert half.activation_bytes == whole.activation_bytes


def test_the_perturbed_pass_is_counted_from_its_first_perturbed_block() -> None:
    card = replace(CARD, version="2.3", family="2.3", stg_blocks=(28,))
    plan = resolve(request(prompt="a cat", preset="dev", seed=1), card)
    fast, slow = (need(plan, card, Held(fast=how)).flops / plan.stages[0].steps / 1e12 for how in (True, False))
    # Counted on the networks: four whole passes, and with blocks 0 to 27 of one of them shared.
    assert slow == pytest.approx(774, rel=0.005)
    assert fast == pytest.approx(658, rel=0.005)
    early = replace(plan, stages=(_perturbed_at(plan.stages[0], (0, 40)),))
    assert need(early, card).flops == pytest.approx(slow * 30e12, rel=0.001)


def _perturbed_at(stage: Stage, blocks: tuple[int, ...]) -> Stage:
    return replace(stage, video=replace(stage.video, stg_blocks=blocks))
