"""Writes the small random model to disk in the published forms, so that loading can be tested without any download."""

from __future__ import annotations

import json
import shutil
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


def write_split(models: Models, root: Path, transformer: str = "ltx-2.5-22b-distilled-transformer-bf16") -> Path:
    """The official files of 2.5 in their folders, in bfloat16; the transformer's file."""
    states = {
        name: {key: tensor.bfloat16().contiguous() for key, tensor in network.state_dict().items()}
        for name, network in models.networks.items()
    }
    official = {
        name: {official_key(name, key, OFFICIAL_LEVELS): tensor for key, tensor in states[name].items()}
        for name in ("transformer", "connectors", "vae", "audio_vae", "vocoder")
    }
    projection = {key: t for key, t in official["connectors"].items() if key.startswith("text_embedding_projection")}
    blocks = {key: t for key, t in official["connectors"].items() if key not in projection}
    files = {
        f"diffusion_models/{transformer}": (
            official["transformer"] | blocks,
            {"transformer": OFFICIAL_25["transformer"]},
        ),
        "vae/ltx-2.5-video-vae-conv-bf16": (
            {key.removeprefix("vae."): tensor for key, tensor in official["vae"].items()},
            {"vae": OFFICIAL_25["vae"]},
        ),
        "vae/ltx-2.5-audio-vae-bf16": (
            official["audio_vae"] | official["vocoder"],
            {"audio_vae": OFFICIAL_25["audio_vae"], "vocoder": OFFICIAL_25["vocoder"]},
        ),
    }
    gemma = {"ltx_version": "2.5.0", "gemma_version": GEMMA_VERSION}
    for name, (state, config) in files.items():
        file = root / f"{name}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"config": json.dumps(config | {"scheduler": None}), "model_version": "2.5.0"}
        save_file(state, file, metadata | {"gemma_source_checkpoint": json.dumps(gemma)})
    write_text_encoder(models, root / "text_encoders" / f"{TEXT_ENCODER_25}.safetensors", projection)
    return root / "diffusion_models" / f"{transformer}.safetensors"


def write_text_encoder(
    models: Models, file: Path, tensors: Mapping[str, Tensor] = MappingProxyType({}), **config: Any
) -> Path:
    """The official file of 2.5's text encoder, with its tokenizer as bytes; `config` replaces fields of its config."""
    file.parent.mkdir(parents=True, exist_ok=True)
    network: Any = models.networks["text_encoder"]
    state = {
        official_gemma4(key): tensor.bfloat16().contiguous()
        for key, tensor in network.state_dict().items()
        if key != "lm_head.weight"
    }
    folder = file.parent / "tokenizer"
    models.tokenizer.save_pretrained(folder)
    for name, key in (
        ("tokenizer.json", "tokenizer_json"),
        ("tokenizer_config.json", "hf_asset__tokenizer_config.json"),
    ):
        state[key] = torch.frombuffer(bytearray((folder / name).read_bytes()), dtype=torch.uint8)
    shutil.rmtree(folder)
    described = network.config.to_dict() | {"gemma_version": GEMMA_VERSION} | config
    save_file(state | dict(tensors), file, {"gemma_config": json.dumps(described)})
    return file


def official_gemma4(key: str) -> str:
    """A tensor of Gemma 4 as its official file calls it."""
    key = key.removeprefix("model.").replace("language_model.", "model.")
    key = key.replace("embed_vision.multimodal_embedder.", "multi_modal_projector.")
    return key.replace("embed_vision.", "vision_model.").replace("embed_audio.", "audio_projector.")


GEMMA_VERSION, TEXT_ENCODER_25 = "gemma4-12b-ltx-v1", "gemma4-12b-with-proj-ltx-2.5-bf16"
# The headers of the small 2.5 model, in the official spelling.
OFFICIAL_25: dict[str, Any] = OFFICIAL_CONFIG | {
    "transformer": OFFICIAL_CONFIG["transformer"] | {
        "apply_gated_attention": True, "cross_attention_adaln": True, "caption_proj_before_connector": True,
        "connector_apply_gated_attention": True, "audio_connector_attention_head_dim": 8, "ff_bias": False,
        "use_keyframes_abs_pos_embedding": True,
    },
    "vae": OFFICIAL_CONFIG["vae"] | {
        "spatial_padding_mode": "zeros",
        "decoder_blocks": [
            _res(), ["compress_space", {"multiplier": 2}], _res(), ["compress_time", {"multiplier": 2}],
            _res(), ["compress_all", {"multiplier": 1}], _res(), ["compress_all", {"multiplier": 2}], _res(),
        ],
    },
    "vocoder": {
        "vocoder": {
            "upsample_initial_channel": 64, "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4],
            "upsample_rates": [5, 2, 2, 2, 2, 2], "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3, 5]],
            "use_tanh_at_final": False, "use_bias_at_final": False,
        },
        "bwe": {
            "upsample_initial_channel": 32, "upsample_kernel_sizes": [12, 11, 4, 4, 4],
            "upsample_rates": [6, 5, 2, 2, 2], "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3, 5]],
            "apply_final_activation": False, "use_tanh_at_final": False, "use_bias_at_final": False, "hop_length": 80,
            "input_sampling_rate": 16000, "n_fft": 96, "num_mels": 16, "output_sampling_rate": 48000, "win_size": 96,
        },
    },
}  # fmt: skip
