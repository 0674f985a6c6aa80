"""Requests against checkpoints: what a plan becomes, and what is refused with which knob and hint."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from ltx2.spec.card import Card
from ltx2.spec.errors import RefusedRequest
from ltx2.spec.plan import Plan, resolve
from ltx2.spec.presets import CLASSIC_NEGATIVE, DISTILLED_SIGMAS, PRESETS, REFINE_SIGMAS
from ltx2.spec.request import request

DEV = Card(name="LTX-2", distilled_lora=True, upsampler=True)
BARE = Card(name="LTX-2")
DISTILLED = Card(name="LTX-2-distilled", kind="distilled", upsampler=True)
TINY = Card(name="tiny", family="tiny", distilled_lora=True, upsampler=True, max_side=512, max_seconds=5.0)


def plan_of(card: Card = DEV, /, **asked: Any) -> Plan:
    return resolve(request(**{"prompt": "a cat", **asked}), card)


REFUSED = [
    ({"width": 770}, "width", "768 works"),
    ({"height": 500}, "height", "512 works"),
    ({"height": 0}, "height", "32 works"),
    ({"width": -64}, "width", "32 works"),
    ({"width": 99_999}, "width", "2048 works"),
    ({"width": 800, "preset": "two-stage"}, "width", "832 works"),
    ({"height": 480, "preset": "distilled-two-stage"}, "height", "512 works"),
    ({"frames": 100}, "frames", "97 works"),
    ({"frames": 0}, "frames", "1 works"),
    ({"frames": -7}, "frames", "1 works"),
    ({"frames": 4801}, "frames", "473 frames works"),
    ({"seconds": 100.0}, "seconds", "20 seconds works"),
    ({"frames": 97, "seconds": 4.0}, "frames", None),
    ({"fps": "0"}, "fps", "1 to 120; the models know 24 to 60 best"),
    ({"fps": "1000"}, "fps", "1 to 120; the models know 24 to 60 best"),
    ({"prompt": "  \n"}, "prompt", "say what the video should show and sound like"),
    ({"prompt": "x" * 10_001}, "prompt", "at most 10000"),
    ({"negative_prompt": "x" * 10_001}, "negative_prompt", "at most 10000"),
    ({"steps": 10, "preset": "distilled"}, "steps", "leave steps out, or use classic, dev, two-stage or hq"),
    ({"schedule": "diffusers", "preset": "distilled"}, "schedule", "leave schedule out"),
    ({"preset": "fastest"}, "preset", "one of " + ", ".join(PRESETS["2.0"])),
    ({"stg_blocks": (48,)}, "stg_blocks", None),
    ({"stg_blocks": ()}, "stg_blocks", "29 works"),
]


@pytest.mark.parametrize(("asked", "knob", "hint"), REFUSED, ids=[str(row[0])[:50] for row in REFUSED])
def test_refuses_with_knob_and_what_works(asked: dict[str, Any], knob: str, hint: str | None) -> None:
    with pytest.raises(RefusedRequest) as caught:
        plan_of(**asked)
    assert caught.value.knob == knob
    assert caught.value.message.startswith(f"{knob}: ")
    assert caught.value.hint == hint


UNREADABLE = [
    {"width": "wide"},
    {"width": float("nan")},
    {"seconds": float("nan")},
    {"seconds": float("inf")},
    {"seconds": 0},
    {"fps": "fast"},
    {"fps": "24/0"},
    {"fps": float("nan")},
    {"steps": 0},
    {"steps": 201},
    {"seed": -1},
    {"seed": 2**63},
    {"video_cfg": float("nan")},
    {"audio_rescale": 1.5},
    {"image_strength": -0.1},
    {"sampler": "dpm"},
    {"schedule": "karras"},
    {"lora_strength": 5},
]


@pytest.mark.parametrize("asked", UNREADABLE, ids=str)
def test_refuses_values_that_mean_nothing(asked: dict[str, Any]) -> None:
    with pytest.raises(RefusedRequest) as caught:
        plan_of(**asked)
    assert caught.value.knob == next(iter(asked))


def test_refuses_unknown_fields() -> None:
    with pytest.raises(RefusedRequest, match="widht"):
        plan_of(widht=768)


@pytest.mark.parametrize("hint_names_a_size_that_works", [33, 100, 770, 1500, 2049])
def test_the_width_in_the_hint_is_accepted(hint_names_a_size_that_works: int) -> None:
    for preset in ("dev", "two-stage"):
        with pytest.raises(RefusedRequest) as caught:
            plan_of(width=hint_names_a_size_that_works, preset=preset)
        works = int((caught.value.hint or "").split()[0])
        assert plan_of(width=works, preset=preset).width == works


@pytest.mark.parametrize("frames", [2, 50, 96, 98, 470, 5000])
def test_the_frames_in_the_hint_are_accepted(frames: int) -> None:
    with pytest.raises(RefusedRequest) as caught:
        plan_of(frames=frames)
    works = int((caught.value.hint or "").split()[0])
    assert plan_of(frames=works).frames == works


@pytest.mark.parametrize("preset", ["classic", "dev", "two-stage", "hq"])
def test_guided_presets_do_not_suit_distilled_checkpoints(preset: str) -> None:
    with pytest.raises(RefusedRequest, match="distilled"):
        plan_of(DISTILLED, preset=preset)


@pytest.mark.parametrize(
    ("card", "preset", "flag"),
    [
        (BARE, "distilled", "--distilled-lora"),
        (BARE, "hq", "--distilled-lora"),
        (replace(BARE, distilled_lora=True), "two-stage", "--upsampler"),
        (replace(DISTILLED, upsampler=False), "distilled-two-stage", "--upsampler"),
    ],
)
def test_presets_ask_for_the_files_they_need(card: Card, preset: str, flag: str) -> None:
    with pytest.raises(RefusedRequest) as caught:
        plan_of(card, preset=preset)
    assert flag in (caught.value.hint or "")


def test_classic_is_the_original_service() -> None:
    plan = plan_of(preset="classic")
    stage = plan.stages[0]
    assert (plan.width, plan.height, plan.frames, plan.fps) == (768, 512, 97, 24)
    assert plan.negative_prompt == CLASSIC_NEGATIVE
    assert (stage.steps, stage.passes_per_step, stage.video.cfg, stage.audio.cfg) == (10, 2, 4.0, 4.0)
    assert PRESETS["2.0"]["classic"].recommended_steps == 40


@pytest.mark.parametrize(("version", "steps"), [("2.0", 40), ("2.3", 30), ("2.5", 30)])
def test_dev_is_four_passes(version: Any, steps: int) -> None:
    stage = plan_of(replace(DEV, version=version, family=version), preset="dev").stages[0]
    assert (stage.steps, stage.passes_per_step, stage.evaluations) == (steps, 4, steps)
    assert (stage.video.cfg, stage.video.stg, stage.video.modality, stage.video.rescale) == (3.0, 1.0, 3.0, 0.7)
    assert (stage.audio.cfg, stage.audio.stg, stage.audio.modality, stage.audio.rescale) == (7.0, 1.0, 3.0, 0.7)


def test_two_stages_meet_at_half_the_size() -> None:
    plan = plan_of(preset="distilled-two-stage", width=1536, height=1024)
    assert [(stage.width, stage.height) for stage in plan.stages] == [(768, 512), (1536, 1024)]
    assert [stage.sigmas for stage in plan.stages] == [DISTILLED_SIGMAS, REFINE_SIGMAS]
    assert (plan.audio_stage, plan.evaluations) == (1, 11)


def test_hq_counts_two_evaluations_a_step() -> None:
    plan = plan_of(preset="hq")
    assert [stage.sampler for stage in plan.stages] == ["res_2s", "res_2s"]
    assert [stage.evaluations for stage in plan.stages] == [31, 7]
    assert plan.noise_seed == -1


def test_the_distilled_lora_is_for_dev_checkpoints_only() -> None:
    assert [stage.lora for stage in plan_of(DEV, preset="distilled-two-stage").stages] == [1.0, 1.0]
    assert [stage.lora for stage in plan_of(DISTILLED, preset="distilled-two-stage").stages] == [0.0, 0.0]
    assert plan_of(DEV, preset="distilled", lora_strength=0.6).stages[0].lora == 0.6


@pytest.mark.parametrize(
    ("asked", "fps", "frames"),
    [
        ({"fps": "23.976", "frames": 97}, Fraction(2997, 125), 97),
        ({"fps": "24000/1001", "frames": 97}, Fraction(24000, 1001), 97),
        ({"fps": 23.976, "frames": 97}, Fraction(2997, 125), 97),
        ({"seconds": 5}, Fraction(24), 121),
        ({"seconds": 2, "fps": 30}, Fraction(30), 57),
        ({"seconds": 0.001}, Fraction(24), 1),
    ],
)
def test_fps_is_kept_and_seconds_snap(asked: dict[str, Any], fps: Fraction, frames: int) -> None:
    plan = plan_of(**asked)
    assert (plan.fps, plan.frames) == (fps, frames)


def test_a_seed_is_drawn_and_recorded() -> None:
    seeds = {plan_of().seed for _ in range(8)}
    assert len(seeds) > 1
    assert plan_of(seed=0).seed == 0


@pytest.mark.parametrize("card", [DEV, TINY], ids=lambda card: card.name)
@pytest.mark.parametrize("preset", list(PRESETS["2.0"]))
def test_every_plan_survives_json(card: Card, preset: str) -> None:
    import json

    plan = plan_of(card, preset=preset, fps="24000/1001", loras=({"path": "a.safetensors", "strength": 0.5},))
    assert Plan.from_dict(json.loads(json.dumps(plan.as_dict()))) == plan


@pytest.mark.parametrize("damage", [{"fps": "x"}, {"stages": 3}, {"stages": [{"width": 3}]}, {"loras": [1]}])
def test_a_damaged_plan_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(RefusedRequest):
        Plan.from_dict(plan_of().as_dict() | damage)


def test_guidance_knobs_reach_the_guided_stage_only() -> None:
    plan = plan_of(preset="two-stage", video_cfg=5, audio_stg=0, stg_blocks=(3, 4))
    first, second = plan.stages
    assert (first.video.cfg, first.audio.stg) == (5, 0)
    assert (first.video.stg_blocks, first.audio.stg_blocks) == ((3, 4), ())
    assert second.passes_per_step == 1
