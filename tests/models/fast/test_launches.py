"""How many kernels a block launches in each lane: at few tokens that, and not their size, is the time of a pass.

A GPU has one launch for each operation, product and attention that are counted here (three for heads to e4m3), and a
copy wherever rows are repeated or lie wrongly.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from ltx2.models.fast import Stage, Twin, block, projection
from ltx2.models.fast.ops import PLAIN, Ops
from ltx2.models.precision import Fp8Linear
from tests.models.fast.test_forward import _random_streams, _small
from tests.models.fast.test_passes import _in_fp8

LAUNCHES = {"quantise_heads": 3}


class Counting:
    """Lanes, operations and a block that count what is launched while the block is at work."""

    def __init__(self) -> None:
        self.lane, self.active = "main", False
        self.seen: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def aside(self) -> Iterator[None]:
        self.lane = "side"
        yield
        self.lane = "main"

    def meet(self, *crossing: Any) -> None:
        pass

    def ops(self) -> Ops:
        names = [field.name for field in fields(PLAIN) if field.name not in ("name", "linear_gelu")]
        return replace(PLAIN, **{name: self.counted(name, getattr(PLAIN, name)) for name in names})

    def counted(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            if self.active:
                self.seen[self.lane, name] += LAUNCHES.get(name, 1)
            return work(*given, **named)

        return run

    def watch(self, one: Any) -> Any:
        counting = self

        class Watched:
            reads, video, audio = one.reads, one.video, one.audio

            def __call__(self, *given: Any) -> Any:
                counting.active = True
                result = one(*given)
                counting.active = False
                return result

        return Watched()

    def of(self, lane: str) -> dict[str, int]:
        return {name: count for (where, name), count in self.seen.items() if where == lane}


def _count(version: str, fp8: bool, monkeypatch: pytest.MonkeyPatch, fp8_from: int | None = None) -> Counting:
    transformer = copy.deepcopy(_small(version)) if fp8 else _small(version)
    counting = Counting()
    if fp8:
        with _in_fp8(transformer):
            monkeypatch.setattr(projection, "_in_rows", lambda layer: isinstance(layer, Fp8Linear))
    stage = Stage(Twin(transformer, counting.ops(), lanes=counting, fp8_from=fp8_from))
    forward = stage.twin.forward
    forward.blocks[1] = counting.watch(forward.blocks[1])
    for name in ("attend", "attend_in_fp8"):
        monkeypatch.setattr(block, name, counting.counted("attention", getattr(block, name)))
    monkeypatch.setattr(functional, "linear", counting.counted("product", functional.linear))
    with torch.inference_mode():
        stage(*_random_streams(transformer, 2, False))
    return counting


PLAIN_20 = {
    "main": {"product": 8, "attention": 3, "normalise_pair": 1, "normalise_heads": 2, "residual_norm": 4},
    "side": {"product": 10, "attention": 3, "normalise_pair": 1, "normalise_heads": 4, "residual_norm": 4},
}


def test_a_block_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = _count("2.0", False, monkeypatch)
    assert {lane: counting.of(lane) for lane in ("main", "side")} == PLAIN_20


def test_a_block_in_fp8_quantises_after_attention_and_nowhere_else_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = _count("2.0", True, monkeypatch)
    more = {"quantise": 3, "gelu": 1}
    assert {lane: counting.of(lane) for lane in ("main", "side")} == {
        lane: {**plain, **more} for lane, plain in PLAIN_20.items()
    }


def test_fp8_attention_adds_two_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = _count("2.0", False, monkeypatch, fp8_from=1)
    expected = {**PLAIN_20["main"], "quantise_heads": 3}
    del expected["normalise_pair"]
    assert counting.of("main") == expected


def test_a_block_with_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = _count("2.3", False, monkeypatch)
    assert sum(counting.of("main").values()) == sum(PLAIN_20["main"].values()) + 3
    assert counting.of("main")["gate_heads"] == 3


def test_a_block_with_gates_in_fp8_quantises_nothing_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gate logits stay in bf16, so the norms before them give both forms; after attention the gates' kernel quantises."""
    counting = _count("2.3", True, monkeypatch)
    assert counting.of("main")["product"] == PLAIN_20["main"]["product"] + 3
    assert "quantise" not in counting.of("main") and "quantise" not in counting.of("side")
