"""Warm-up: every shape is made before the engine is handed over, and the first video after it is as fast as the tenth."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import pytest

from ltx2.engine import factory
from ltx2.engine.engine import Engine
from ltx2.models.describe import Source, read_card
from ltx2.spec.errors import DoesNotFit
from ltx2.spec.plan import Plan
from ltx2.spec.settings import Settings
from ltx2.spec.shapes import plan_of, shortened

SOURCE = Source("tiny")
SHAPES = ("64x64x9:distilled", "128x64x9:dev")


def _plans() -> list[Plan]:
    return [shortened(plan_of(shape, read_card(SOURCE)), 1) for shape in SHAPES]


def test_every_shape_is_made_once_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Plan] = []
    plain = Engine.generate

    def watched(self: Engine, plan: Plan, out: Path):
        made.append(plan)
        return plain(self, plan, out)

    monkeypatch.setattr(Engine, "generate", watched)
    factory.make(factory.options(SOURCE, "cpu", warm_up=_plans()))
    assert made == _plans()


def test_a_shape_that_does_not_fit_is_refused_before_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from ltx2.engine import memory
    from ltx2.models import components

    asked: list[Plan] = []

    def check(plan: Plan, *_: object, **__: object) -> None:
        asked.append(plan)
        if plan.width == 128:
            raise DoesNotFit("too large")

    monkeypatch.setattr(memory, "check", check)
    monkeypatch.setattr(components, "load", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(DoesNotFit):
        factory.make(factory.options(SOURCE, "cpu", warm_up=_plans()))
    assert asked == _plans()


def test_the_first_video_takes_as_much_work_as_the_tenth(tmp_path: Path) -> None:
    """In seconds of the CPU, so that a busy machine does not tell; the prompt is another one each time."""
    card = read_card(SOURCE)
    plan = shortened(plan_of("128x64x9:distilled", card), 2)
    generate = factory.make(factory.options(SOURCE, "cpu", warm_up=[plan], machine=Settings(prompt_cache="off")))
    spent: list[float] = []
    for number in range(10):
        begin = time.process_time()
        list(generate(plan, tmp_path / f"{number}.mp4"))
        spent.append(time.process_time() - begin)
    print("CPU seconds of each video:", *(f"{one:.3f}" for one in spent))
    assert spent[0] < 1.5 * median(spent[1:]) + 0.05
