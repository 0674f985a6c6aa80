"""Costs against the counted operations of the published transformer and the memory measured on one H200."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ltx2.spec.card import Card, Shape
from ltx2.spec.cost import forward_flops, need
from ltx2.spec.plan import Plan, resolve
from ltx2.spec.precision import Held
from ltx2.spec.request import request

CARD = Card(name="LTX-2", distilled_lora=True, upsampler=True)
GIB = 2**30


def plan_of(**asked: object) -> Plan:
    return resolve(request(prompt="a cat", seed=1, **asked), CARD)


# Counted on meta tensors of the full-size networks: width, height, frames, TFLOP of one pass with text K/V.
COUNTED = [
    (384, 256, 97, 39.5), (768, 512, 97, 157.66), (768, 512, 121, 198.7), (960, 544, 121, 275.1),
    (1536, 1024, 97, 850.8), (1536, 1024, 121, 1136), (1920, 1088, 121, 1714),
]  # fmt: skip


@pytest.mark.parametrize(("width", "height", "frames", "tera"), COUNTED)
def test_one_pass(width: int, height: int, frames: int, tera: float) -> None:
    cost = need(plan_of(preset="distilled", width=width, height=height, frames=frames), CARD)
    assert cost.passes == 8
    assert cost.flops / 8 / 1e12 == pytest.approx(tera, rel=0.01)


def test_one_block_and_an_isolated_pass() -> None:
    whole, isolated = (forward_flops(Shape(), 4992, 101, 1024, isolated=alone) for alone in (False, True))
    one_less = forward_flops(Shape(layers=47), 4992, 101, 1024)
    assert (whole - one_less) / 1e9 == pytest.approx(3282, rel=0.001)
    assert isolated / 1e12 == pytest.approx(141.0, rel=0.001)


# Published counts of whole jobs, in TFLOP.
JOBS = [
    ({"preset": "classic", "steps": 40}, 80, 12_613),
    ({"preset": "distilled-two-stage", "width": 768, "height": 512, "frames": 97}, 11, 789),
    ({"preset": "distilled-two-stage", "width": 1536, "height": 1024, "frames": 121}, 11, 4_997),
    ({"preset": "dev", "steps": 30, "video_stg": 0, "audio_stg": 0, "frames": 97}, 90, 157.66 * 60 + 141.0 * 30),
]


@pytest.mark.parametrize(("asked", "passes", "tera"), JOBS)
def test_whole_jobs(asked: dict, passes: int, tera: float) -> None:
    cost = need(plan_of(**asked), CARD)
    assert cost.passes == passes
    assert cost.flops / 1e12 == pytest.approx(tera, rel=0.01)
    assert sum(stage.flops for stage in cost.stages) == cost.flops


def test_memory_is_what_was_measured() -> None:
    small, large = (need(plan_of(preset="distilled", **size), CARD, Held(fast=False)) for size in (
        {"width": 768, "height": 512, "frames": 97}, {"width": 1536, "height": 1024, "frames": 121},
    ))  # fmt: skip
    assert small.activation_bytes / GIB == pytest.approx(0.7, rel=0.05)
    assert large.activation_bytes / GIB == pytest.approx(3.4, rel=0.02)
    assert small.decode_bytes / GIB == pytest.approx(4.2, rel=0.01)
    assert large.decode_bytes / GIB == pytest.approx(20.8, rel=0.02)
    pieces = [
        need(plan_of(preset="distilled", width=768, height=512, frames=count), CARD).decode_bytes for count in (25, 97)
    ]
    assert pieces[1] / GIB == pytest.approx(1.4, abs=0.1)
    assert pieces[1] > pieces[0] > 2 * 25 * 768 * 512 * 32, "a video shorter than a piece is one"
    assert large.staged_bytes < large.resident_bytes
    assert (large.text_key_bytes, large.kept_bytes, large.graph_bytes) == (0, 0, 0)


def test_text_keys_and_graphs_are_counted_by_rows_stages_and_version() -> None:
    size = {"width": 768, "height": 512, "frames": 97}
    one_row = 2 * 48 * (4096 + 2048) * 1024 * 2
    guided, two = (
        need(plan_of(preset="classic", **size), CARD),
        need(plan_of(preset="distilled-two-stage", **size), CARD),
    )
    assert (guided.text_key_bytes, guided.kept_bytes) == (2 * one_row, 2 * one_row)
    assert (two.text_key_bytes, two.kept_bytes) == (one_row, 2 * one_row), "one for each stage's graph"
    assert guided.activation_bytes == pytest.approx(2 * two.activation_bytes)
    assert guided.graph_bytes == guided.activation_bytes
    large = need(plan_of(preset="distilled", width=1536, height=1024, frames=121), CARD)
    assert (large.kept_bytes, large.graph_bytes) == (0, 0), "24,576 tokens are not recorded"
    later = need(plan_of(preset="classic", **size), replace(CARD, version="2.3"))
    assert later.kept_bytes == 0 and later.graph_bytes == later.activation_bytes + later.text_key_bytes


def test_time_is_what_was_measured() -> None:
    # One H200 without the encoding: 40 guided steps, and 8 + 3 at 1536x1024x121; the plain path is eager Diffusers.
    classic = plan_of(preset="classic", steps=40)
    two_stage = plan_of(preset="distilled-two-stage", width=1536, height=1024, frames=121)
    measured = {
        Held("bf16"): (19.7, 8.2),
        Held("fp8"): (13.5, 6.4),
        Held("bf16", fast=False): (30.9, 13.3),
    }
    for held, (one, two) in measured.items():
        assert need(classic, CARD, held).seconds == pytest.approx(one, rel=0.1), held
        assert need(two_stage, CARD, held).seconds == pytest.approx(two, rel=0.1), held


def test_price_and_precision() -> None:
    plan = plan_of(preset="classic")
    cost, dear = need(plan, CARD), need(plan, CARD, "fp32", price_per_hour=3600.0)
    assert cost.dollars == 0
    assert dear.dollars == pytest.approx(dear.seconds)
    assert dear.weight_bytes == 2 * cost.weight_bytes


def test_a_merged_lora_keeps_the_originals() -> None:
    shape = Shape(lora_bytes=7_674_558_424)
    real = replace(CARD, shape=shape)
    two = plan_of(preset="two-stage")
    merged, added = need(two, real), need(two, real, Held(loras="added"))
    assert merged.original_bytes == shape.transformer_bytes and added.original_bytes == 0
    at_work = merged.original_bytes + merged.activation_bytes + merged.text_key_bytes
    beside = merged.weight_bytes + merged.kept_bytes + merged.graph_bytes
    assert merged.resident_bytes == beside + at_work > added.resident_bytes
    assert merged.staged_bytes - added.staged_bytes == shape.transformer_bytes
    assert need(two, real, "fp8").original_bytes == 0, "fp8 adds"
    assert need(plan_of(preset="dev"), real).original_bytes == 0, "no stage uses it"
    # A user's LoRA is merged in every preset; with random weights the distilled one is left out.
    user = replace(plan_of(preset="dev"), loras=(("x.safetensors", 1.0),))
    assert need(user, real).original_bytes == shape.transformer_bytes
    assert need(two, replace(CARD, shape=replace(shape, drawn_lora_bytes=1))).original_bytes == 0
