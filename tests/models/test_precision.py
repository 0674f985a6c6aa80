"""fp8 linears: what they compute, which layers they hold, how they are made on load, and what is refused about them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ltx2.engine.engine import Engine
from ltx2.models.components import Holding, load
from ltx2.models.describe import Source
from ltx2.models.holding import layers, quantise_network
from ltx2.models.precision import (
    E4M3_MAX,
    FP8,
    Fp8Linear,
    clamped_share,
    clamping,
    count_anew,
    dequantise,
    fp8_linears,
    product,
    quantise_rows,
    use_calibration,
)
from ltx2.models.rename import component_of, diffusers_name, official_key
from ltx2.models.singlefile import load_component, open_singlefile
from ltx2.models.small import small
from ltx2.models.velocity import Stream, velocity
from ltx2.spec.errors import RefusedRequest
from ltx2.spec.events import Finished
from ltx2.spec.plan import resolve
from ltx2.spec.precision import block_weights, fp8_blocks
from ltx2.spec.request import request
from tests.data_files import DATA, cosine, largest_difference, tensors
from tests.models.checkpoints import write_folder, write_singlefile

CPU = torch.device("cpu")


def _fp8_file(hold: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    opened = open_singlefile(DATA / "fp8_transformer_2.3.safetensors")
    return load_component(opened, "transformer", dtype=dtype, device=CPU, hold=hold)  # pyright: ignore[reportArgumentType]


def _random_fp8(out: int, into: int, seed: int = 0) -> Fp8Linear:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, into, generator=generator) * torch.rand(out, 1, generator=generator)
    return Fp8Linear(**Fp8Linear.quantise(weight), bias=torch.randn(out, generator=generator))


@torch.inference_mode()
def _velocities(network: nn.Module) -> tuple[Tensor, Tensor]:
    """Both velocities of the official case t2v of 2.3."""
    values = tensors("transformer_2.3_cases")
    streams = []
    for side in ("video", "audio"):
        held = {name: values[f"t2v.{side}.{name}"] for name in ("latent", "timesteps", "sigma", "positions", "context")}
        streams.append(Stream(**held | {"timesteps": held["timesteps"][..., 0]}))
    return velocity(network, *streams)


def test_published_fp8_weights_are_kept_bit_for_bit_with_their_scales() -> None:
    network = _fp8_file("fp8", torch.bfloat16)
    stored = {
        diffusers_name(*place): value
        for key, value in tensors("fp8_transformer_2.3").items()
        if (place := component_of(key)) and place[0] == "transformer"
    }
    held = dict(fp8_linears(network))
    assert len(held) == 34 and all(name.startswith("transformer_blocks.1.") for name in held)
    for name, layer in held.items():
        assert torch.equal(layer.weight.view(torch.uint8), stored[f"{name}.weight"].view(torch.uint8)), name
        assert torch.equal(layer.scale, stored[f"{name}.weight_scale"].expand(layer.out_features)), name
        assert layer.input_scale is not None and torch.equal(layer.input_scale, stored[f"{name}.input_scale"])
        assert layer.bias is not None and layer.bias.dtype == torch.bfloat16
    assert network.get_parameter("transformer_blocks.0.attn1.to_q.weight").dtype == torch.bfloat16
    assert network.dtype == torch.bfloat16, "the network's own dtype is the one it computes in"


def test_fp8_linears_give_the_official_velocities_of_the_dequantised_weights() -> None:
    expected = tensors("fp8_expected")
    video, audio = _velocities(_fp8_file("fp8"))
    for ours, side in ((video, "video"), (audio, "audio")):
        official = expected[f"t2v.{side}.velocity"]
        # The official weights were rounded to bfloat16 after the scale; these never are.
        assert largest_difference(ours, official) <= 5e-3
        assert cosine(ours, official) >= 0.999999


def test_the_plain_form_equals_the_dequantised_weight() -> None:
    layer = _random_fp8(48, 32)
    x = torch.randn(3, 5, 32)
    weight = layer.weight.float() * layer.scale[:, None]
    assert largest_difference(layer(x), nn.functional.linear(x, weight, layer.bias)) <= 1e-5


def test_row_wise_products_stay_close_to_the_dequantised_weight() -> None:
    layer = _random_fp8(256, 512)
    x = torch.randn(2, 70, 512) * torch.rand(2, 70, 1) * 8
    rows = product(*quantise_rows(x), layer.weight, layer.scale, layer.bias, torch.float32)
    assert rows.shape == (2, 70, 256)
    # Two factors of three bits of mantissa: about 3.7 % of noise on each activation, none of it shared.
    error = (rows - layer(x)).norm() / layer(x).norm()
    assert 0.005 < error < 0.04
    assert cosine(rows, layer(x)) >= 0.999


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(4992, 4096, 4096), (1, 4096, 16384), (101, 2048, 32)])
def test_the_units_of_a_gpu_equal_the_plain_product(shape: tuple[int, int, int]) -> None:
    tokens, into, out = shape
    torch.manual_seed(0)
    layer = Fp8Linear(**Fp8Linear.quantise(torch.randn(out, into) * into**-0.5), bias=torch.randn(out).bfloat16())
    x = torch.randn(tokens, into).bfloat16()
    expected = product(*quantise_rows(x), layer.weight, layer.scale, layer.bias, torch.bfloat16)
    actual = layer.cuda()(x.cuda()).cpu()
    assert cosine(actual, expected) >= 0.9999
    assert (actual.float() - expected.float()).abs().max() <= 0.05 * expected.float().abs().max()


def test_quantised_weights_use_the_whole_range_of_every_channel() -> None:
    weight = torch.randn(16, 64) * torch.logspace(-6, 3, 16)[:, None]
    weight[3] = 0
    held = Fp8Linear.quantise(weight)
    assert held["weight"].dtype == FP8 and held["scale"].shape == (16,)
    used = held["weight"].float().abs().amax(1)
    assert torch.equal(used[used > 0], torch.full((15,), E4M3_MAX)) and used[3] == 0
    restored = dequantise(held["weight"], held["scale"], torch.float32)
    # Half a step of three bits of mantissa, and of the smallest subnormal number.
    slack = weight.abs() / 16 + held["scale"][:, None] * 2**-10
    assert bool(((restored - weight).abs() <= slack * 1.001).all())


def test_values_that_are_not_finite_stay_so() -> None:
    values, scales = quantise_rows(torch.tensor([[1.0, float("nan")], [1.0, 2.0]]))
    product_ = values.float() * scales
    assert not product_[0].isfinite().all() and product_[1].isfinite().all()


def test_calibrated_inputs_are_clamped_and_the_clamped_share_is_counted() -> None:
    layer = _random_fp8(16, 32)
    layer.input_scale = nn.Parameter(torch.tensor(0.01), requires_grad=False)
    network = nn.Sequential(layer)
    x = torch.full((4, 32), 1.0)
    x[:, :8] = 100.0  # beyond 448 * 0.01
    assert clamped_share(network) == {}
    use_calibration(network)
    result = network(x)
    assert result.isfinite().all()
    assert clamped_share(network) == {"0": 0.25}
    limited = network(x.clamp(max=4.48))
    assert torch.allclose(result, limited), "beyond the calibration counts as its end"
    assert clamped_share(network) == {"0": 0.125}
    assert (
        clamping(network)
        == "the file's activation scales clamped 0.12 of the activations of 1 layers, at most 0.12 in 0"
    )
    counts = layer.counts
    count_anew(network)
    assert layer.counts is counts and clamping(network) is None, "a graph goes on counting into the same tensor"
    use_calibration(network, static=False)
    assert clamped_share(network) == {} and not torch.allclose(network(x), result)


def test_what_is_clamped_is_counted_where_the_weights_are() -> None:
    """Also when they went there after the counting began, as networks do that wait on the CPU."""
    layer = _random_fp8(16, 32)
    layer.input_scale = nn.Parameter(torch.tensor(0.01), requires_grad=False)
    use_calibration(layer)
    assert "counts" not in layer.state_dict(), "it is none of a checkpoint's tensors"
    with torch.inference_mode():
        layer.counts = torch.ones_like(layer.counts) if layer.counts is not None else None
    count_anew(layer)
    assert layer.counts is not None and layer.counts.tolist() == [0, 0], "as they came there in a generation"
    layer.to("meta")
    assert layer(torch.ones(4, 32, device="meta")).is_meta


@pytest.mark.gpu
@torch.inference_mode()
def test_a_graph_goes_on_counting_what_it_clamps() -> None:
    device = torch.device("cuda")
    layer = _random_fp8(64, 32).to(device)
    layer.bias = None
    layer.input_scale = nn.Parameter(torch.tensor(0.01, device=device), requires_grad=False)
    x = torch.ones(4, 32, device=device, dtype=torch.bfloat16)
    x[:, :8] = 100.0
    use_calibration(layer)
    expected = layer(x)
    count_anew(layer)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = layer(x)
    for _ in range(3):
        graph.replay()
    assert torch.equal(result, expected) and layer.counts is not None
    assert layer.counts.tolist() == [3 * 4 * 8, 3 * x.numel()]


@torch.inference_mode()
def test_a_videos_report_says_what_the_files_scales_clamped(tmp_path: Path) -> None:
    models = small()
    tensors: dict[str, Tensor] = {}
    for name in layers(models.networks["transformer"], "fp8"):
        key = official_key("transformer", f"{name}.weight")
        held = Fp8Linear.quantise(models.networks["transformer"].get_parameter(f"{name}.weight"))
        scale = held["scale"].amax()
        tensors[key] = (dequantise(held["weight"], held["scale"], torch.float32) / scale).to(FP8)
        # So small that nearly all activations go beyond it.
        tensors |= {f"{key}_scale": scale, key.removesuffix("weight") + "input_scale": torch.tensor(1e-5)}
    file = write_singlefile(models, tmp_path / "fp8.safetensors", tensors)
    text = write_folder(models, tmp_path / "text")
    source = Source(str(file), kind="distilled", text_encoder=text)
    loaded = load(source, holding=Holding("fp8"), dtype=torch.float32)
    plan = resolve(request(prompt="a cat", preset="distilled", seed=1, width=64, height=64, frames=9), loaded.card)

    def warnings() -> tuple[str, ...]:
        *_, finished = Engine(loaded).generate(plan, tmp_path / "out.mp4")
        assert isinstance(finished, Finished)
        return finished.warnings

    assert not any("clamped" in line for line in warnings())
    loaded.scale_activations("static")
    first, second = ([line for line in warnings() if "clamped" in line] for _ in range(2))
    assert first == second, "counted anew for every video"
    assert 0.5 < float(first[0].split("clamped ")[1].split()[0]) < 1
    loaded.scale_activations("auto")
    assert not any("clamped" in line for line in warnings())
    with pytest.raises(RefusedRequest, match="static goes with fp8 only"):
        models.scale_activations("static")


def test_which_layers_are_held() -> None:
    assert list(fp8_blocks(48)) == list(range(1, 43)), "the published files of LTX-2 keep block 0 and 43 to 47"
    network = small("2.3").networks["transformer"]
    names = layers(network, "fp8")
    assert len(names) == 28 and all(name.startswith("transformer_blocks.1.") for name in names)
    assert not any("gate_logits" in name or "norm" in name for name in names)
    assert layers(network, "plain") == []


def test_counted_bytes_are_the_held_ones() -> None:
    models = small("2.3", dtype=torch.bfloat16)
    network, shape = models.networks["transformer"], models.card.shape
    held = sum(network.get_submodule(name).weight.numel() for name in layers(network, "fp8"))  # pyright: ignore
    assert held == block_weights(shape) * len(fp8_blocks(shape.layers))


def test_quantised_on_load_equals_quantised_in_place(tmp_path: Path) -> None:
    models = small("2.3")
    root = write_folder(models, tmp_path / "model")
    loaded = load(str(root), dtype=torch.bfloat16, holding=Holding("fp8")).networks["transformer"]
    plain = load(str(root), dtype=torch.bfloat16).networks["transformer"]
    quantise_network(plain, "fp8")
    ours, theirs = dict(fp8_linears(loaded)), dict(fp8_linears(plain))
    assert ours.keys() == theirs.keys() and len(ours) == 28
    for name, layer in ours.items():
        # From the file's float32, not from its bfloat16.
        assert (
            cosine(dequantise(layer.weight, layer.scale), dequantise(theirs[name].weight, theirs[name].scale)) > 0.999
        )
        assert not any(parameter.requires_grad or parameter.is_meta for parameter in layer.parameters())


def test_the_forward_of_a_quantised_network_stays_close() -> None:
    """The bound of docs/03: cosine of the velocity at least 0.998 per forward."""
    network = _fp8_file("plain")
    before = _velocities(network)
    whole = small("2.3").networks["transformer"]
    assert layers(whole, "fp8")
    quantise_network(network, "fp8")
    for name, linear in list(network.named_modules()):
        if isinstance(linear, nn.Linear) and ".attn1." in name:
            network.set_submodule(name, Fp8Linear(**Fp8Linear.quantise(linear.weight), bias=linear.bias))
    after = _velocities(network)
    for one, other in zip(before, after, strict=True):
        assert not torch.equal(one, other)
        assert cosine(one, other) >= 0.998


def test_fp8_is_refused_where_it_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA A100")
    with pytest.raises(RefusedRequest, match=r"A100 has no fp8 units.*bf16 works") as caught:
        load("tiny", device="cuda", holding=Holding("fp8"))
    assert caught.value.knob == "precision"
    with pytest.raises(RefusedRequest, match=r"cannot be merged into fp8.*added"):
        load("tiny", holding=Holding("fp8", loras="merged"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_float32_tables_of_a_bfloat16_file_keep_their_values(dtype: torch.dtype) -> None:
    """In float32 exactly; in bfloat16 rounded once, as the official code does where it uses them."""
    network = _fp8_file("plain", dtype)
    stored = tensors("fp8_transformer_2.3")
    tables = [key for key, value in stored.items() if "scale_shift_table" in key and value.dtype == torch.float32]
    assert len(tables) > 4
    for key in tables:
        place = component_of(key)
        assert place
        assert torch.equal(network.get_parameter(diffusers_name(*place)), stored[key].to(dtype)), key
