"""A small model with random weights, all in memory, in the forms of 2.0, 2.3 and 2.5: for tests of everything above.

It has the real geometry (32x32 pixels and 8 frames a video latent, 25 audio latents a second, registers in place of
padding), so every rule of shapes is the one of the published models.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GemmaTokenizer

from ltx2.models.components import Models
from ltx2.models.describe import audio_rate, shape_of
from ltx2.models.lora import Lora
from ltx2.models.randoms import fill_randomly
from ltx2.models.residency import Policy, Residency
from ltx2.models.weights import build
from ltx2.spec.card import Card, Version

Config = dict[str, Any]
TEXT_TOKENS = 64
LAYERS = 3


def small(
    version: Version = "2.0",
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
    residency: Policy = "resident",
) -> Models:
    """Build the small model. The same seed gives the same weights; a random LoRA stands for the distilled one."""
    device = torch.device(device)
    configs = small_configs(version)
    networks = {
        name: fill_randomly(build(name, config), dtype=dtype, device=device, seed=seed + number)
        for number, (name, config) in enumerate(configs.items())
    }
    if version != "2.0":
        # Random weights would drive both generators far beyond their clamps to -1..1, which would hide differences.
        for generator in ("vocoder", "bwe_generator"):
            networks["vocoder"].get_parameter(f"{generator}.conv_out.weight").mul_(0.005)
    counts = [sum(p.numel() * p.element_size() for p in network.parameters()) for network in networks.values()]
    card = Card(
        name=f"small-{version}",
        version=version,
        family=version,
        output_sampling_rate=configs["vocoder"]["output_sampling_rate"],
        text_tokens=TEXT_TOKENS,
        stg_blocks=(LAYERS - 1,),
        distilled_lora=True,
        upsampler=True,
        audio_latents_per_second=audio_rate(configs["audio_vae"]),
        shape=shape_of(configs, (counts[2], counts[0], sum(counts) - counts[0] - counts[2])),
    )
    lora = _random_lora(networks["transformer"], seed)
    return Models(card, _tokenizer(), networks, device, dtype, Residency(residency, device), distilled_lora=lora)


def small_configs(version: Version) -> dict[str, Config]:
    """Configs of every component, in the order text encoder, connectors, transformer, VAEs, vocoder, upsampler."""
    newer = version != "2.0"
    return {
        "text_encoder": _gemma4() if version == "2.5" else _text_encoder(),
        "connectors": _connectors(newer),
        "transformer": _transformer(newer)
        | ({"ff_bias": False, "use_keyframes_abs_pos_embedding": True} if version == "2.5" else {}),
        "vae": _vae(newer),
        "audio_vae": {
            "base_channels": 16, "ch_mult": [1, 2, 4], "num_res_blocks": 1, "latent_channels": 4, "mel_bins": 16,
            "sample_rate": 16000, "mel_hop_length": 160,
        },
        "vocoder": _vocoder(newer),
        "upsampler": {
            "in_channels": 8, "mid_channels": 32, "num_blocks_per_stage": 1, "use_rational_resampler": not newer,
        },
    }  # fmt: skip


def _text_encoder() -> Config:
    return {
        "text_config": {
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": 16, "intermediate_size": 64, "vocab_size": len(_vocabulary()), "sliding_window": 512,
        },
        "vision_config": {
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16,
            "image_size": 28, "patch_size": 14, "vision_use_head": False,
        },
        "mm_tokens_per_image": 1, "boi_token_index": 5, "eoi_token_index": 6, "image_token_index": 7,
    }  # fmt: skip


def _gemma4() -> Config:
    """A sliding and a full layer: the full one has one head for keys, wider ones, and no values of its own."""
    return {
        "architectures": ["Gemma4UnifiedForConditionalGeneration"],
        "text_config": {
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
            "head_dim": 16, "global_head_dim": 32, "num_global_key_value_heads": 1, "attention_k_eq_v": True,
            "intermediate_size": 64, "vocab_size": len(_vocabulary()), "sliding_window": 512,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "vision_config": {"mm_embed_dim": 32, "mm_posemb_size": 8, "output_proj_dims": 32, "patch_size": 4},
        "audio_config": {"audio_embed_dim": 16},
        "boi_token_id": 5, "eoi_token_id": 6, "image_token_id": 7, "video_token_id": 4, "audio_token_id": 3,
    }  # fmt: skip


def _connectors(newer: bool) -> Config:
    config: Config = {"caption_channels": 32, "text_proj_in_factor": 3, "rope_type": "split", "rope_theta": 10000.0}
    for stream, heads, dim in (("video", 2, 16), ("audio", 2, 8 if newer else 16)):
        config |= {
            f"{stream}_connector_num_attention_heads": heads,
            f"{stream}_connector_attention_head_dim": dim,
            f"{stream}_connector_num_layers": 1,
            f"{stream}_connector_num_learnable_registers": 16,
            f"{stream}_gated_attn": newer,
        }
    if newer:
        config |= {"per_modality_projections": True, "proj_bias": True, "video_hidden_dim": 32, "audio_hidden_dim": 16}
    return config


def _transformer(newer: bool) -> Config:
    return {
        "in_channels": 8, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 16,
        "cross_attention_dim": 32, "audio_in_channels": 16, "audio_out_channels": 16, "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 8, "audio_cross_attention_dim": 16, "num_layers": LAYERS, "caption_channels": 32,
        "rope_type": "split", "use_prompt_embeddings": not newer, "gated_attn": newer, "cross_attn_mod": newer,
        "audio_gated_attn": newer, "audio_cross_attn_mod": newer, "perturbed_attn": True,
    }  # fmt: skip


def _vae(newer: bool) -> Config:
    config: Config = {
        "latent_channels": 8, "block_out_channels": [16, 32, 32, 32], "layers_per_block": [1, 1, 1, 1, 1],
        "decoder_block_out_channels": [16, 32, 64], "decoder_layers_per_block": [1, 1, 1, 1],
        "decoder_causal": False, "spatial_compression_ratio": 32, "temporal_compression_ratio": 8,
    }  # fmt: skip
    if newer:
        config |= {
            "decoder_block_out_channels": [16, 32, 32, 64], "decoder_layers_per_block": [1, 1, 1, 1, 1],
            "decoder_spatio_temporal_scaling": [True] * 4, "decoder_inject_noise": [False] * 5,
            "upsample_type": ["spatiotemporal", "spatiotemporal", "temporal", "spatial"],
            "upsample_factor": [2, 2, 1, 2], "upsample_residual": [False] * 4, "decoder_spatial_padding_mode": "zeros",
        }  # fmt: skip
    return config


def _vocoder(newer: bool) -> Config:
    if not newer:
        return {
            "in_channels": 32, "hidden_channels": 64, "upsample_kernel_sizes": [16, 15, 8, 4, 4],
            "upsample_factors": [6, 5, 2, 2, 2], "resnet_kernel_sizes": [3], "resnet_dilations": [[1, 3, 5]],
            "output_sampling_rate": 24000,
        }  # fmt: skip
    return {
        "_class_name": "LTX2VocoderWithBWE", "in_channels": 32, "hidden_channels": 64,
        "resnet_kernel_sizes": [3], "resnet_dilations": [[1, 3, 5]], "bwe_in_channels": 32, "bwe_hidden_channels": 32,
        "bwe_resnet_kernel_sizes": [3], "bwe_resnet_dilations": [[1, 3, 5]], "filter_length": 96, "window_length": 96,
        "num_mel_channels": 16, "input_sampling_rate": 16000, "output_sampling_rate": 48000,
    }  # fmt: skip


def _vocabulary() -> dict[str, int]:
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<boi>", "<eoi>", "<image>", "▁"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)] + [chr(code) for code in range(33, 127)]
    return {piece: number for number, piece in enumerate(pieces)}


def _tokenizer() -> GemmaTokenizer:
    tokenizer = GemmaTokenizer(vocab=_vocabulary(), merges=[], model_max_length=TEXT_TOKENS)
    tokenizer.padding_side = "left"
    tokenizer.add_bos_token = True
    tokenizer.update_post_processor()
    return tokenizer


def _random_lora(transformer: nn.Module, seed: int) -> Lora:
    generator = torch.Generator().manual_seed(seed)
    layers: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and name.endswith("to_v"):
            down = torch.randn(2, module.in_features, generator=generator) * module.in_features**-0.5
            up = torch.randn(module.out_features, 2, generator=generator) * 0.3
            layers[name] = (down.bfloat16(), up.bfloat16())
    return Lora("random", {"transformer": layers}, {})
