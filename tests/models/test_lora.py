"""LoRA files: merged to the official bits, restored to the original bits, refused when they do not fit."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ltx2.models import lora as lora_module
from ltx2.models.components import Holding
from ltx2.models.lora import Lora, LowRank, added, load_lora, merged
from ltx2.models.rename import component_of, diffusers_name
from ltx2.models.singlefile import load_component, open_singlefile
from ltx2.models.small import small
from ltx2.models.velocity import Stream, velocity
from ltx2.spec.errors import CheckpointError
from tests.data_files import DATA, tensors

CASES = {
    "one_s1.0": (("lora_mixed_rank", 1.0),),
    "one_s0.8": (("lora_mixed_rank", 0.8),),
    "two_s0.5_s1.25": (("lora_mixed_rank", 0.5), ("lora_second", 1.25)),
}


def _transformer(dtype: torch.dtype):
    opened = open_singlefile(DATA / "transformer_2.3.safetensors")
    return load_component(opened, "transformer", dtype=dtype, device=torch.device("cpu"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_merge_equals_the_official_one_bit_for_bit_and_is_undone(case: str, dtype: torch.dtype) -> None:
    network = _transformer(dtype)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    loras = [(load_lora(DATA / f"{name}.safetensors"), strength) for name, strength in CASES[case]]
    expected = {
        diffusers_name(*place): value
        for key, value in tensors("lora_merged").items()
        if key.startswith(f"{case}/") and (place := component_of(key.partition("/")[2]))
    }
    assert len(expected) == 10
    with merged(network, loras):
        state = network.state_dict()
        for name, value in expected.items():
            assert torch.equal(state[name], value.to(dtype)), name
            assert not torch.equal(state[name], before[name])
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_weights_are_restored_when_the_block_fails() -> None:
    network = _transformer(torch.bfloat16)
    before = network.get_parameter("proj_in.weight").clone()
    with pytest.raises(RuntimeError), merged(network, [(load_lora(DATA / "lora_second.safetensors"), 1.0)]):
        assert not torch.equal(network.get_parameter("proj_in.weight"), before)
        raise RuntimeError
    assert torch.equal(network.get_parameter("proj_in.weight"), before)


def test_weights_are_restored_when_memory_runs_out_while_merging(monkeypatch: pytest.MonkeyPatch) -> None:
    network = _transformer(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    real, merges = lora_module.merge, []

    def merge(*arguments: Any) -> torch.Tensor:
        merges.append(arguments)
        if len(merges) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments)

    monkeypatch.setattr(lora_module, "merge", merge)
    with (
        pytest.raises(torch.OutOfMemoryError),
        merged(network, [(load_lora(DATA / "lora_mixed_rank.safetensors"), 1.0)]),
    ):
        raise AssertionError("it never began")
    assert len(merges) == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_strength_zero_changes_nothing() -> None:
    network = _transformer(torch.bfloat16)
    before = network.get_parameter("proj_in.weight").clone()
    with merged(network, [(load_lora(DATA / "lora_second.safetensors"), 0.0)]):
        assert torch.equal(network.get_parameter("proj_in.weight"), before)


def _file(folder: Path, keys: dict[str, tuple[int, int]]) -> Path:
    save_file({key: torch.ones(shape, dtype=torch.bfloat16) for key, shape in keys.items()}, folder / "l.safetensors")
    return folder / "l.safetensors"


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"lora_unet_down.alpha": (1, 1)}, "not an LTX-2 LoRA: lora_unet_down.alpha"),
        ({"vae.decoder.conv_in.lora_A.weight": (2, 4)}, "vae.decoder.conv_in"),
        ({"diffusion_model.proj.lora_A.weight": (2, 4)}, "lora_A and lora_B of proj"),
        (
            {"diffusion_model.proj.lora_A.weight": (2, 4), "diffusion_model.proj.lora_B.weight": (4, 3)},
            "do not belong together",
        ),
        ({}, "is empty"),
    ],
)
def test_files_that_are_no_lora_are_refused(tmp_path: Path, keys: dict[str, tuple[int, int]], complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        load_lora(_file(tmp_path, keys))


@pytest.mark.parametrize(
    ("layer", "shape", "complaint"),
    [
        ("transformer_blocks.7.attn1.to_q", (32, 32), "no layer transformer_blocks.7.attn1.to_q"),
        ("transformer_blocks.0.attn1.to_q", (32, 16), r"\[32, 32\] here and \[32, 16\]"),
    ],
)
def test_layers_that_do_not_fit_are_refused_before_anything_changes(
    tmp_path: Path, layer: str, shape: tuple[int, int], complaint: str
) -> None:
    network = small("2.0").networks["transformer"]
    before = network.get_parameter("proj_in.weight").clone()
    keys = {
        "diffusion_model.patchify_proj.lora_A.weight": (2, 8),
        "diffusion_model.patchify_proj.lora_B.weight": (32, 2),
        f"diffusion_model.{layer}.lora_A.weight": (2, shape[1]),
        f"diffusion_model.{layer}.lora_B.weight": (shape[0], 2),
    }
    with pytest.raises(CheckpointError, match=complaint), merged(network, [(load_lora(_file(tmp_path, keys)), 1.0)]):
        pass
    assert torch.equal(network.get_parameter("proj_in.weight"), before)


def test_the_text_projection_goes_to_the_connectors(tmp_path: Path) -> None:
    keys = {
        "text_embedding_projection.aggregate_embed.lora_A.weight": (2, 96),
        "text_embedding_projection.aggregate_embed.lora_B.weight": (32, 2),
    }
    lora = load_lora(_file(tmp_path, keys))
    assert list(lora.layers) == ["connectors"]
    connectors = small("2.0").networks["connectors"]
    before = connectors.get_parameter("text_proj_in.weight").clone()
    with merged(connectors, [(lora, 1.0)], "connectors"):
        assert not torch.equal(connectors.get_parameter("text_proj_in.weight"), before)


def test_models_merge_their_distilled_lora_for_a_stage_only() -> None:
    models = small("2.3")
    weight = models.networks["transformer"].get_parameter("transformer_blocks.0.attn1.to_v.weight")
    before = weight.clone()
    with models.lora(0.0):
        assert torch.equal(weight, before)
    with models.lora(0.5), models.use("transformer"):
        assert not torch.equal(weight, before)
    assert torch.equal(weight, before)


def test_a_missing_distilled_lora_is_refused() -> None:
    models = small("2.0")
    models.distilled_lora = None
    with pytest.raises(CheckpointError, match="distilled LoRA"), models.lora(1.0):
        pass


@pytest.mark.parametrize("case", CASES)
def test_added_at_run_time_equals_the_official_merge_within_rounding(case: str) -> None:
    """In float32 against the merged weights in bfloat16: what differs is their rounding alone."""
    network = _transformer(torch.float32)
    loras = [(load_lora(DATA / f"{name}.safetensors"), strength) for name, strength in CASES[case]]
    layer = "transformer_blocks.0.ff.net.2"
    expected = {
        diffusers_name(*place): value.float()
        for key, value in tensors("lora_merged").items()
        if key.startswith(f"{case}/") and (place := component_of(key.partition("/")[2]))
    }
    touched = [name.removesuffix(".weight") for name in expected]
    assert layer in touched
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modules = dict(network.named_modules())
    with added(network, loras):
        for name in touched:
            wrapped = network.get_submodule(name)
            assert isinstance(wrapped, LowRank) and wrapped.base is modules[name]
            weight, base = expected[f"{name}.weight"], before[f"{name}.weight"]
            x = torch.randn(2, 7, weight.shape[1])
            ours = wrapped(x) - modules[name](x)
            theirs = torch.nn.functional.linear(x, weight - base)
            # The merged sum is rounded to 8 bits, once for W and once for W + delta.
            slack = 2**-7 * torch.nn.functional.linear(x.abs(), weight.abs() + base.abs())
            assert bool(((ours - theirs).abs() <= slack).all()), name
            assert not torch.allclose(ours, torch.zeros_like(ours), atol=1e-4)
    assert dict(network.named_modules()) == modules
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_added_gives_the_velocities_of_merged() -> None:
    loras = [(load_lora(DATA / "lora_mixed_rank.safetensors"), 0.8), (load_lora(DATA / "lora_second.safetensors"), 0.5)]
    network = _transformer(torch.float32)
    plain = _velocities(network)
    with added(network, loras):
        ours = _velocities(network)
    with merged(network, loras):
        theirs = _velocities(network)
    for one, other, without in zip(ours, theirs, plain, strict=True):
        assert (one - other).norm() < 0.02 * (without - other).norm() + 0.01 * other.norm()
        assert (one - without).norm() > 0.05 * without.norm(), "the LoRA matters"


def test_added_works_on_fp8_weights_and_merging_into_them_is_refused() -> None:
    opened = open_singlefile(DATA / "fp8_transformer_2.3.safetensors")
    network = load_component(opened, "transformer", dtype=torch.float32, device=torch.device("cpu"), hold="fp8")
    plain = load_component(opened, "transformer", dtype=torch.float32, device=torch.device("cpu"))
    loras = [(load_lora(DATA / "lora_mixed_rank.safetensors"), 1.0)]
    with pytest.raises(CheckpointError, match=r"held in fp8.*add it at run time"), merged(network, loras):
        pass
    with added(network, loras), added(plain, loras):
        ours, theirs = _velocities(network), _velocities(plain)
    for one, other in zip(ours, theirs, strict=True):
        # The plain network's fp8 weights were rounded to bfloat16.
        assert (one - other).norm() < 0.01 * other.norm()


def test_added_layers_are_unwrapped_when_the_block_fails() -> None:
    network = small("2.0").networks["transformer"]
    lora = small("2.0").distilled_lora
    assert lora
    with pytest.raises(RuntimeError), added(network, [(lora, 1.0)]):
        raise RuntimeError
    assert not any(isinstance(module, LowRank) for module in network.modules())
    strange = replace(lora, layers={"transformer": lora.layers["transformer"] | {"nowhere": (torch.ones(1, 2),) * 2}})
    with pytest.raises(CheckpointError, match="no layer nowhere"), added(network, [(strange, 1.0)]):
        pass
    with added(network, [(lora, 0.0)]):
        assert not any(isinstance(module, LowRank) for module in network.modules())


def test_models_add_to_fp8_and_where_they_are_told_to() -> None:
    assert [Holding.named(*words).merges for words in (("bf16",), ("fp32",), ("fp8",))] == [True, True, False]
    assert not Holding.named("bf16", loras="added").merges
    models = small("2.3")
    models.holding = Holding(loras="added")
    weight = models.networks["transformer"].get_parameter("transformer_blocks.0.attn1.to_v.weight")
    before = weight.clone()
    with models.lora(0.5), models.use("transformer") as transformer:
        assert torch.equal(weight, before)
        assert isinstance(transformer.get_submodule("transformer_blocks.0.attn1.to_v"), LowRank)
    assert not any(isinstance(module, LowRank) for module in models.networks["transformer"].modules())


def test_switching_a_lora_costs_milliseconds_at_full_depth() -> None:
    """48 blocks of 28 touched layers, as the distilled LoRA has them; wide layers would not change it: nothing is copied."""

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = torch.nn.ModuleDict({f"to_{number}": torch.nn.Linear(8, 8) for number in range(28)})

    network = torch.nn.Module()
    network.blocks = torch.nn.ModuleList(Block() for _ in range(48))
    pair = (torch.ones(1, 8), torch.ones(8, 1))
    layers = {name: pair for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)}
    assert len(layers) == 1344
    lora = Lora("wide", {"transformer": layers}, {})
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        with added(network, [(lora, 1.0)]):
            times.append(time.perf_counter() - begin)
    # 10 to 20 ms on one busy core; generous, since this machine may be slow.
    assert min(times) < 0.25


@torch.inference_mode()
def _velocities(network: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    values = tensors("transformer_2.3_cases")
    streams = []
    for side in ("video", "audio"):
        held = {name: values[f"t2v.{side}.{name}"] for name in ("latent", "timesteps", "sigma", "positions", "context")}
        streams.append(Stream(**held | {"timesteps": held["timesteps"][..., 0]}))
    return velocity(network, *streams)
