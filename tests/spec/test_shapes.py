"""Shapes to warm up: their words, what they mean for each model, and that nothing is made twice."""

from __future__ import annotations

import pytest

from ltx2.spec.card import Card
from ltx2.spec.errors import RefusedRequest
from ltx2.spec.shapes import check, plan_of, plans_of

DEV = Card(name="dev", distilled_lora=True, upsampler=True)
DISTILLED = Card(name="distilled", kind="distilled")
TINY = Card(name="tiny", family="tiny", kind="distilled", upsampler=True, max_side=512, max_seconds=5.0)


def made(card: Card, *shapes: str) -> dict[str, tuple[int, int, int, str]]:
    plans = plans_of(shapes, card).items()
    return {shape: (plan.width, plan.height, plan.frames, plan.preset) for shape, plan in plans}


def test_what_requests_get_and_what_the_original_routes_get() -> None:
    assert made(DISTILLED, "default", "original") == {
        "default": (768, 512, 121, "distilled"),
        "original": (768, 512, 97, "distilled"),
    }
    dev = made(DEV, "default", "original")
    assert dev["original"] == (768, 512, 97, "classic") and dev["default"] != dev["original"]
    assert len(plan_of("original", DEV).stages) == 1 and plan_of("original", DEV).stages[0].passes_per_step == 2


def test_shapes_with_and_without_a_preset() -> None:
    assert made(DEV, "768x512x97:classic", "original", "512x512x25:two-stage", "256x256x9") == {
        "768x512x97:classic": (768, 512, 97, "classic"),
        "512x512x25:two-stage": (512, 512, 25, "two-stage"),
        "256x256x9": (256, 256, 9, plan_of("default", DEV).preset),
    }, "the original is the first of them"
    assert list(made(TINY, "default", "original")) == ["default"]


@pytest.mark.parametrize("shape", ["", "768x512", "768x512x97:", "768x512x97:A", "none", "a", "7x8x9x10", "-1x2x3"])
def test_what_is_no_shape(shape: str) -> None:
    with pytest.raises(RefusedRequest, match="768x512x97:classic") as refused:
        check(shape, "warm_up")
    assert refused.value.knob == "warm_up"


@pytest.mark.parametrize("shape", ["768x512x98", "767x512x97", "768x512x97:nothing"])
def test_what_the_model_cannot_make(shape: str) -> None:
    assert check(shape, "warm_up") == shape
    with pytest.raises(RefusedRequest):
        plan_of(shape, DEV)
