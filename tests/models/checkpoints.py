"""Writes the small random model to disk in the published forms, so that loading can be tested without any download."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ltx2.models.components import Models
from ltx2.models.lora import Lora
from ltx2.models.rename import official_key
from ltx2.models.weights import FOLDERS

OFFICIAL_LEVELS = 4


def write_folder(models: Models, root: Path) -> Path:
    """A Diffusers-format folder as `save_pretrained` writes it, with tokenizer and scheduler."""
    for name, network in models.networks.items():
        network.save_pretrained(root / FOLDERS[name])  # pyright: ignore[reportCallIssue]
    models.tokenizer.save_pretrained(root / "tokenizer")
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text('{"use_dynamic_shifting": true}')
    if models.distilled_lora:
        write_lora(models.distilled_lora, root / "distilled_lora.safetensors")
    return root


def write_lora(lora: Lora, file: Path) -> Path:
    """An official LoRA file: `diffusion_model.<module>.lora_A.weight`."""
    state: dict[str, Tensor] = {}
    for layer, (down, up) in lora.layers["transformer"].items():
        key = official_key("transformer", layer).removeprefix("model.")
        state |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    save_file(state, file)
    return file


def write_singlefile(
    models: Models,
    file: Path,
    tensors: Mapping[str, Tensor] = MappingProxyType({}),
    without: tuple[str, ...] = (),
    **metadata: str,
) -> Path:
    """An official combined file (2.0 form) of everything but text encoder and upsampler, in bfloat16.

    `tensors` are added or replace others, `without` are left out, `metadata` replaces the header's fields.
    """
    state = {
        official_key(name, key, OFFICIAL_LEVELS): tensor.bfloat16()
        for name in ("transformer", "connectors", "vae", "audio_vae", "vocoder")
        for key, tensor in models.networks[name].state_dict().items()
    }
    state |= tensors
    state = {key: tensor.contiguous() for key, tensor in state.items() if key not in without}
    save_file(state, file, {"config": json.dumps(OFFICIAL_CONFIG), "model_version": "2.0.0"} | metadata)
    return file


def write_upsampler(models: Models, file: Path) -> Path:
    """An official upscaler file: bare names, its config at the top level of the header's `config`."""
    config = {
        "in_channels": 8, "mid_channels": 32, "num_blocks_per_stage": 1, "dims": 3, "spatial_upsample": True,
        "temporal_upsample": False, "spatial_scale": 2.0, "rational_resampler": True,
    }  # fmt: skip
    state = {key: tensor.bfloat16().contiguous() for key, tensor in models.networks["upsampler"].state_dict().items()}
    save_file(state, file, {"config": json.dumps(config)})
    return file


def _res(layers: int = 1) -> list[Any]:
    return ["res_x", {"num_layers": layers}]


# The header of the small 2.0 model, in the official spelling.
OFFICIAL_CONFIG: dict[str, Any] = {
    "transformer": {
        "num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32, "in_channels": 8,
        "out_channels": 8, "audio_in_channels": 16, "audio_out_channels": 16, "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 8, "audio_cross_attention_dim": 16, "num_layers": 3, "caption_channels": 32,
        "rope_type": "split", "frequencies_precision": "float64", "av_ca_timestep_scale_multiplier": 1000.0,
        "timestep_scale_multiplier": 1000, "causal_temporal_positioning": True, "connector_num_attention_heads": 2,
        "connector_attention_head_dim": 16, "connector_num_layers": 1, "connector_num_learnable_registers": 16,
    },
    "vae": {
        "latent_channels": 8, "encoder_base_channels": 8, "decoder_base_channels": 8,
        "encoder_blocks": [
            _res(), ["compress_space_res", {"multiplier": 2}], _res(), ["compress_time_res", {"multiplier": 2}],
            _res(), ["compress_all_res", {"multiplier": 1}], _res(), ["compress_all_res", {"multiplier": 1}], _res(),
        ],
        "decoder_blocks": [
            _res(), ["compress_all", {"multiplier": 2, "residual": True}],
            _res(), ["compress_all", {"multiplier": 2, "residual": True}],
            _res(), ["compress_all", {"multiplier": 2, "residual": True}], _res(),
        ],
    },
    "audio_vae": {
        "model": {"params": {"sampling_rate": 16000, "ddconfig": {
            "ch": 16, "out_ch": 2, "ch_mult": [1, 2, 4], "num_res_blocks": 1, "attn_resolutions": [],
            "in_channels": 2, "resolution": 256, "z_channels": 4, "mel_bins": 16,
        }}},
        "preprocessing": {"stft": {"hop_length": 160, "causal": True}, "mel": {"n_mel_channels": 16}},
    },
    "vocoder": {
        "upsample_initial_channel": 64, "upsample_kernel_sizes": [16, 15, 8, 4, 4], "upsample_rates": [6, 5, 2, 2, 2],
        "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3, 5]], "stereo": True,
    },
}  # fmt: skip


def equal_states(one: torch.nn.Module, other: torch.nn.Module, dtype: torch.dtype | None = None) -> bool:
    """Whether two networks hold the same values under the same names, the first one cast to `dtype` before."""
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(
        torch.equal(left[key].to(dtype or left[key].dtype).float(), right[key].float()) for key in left
    )
