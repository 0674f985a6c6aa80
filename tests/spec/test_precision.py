"""Bytes of each way of holding weights, against the published file sizes."""

from __future__ import annotations

import pytest

from ltx2.spec.card import Card, Shape
from ltx2.spec.cost import need
from ltx2.spec.plan import resolve
from ltx2.spec.precision import Held, block_weights, fp8_blocks, transformer_bytes
from ltx2.spec.request import request

GATES = 32 * (3 * 4096 + 3 * 2048)


def test_one_block_is_what_two_published_files_differ_by() -> None:
    """LTX-2.3's distilled fp8 file keeps one block more than dev's in bf16, and is that much larger (gates included)."""
    assert block_weights(Shape()) + GATES == 386_465_792


def test_the_fp8_transformer_of_ltx_2_has_the_published_size() -> None:
    """The published file holds 42 blocks in fp8 and everything but text encoder and upsampler beside them."""
    other = 2_862_950_400 + 2_444_959_714 + 106_496_804 + 111_185_604  # connectors, VAE, audio VAE, vocoder
    tables = 290 * 8 * 4096  # a little of the rest is float32 in the file
    assert transformer_bytes(Shape(), "fp8") + other == pytest.approx(27_078_716_018, abs=2e8 + tables)


@pytest.mark.parametrize(("layers", "held"), [(48, (1, 42)), (6, (1, 4)), (3, (1, 1))])
def test_the_first_and_the_last_blocks_stay(layers: int, held: tuple[int, int]) -> None:
    blocks = fp8_blocks(layers)
    assert (blocks[0], blocks[-1]) == held


def test_needs_by_holding() -> None:
    card = Card(name="LTX-2", distilled_lora=True, upsampler=True)
    plan = resolve(request(prompt="a cat", seed=1, preset="distilled"), card)
    plain, fp8 = need(plan, card), need(plan, card, "fp8")
    saved = 42 * block_weights(card.shape)
    assert plain.weight_bytes - fp8.weight_bytes == saved and saved > 16e9
    assert (fp8.activation_bytes, fp8.decode_bytes, fp8.flops) == (
        plain.activation_bytes,
        plain.decode_bytes,
        plain.flops,
    )
    assert need(plan, card, Held("fp8")) == fp8
    elsewhere = need(plan, card, Held("fp8", "elsewhere"))
    assert fp8.weight_bytes - elsewhere.weight_bytes == card.shape.text_encoder_bytes
    assert elsewhere.weight_bytes < need(plan, card, Held("fp8", "int4")).weight_bytes < fp8.weight_bytes


@pytest.mark.parametrize(
    ("device", "where", "text"),
    [
        ("cuda", "auto", "int8"), ("cuda", "cuda:0", "int8"), ("cuda:0", "cuda", "int8"), ("cpu", "cpu", "int8"),
        ("cuda", "cpu", "elsewhere"), ("cuda:1", "cuda", "elsewhere"), ("cuda", "cuda:1", "elsewhere"),
        ("cuda:1", "cuda:1", "int8"),
    ],
)  # fmt: skip
def test_where_the_text_encoder_is(device: str, where: str, text: str) -> None:
    precision = "fp32" if device == "cpu" else "bf16"
    assert Held.on(device, "auto", "int8", where, "added", False) == Held(precision, text, "added", False)
    assert Held.on(device, "fp8", "auto", "auto", "auto", True) == Held("fp8")


@pytest.mark.parametrize(
    ("held", "merges"),
    [(Held("bf16"), True), (Held("fp32"), True), (Held("fp8"), False), (Held("bf16", loras="added"), False)],
)
def test_where_loras_are_merged(held: Held, merges: bool) -> None:
    assert held.merges == merges
