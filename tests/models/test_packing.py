"""Published weights that are packed: nvfp4 read value by value, and quantised tensors that do not belong together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ltx2.models.components import Holding, load
from ltx2.models.describe import Source
from ltx2.models.packing import block_scale_shape
from ltx2.models.precision import FP8, dequantise, fp8_linears, unpack_nvfp4
from ltx2.models.rename import official_key
from ltx2.models.singlefile import open_singlefile, prepare_component
from ltx2.models.small import small
from ltx2.spec.errors import CheckpointError
from tests.data_files import cosine
from tests.models.checkpoints import write_folder, write_singlefile

LAYER = "transformer_blocks.1.attn1.to_q"
KEY = official_key("transformer", LAYER)


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
    assert cosine(dequantise(layer.weight, layer.scale), expected) > 0.999


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
