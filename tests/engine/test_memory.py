"""What is counted for each way of holding weights and LoRAs, and what is offered when it does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ltx2.engine import memory
from ltx2.engine.memory import GIB
from ltx2.models.describe import Source, read_card
from ltx2.spec.card import Card, Shape
from ltx2.spec.cost import need
from ltx2.spec.errors import DoesNotFit
from ltx2.spec.plan import resolve
from ltx2.spec.precision import Held, transformer_bytes
from ltx2.spec.request import request

LORA = 7_674_558_424
CARD = Card(name="LTX-2", distilled_lora=True, upsampler=True, shape=Shape(lora_bytes=LORA))
PLAN = resolve(request(prompt="a cat", seed=1, preset="distilled-two-stage", width=768, height=512, frames=97), CARD)


def _wanted(held: Held, loaded: bool = False) -> int:
    return memory.wanted(PLAN, CARD, held, loaded, tiled=True)


def test_a_merged_lora_keeps_the_originals_and_an_added_one_nothing() -> None:
    merged, added = _wanted(Held("bf16")), _wanted(Held("bf16", loras="added"))
    # Beside the originals the decode no longer is the largest moment.
    assert CARD.shape.transformer_bytes * 0.9 < merged - added <= CARD.shape.transformer_bytes
    assert _wanted(Held("fp8")) == _wanted(Held("fp8", loras="added"))
    assert added - _wanted(Held("fp8")) == CARD.shape.transformer_bytes - transformer_bytes(CARD.shape, "fp8")


# Peaks of `benchmarks/h200.py` on one H200 in GiB: model, preset, width, height, frames, graphs of other shapes that the
# process had made before, bf16, fp8.
MEASURED = [
    ("ltx-2", "distilled-two-stage", 768, 512, 97, 0, 68.1, 60.1),
    ("ltx-2", "distilled-two-stage", 1536, 1024, 121, 2, 72.7, 64.7),
    ("ltx-2.3", "dev", 768, 512, 121, 0, 69.1, None),
]


@pytest.mark.parametrize(("model", "preset", "width", "height", "frames", "others", "bf16", "fp8"), MEASURED)
def test_the_count_is_what_was_measured(
    model: str, preset: str, width: int, height: int, frames: int, others: int, bf16: float, fp8: float | None
) -> None:
    card = read_card(Source(model, weights="random", kind="distilled" if "distilled" in preset else "dev"))
    plan = resolve(request(prompt="x", seed=1, preset=preset, width=width, height=height, frames=frames), card)
    for precision, measured in (("bf16", bf16), ("fp8", fp8)):
        if measured is not None:
            cost = need(plan, card, precision)
            earlier = others * cost.text_key_bytes
            # A graph's pool is reserved, and while it is replayed no tensor of it counts: the decode is what shows.
            shown = cost.weight_bytes + cost.kept_bytes + earlier + cost.decode_bytes
            assert shown / GIB == pytest.approx(measured, abs=0.8)
            wanted = memory.wanted(plan, card, Held(precision), loaded=False, tiled=False)
            assert (wanted + earlier) / GIB >= measured


def test_loras_lie_on_the_device_themselves(tmp_path: Path) -> None:
    file = tmp_path / "user.safetensors"
    file.write_bytes(bytes(1000))
    held = Held("fp8")
    without = memory.wanted(PLAN, replace(CARD, shape=Shape()), held, loaded=False, tiled=True)
    assert _wanted(held) - without == LORA
    user = replace(PLAN, loras=((str(file), 1.0),))
    assert memory.wanted(user, CARD, held, loaded=False, tiled=True) - _wanted(held) == 1000
    assert memory.wanted(user, CARD, held, loaded=True, tiled=True) == _wanted(held, loaded=True)


def test_adding_is_offered_where_merging_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    monkeypatch.setattr(memory, "available", lambda _device: _wanted(Held("bf16", loras="added", fast=False)))
    with pytest.raises(DoesNotFit, match="--lora-mode added fits"):
        memory.check(PLAN, CARD, device, "bf16", loaded=False)
    assert memory.check(PLAN, CARD, device, Held("bf16", loras="added"), loaded=False).tiled
    monkeypatch.setattr(memory, "available", lambda _device: _wanted(Held("bf16", "int4", "added", fast=False)))
    assert memory.check(PLAN, CARD, device, Held("bf16", "int4", "added"), loaded=False)
    with pytest.raises(DoesNotFit, match="no size fits"):
        memory.check(PLAN, CARD, device, "bf16", loaded=False)
