"""fp8 linears, published fp8 and nvfp4 weights, and what is refused about them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ltx2.engine.engine import Engine
from ltx2.models.components import Holding, load
from ltx2.models.describe import Source
from ltx2.models.holding import layers, quantise_network
from ltx2.models.packing import block_scale_shape
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
    unpack_nvfp4,
    use_calibration,
)
from ltx2.models.rename import component_of, diffusers_name, official_key
from ltx2.models.singlefile import load_component, open_singlefile, prepare_component
from ltx2.models.small import small
from ltx2.models.velocity import Stream, velocity
from ltx2.spec.errors import CheckpointError, RefusedRequest
from ltx2.spec.events import Finished
from ltx2.spec.plan import resolve
from ltx2.spec.precision import block_weights, fp8_blocks
from ltx2.spec.request import request
from tests.data_files import DATA, largest_difference, tensors
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


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(nn.functional.cosine_similarity(one.double().flatten(), other.double().flatten(), dim=0))


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
        assert _cosine(ours, official) >= 0.999999


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
    assert _cosine(rows, layer(x)) >= 0.999


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(4992, 4096, 4096), (1, 4096, 16384), (101, 2048, 32)])
def test_the_units_of_a_gpu_equal_the_plain_product(shape: tuple[int, int, int]) -> None:
    tokens, into, out = shape
    torch.manual_seed(0)
    layer = Fp8Linear(**Fp8Linear.quantise(torch.randn(out, into) * into**-0.5), bias=torch.randn(out).bfloat16())
    x = torch.randn(tokens, into).bfloat16()
    expected = product(*quantise_rows(x), layer.weight, layer.scale, layer.bias, torch.bfloat16)
    actual = layer.cuda()(x.cuda()).cpu()
    assert _cosine(actual, expected) >= 0.9999
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
            _cosine(dequantise(layer.weight, layer.scale), dequantise(theirs[name].weight, theirs[name].scale)) > 0.999
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
        assert _cosine(one, other) >= 0.998


def test_fp8_is_refused_where_it_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA A100")
    with pytest.raises(RefusedRequest, match=r"A100 has no fp8 units.*bf16 works") as caught:
        load("tiny", device="cuda", holding=Holding("fp8"))
    assert caught.value.knob == "precision"
    with pytest.raises(RefusedRequest, match=r"cannot be merged into fp8.*added"):
        load("tiny", holding=Holding("fp8", loras="merged"))


# nvfp4: a writer of its own, value by value, from the description of the layout.


def write_nvfp4(weight: Tensor) -> dict[str, Tensor]:
    """W [out, in] -> weight uint8, weight_scale e4m3 in tiles, weight_scale_2; the values it keeps under `values`."""
    steps = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    rows, columns = weight.shape
    whole = max(float(weight.abs().max()) / 2688, 1e-12)
    blocks = columns // 16
    high, wide = -(-rows // 128) * 128, -(-blocks // 4) * 4
    packed, kept = torch.zeros(rows, columns // 2, dtype=torch.uint8), torch.zeros(rows, columns)
    scales = torch.zeros(high * wide)
    for row in range(rows):
        for block in range(blocks):
            part = weight[row, block * 16 : block * 16 + 16]
            scale = float((part.abs().max() / 6 / whole).clamp(max=448).to(FP8))
            tile = (row // 128) * (wide // 4) + block // 4
            scales[tile * 512 + (row % 32) * 16 + (row % 128) // 32 * 4 + block % 4] = scale
            for column, value in enumerate(part.tolist()):
                size = abs(value) / (scale * whole) if scale else 0.0
                code = min(range(8), key=lambda step: abs(steps[step] - size))
                sign = 8 if value < 0 else 0
                place = block * 16 + column
                packed[row, place // 2] |= (sign | code) << (0 if place % 2 else 4)
                kept[row, place] = (-1 if sign else 1) * steps[code] * scale * whole
    return {
        "weight": packed, "weight_scale": scales.reshape(high, wide).to(FP8),
        "weight_scale_2": torch.tensor(whole), "input_scale": torch.tensor(0.01), "values": kept,
    }  # fmt: skip


@pytest.mark.parametrize("shape", [(16, 32), (130, 96)])
def test_nvfp4_written_value_by_value_is_read_back(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.02
    stored = write_nvfp4(weight)
    assert stored["weight_scale"].shape == block_scale_shape(tuple(stored["weight"].shape))
    read = unpack_nvfp4(stored["weight"], stored["weight_scale"], stored["weight_scale_2"])
    assert read.dtype == torch.bfloat16
    assert torch.equal(read, stored["values"].bfloat16())
    assert (read.float() - weight).norm() / weight.norm() < 0.12


LAYER = "transformer_blocks.1.attn1.to_q"
KEY = official_key("transformer", LAYER)


def _nvfp4_tensors(layer: str, weight: Tensor, without: str = "") -> dict[str, Tensor]:
    stored = write_nvfp4(weight)
    base = official_key("transformer", layer)
    return {f"{base}.{leaf}": value for leaf, value in stored.items() if leaf not in ("values", without)}


def test_a_file_with_nvfp4_weights_loads_as_what_they_stand_for(tmp_path: Path) -> None:
    models = small("2.0")
    root = write_folder(models, tmp_path / "model")
    weight = models.networks["transformer"].get_parameter(f"{LAYER}.weight")
    file = write_singlefile(models, tmp_path / "a-fp4.safetensors", _nvfp4_tensors(LAYER, weight))
    loaded = load(Source(str(file), text_encoder=root), dtype=torch.bfloat16)
    expected = write_nvfp4(weight)["values"].bfloat16()
    assert torch.equal(loaded.networks["transformer"].get_parameter(f"{LAYER}.weight"), expected)
    held = load(Source(str(file), text_encoder=root), dtype=torch.bfloat16, holding=Holding("fp8"))
    layer = dict(fp8_linears(held.networks["transformer"]))[LAYER]
    assert _cosine(dequantise(layer.weight, layer.scale), expected) > 0.999


@pytest.mark.parametrize(
    ("tensors_", "complaint"),
    [
        (_nvfp4_tensors(LAYER, torch.randn(32, 32), "weight_scale"), "quantised without its weight_scale$"),
        (_nvfp4_tensors(LAYER, torch.randn(32, 32), "weight_scale_2"), "quantised without its weight_scale_2"),
        (
            _nvfp4_tensors(LAYER, torch.randn(32, 32)) | {f"{KEY}.weight_scale": torch.ones(32, 2)},
            r"weight_scale is F32 \[32, 2\] instead of F8_E4M3 \[128, 4\]",
        ),
        (_nvfp4_tensors(LAYER, torch.randn(32, 64)), r"attn1.to_q.weight \[32, 64\] instead of \[32, 32\]"),
        (
            {f"{KEY}.weight": torch.ones(32, 32, dtype=torch.int8)},
            r"1 of an unexpected dtype: transformer_blocks.1.attn1.to_q.weight I8",
        ),
        (
            {f"{KEY}.weight": torch.ones(32, 16, dtype=torch.uint8)},
            "packed .uint8. without its weight_scale and weight_scale_2",
        ),
        (
            {
                f"{KEY}.weight": torch.ones(32, 32).to(FP8),
                f"{KEY}.weight_scale": torch.ones(7),
            },
            r"weight_scale has the shape \[7\]",
        ),
        (
            {f"{KEY}.weight_scale": torch.ones(())},
            "weight_scale, but no fp8 or nvfp4 weight that it belongs to",
        ),
        ({f"{KEY}.comfy_quant": torch.ones(4)}, "rotated int8.*take the bf16, fp8"),
    ],
)  # fmt: skip
def test_quantised_tensors_that_do_not_belong_together_are_refused(
    tmp_path: Path, tensors_: dict[str, Tensor], complaint: str
) -> None:
    file = write_singlefile(small("2.0"), tmp_path / "model.safetensors", tensors_)
    with pytest.raises(CheckpointError, match=complaint):
        prepare_component(open_singlefile(file), "transformer", dtype=torch.bfloat16)


def test_fp8_weights_in_a_folder_are_refused_without_their_scales(tmp_path: Path) -> None:
    """A plain cast of an fp8 file to bf16 is what made the published files glitch elsewhere."""
    root = write_folder(small("2.0"), tmp_path / "model")
    file = root / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    name = f"{LAYER}.weight"
    save_file(state | {name: state[name].to(FP8)}, file)
    with pytest.raises(CheckpointError, match=r"to_q\.weight is fp8 without its weight_scale"):
        load(str(root))
    save_file(state | {name: state[name].to(FP8), f"{LAYER}.weight_scale": torch.tensor(0.5)}, file)
    loaded = load(str(root), dtype=torch.bfloat16).networks["transformer"].get_parameter(name)
    assert torch.equal(loaded, (state[name].to(FP8).float() * 0.5).bfloat16())


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
