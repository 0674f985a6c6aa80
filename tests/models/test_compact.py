"""The text encoder in eight and four bits: how close it stays on weights of realistic scale and on the embedded model."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ltx2.models.compact import GROUP, Int4Linear, Int8Linear
from ltx2.models.components import Holding, Models, load
from ltx2.models.holding import FORMS, layers
from ltx2.models.small import small
from ltx2.pipeline.text import embed
from ltx2.spec.precision import Held, text_encoder_bytes
from tests.models.checkpoints import write_folder

TEXTS = ["a red ball bounces on a dark background with a high beep", "a blue square moves to the left"]


def _weight(kind: str, rows: int = 256, columns: int = 3840) -> Tensor:
    torch.manual_seed(0)
    weight = (
        torch.distributions.StudentT(4.0).sample((rows, columns)) if kind == "heavy" else torch.randn(rows, columns)
    )
    if kind == "outlier":
        weight[:, torch.randperm(columns)[:8]] *= 8
    return (weight * 0.02).bfloat16().float()


@pytest.mark.parametrize(
    ("hold", "kind", "bound"),
    [
        ("int8", "gauss", 0.0095), ("int8", "heavy", 0.03), ("int8", "outlier", 0.036),
        ("int4", "gauss", 0.083), ("int4", "heavy", 0.10), ("int4", "outlier", 0.09),
    ],
)  # fmt: skip
def test_relative_error_of_the_output(hold: str, kind: str, bound: float) -> None:
    """With spikes in six of the input's channels, as in a language model; the bounds are the measured values and 5 %."""
    weight = _weight(kind)
    x = torch.randn(64, weight.shape[1])
    x[:, torch.randperm(weight.shape[1])[:6]] *= 40
    layer = FORMS[hold](**FORMS[hold].quantise(weight), bias=None)
    error = (layer(x) - x @ weight.T).norm() / (x @ weight.T).norm()
    assert bound / 3 < error < bound


@pytest.mark.parametrize("hold", ["int8", "int4"])
def test_a_layer_equals_its_dequantised_weight_and_keeps_its_bias(hold: str) -> None:
    weight, bias = _weight("gauss", 48, 96), torch.randn(48)
    layer = FORMS[hold](**FORMS[hold].quantise(weight), bias=bias)
    x = torch.randn(2, 3, 96)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.dequantise(torch.float32), bias))
    half = FORMS[hold](**FORMS[hold].quantise(weight), bias=None)
    assert half(x.bfloat16()).dtype == torch.bfloat16


def test_int8_keeps_every_weight_within_half_a_step() -> None:
    weight = _weight("heavy", 16, 64)
    weight[3] = 0
    layer = Int8Linear(**Int8Linear.quantise(weight), bias=None)
    assert bool(((layer.dequantise(torch.float32) - weight).abs() <= layer.scale[:, None] * 0.5001).all())
    assert torch.equal(layer.dequantise(torch.float32)[3], weight[3])


def test_int4_keeps_every_weight_within_half_a_step_of_its_group() -> None:
    weight = _weight("outlier", 16, 128)
    weight[2, :GROUP], weight[5, :GROUP] = 0.0, 0.25
    layer = Int4Linear(**Int4Linear.quantise(weight), bias=None)
    assert (layer.weight.shape, layer.scale.shape, layer.low.dtype) == ((16, 64), (16, 4), torch.float16)
    step = layer.scale.float().repeat_interleave(GROUP, 1)
    # Beside half a step: both ends of a group are float16 numbers.
    slack = step * 0.501 + weight.abs().amax() * 2**-10
    assert bool(((layer.dequantise(torch.float32) - weight).abs() <= slack).all())
    assert torch.equal(layer.dequantise(torch.float32)[2, :GROUP], torch.zeros(GROUP))
    assert torch.equal(layer.dequantise(torch.float32)[5, :GROUP], torch.full((GROUP,), 0.25))


@cache
def _embedded(text_encoder: str) -> Models:
    return load("tiny", dtype=torch.float32, holding=Holding.named("fp32", text_encoder))


@pytest.mark.parametrize(("hold", "bound"), [("int8", 0.0015), ("int4", 0.015)])
def test_the_embedded_text_encoder_stays_close(hold: str, bound: float) -> None:
    plain, held = embed(_embedded("auto"), TEXTS), embed(_embedded(hold), TEXTS)
    for one, other in ((held.video, plain.video), (held.audio, plain.audio)):
        assert not torch.equal(one, other)
        assert (one - other).norm() / other.norm() < bound


def test_which_layers_are_held_and_what_they_take(tmp_path: Path) -> None:
    models = small("2.0")
    network = models.networks["text_encoder"]
    names = layers(network, "int8")
    assert names == layers(network, "int4") and len(names) == 2 * 7
    assert not any("vision" in name or "lm_head" in name for name in names)
    root = write_folder(models, tmp_path / "model")
    loaded = load(str(root), dtype=torch.bfloat16, holding=Holding(text_encoder="int4")).networks["text_encoder"]
    assert [name for name, module in loaded.named_modules() if isinstance(module, Int4Linear)] == names
    ours = loaded.get_submodule(names[0])
    expected = Int4Linear.quantise(network.get_parameter(f"{names[0]}.weight"))
    assert all(torch.equal(ours.get_parameter(key), value) for key, value in expected.items())


def test_bytes_of_gemma() -> None:
    shape = small("2.0").card.shape
    plain = text_encoder_bytes(shape, Held("bf16"))
    assert plain == shape.text_encoder_bytes
    assert text_encoder_bytes(shape, Held("bf16", "int8")) == pytest.approx(0.56 * plain, rel=0.001)
    assert text_encoder_bytes(shape, Held("fp8", "int4")) == pytest.approx(0.395 * plain, rel=0.001)
    assert text_encoder_bytes(shape, Held("bf16", "elsewhere")) == 0


def test_a_text_encoder_on_another_device_stays_there() -> None:
    models = small("2.0")
    expected = embed(models, TEXTS)
    moved: list[str] = []
    models.residency.policy, models.residency.home = "staged", torch.device("meta")
    models.residency.device, models.device = torch.device("cpu"), torch.device("cpu")
    models.networks["text_encoder"].to = lambda device: moved.append(str(device))  # pyright: ignore
    models.networks["connectors"].to = lambda device: moved.append(str(device))  # pyright: ignore
    models.holding = Holding(text_device=torch.device("cpu", 0))
    assert models.text_device != models.device
    found = embed(models, TEXTS)
    assert torch.equal(found.video, expected.video)
    assert moved == ["cpu", "meta"], "only the connectors went to work and home again"
    assert models.held.text_encoder == "elsewhere"
