"""LoRA files: merged to the official bits, restored to the original bits, refused when they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ltx2.models.lora import load_lora, merged
from ltx2.models.rename import component_of, diffusers_name
from ltx2.models.singlefile import load_component, open_singlefile
from ltx2.models.small import small
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
