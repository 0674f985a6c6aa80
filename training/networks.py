"""The networks of the embedded model at their small sizes, built from the Diffusers and transformers classes, and the
on-disk layout (one safetensors file per network) through which the training stages hand them to each other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

LATENT_CHANNELS = 32
AUDIO_LATENT_CHANNELS = 3
MEL_BINS = 32
AUDIO_TOKEN_DIM = AUDIO_LATENT_CHANNELS * MEL_BINS // 4
MEL_RATE = 16000
OUTPUT_RATE = 16000
TEXT_WIDTH = 128
TEXT_LAYERS = 3
TEXT_POSITIONS = 128
VIDEO_HEADS, VIDEO_HEAD_DIM = 4, 56
AUDIO_HEADS, AUDIO_HEAD_DIM = 4, 28
LAYERS = 6

VIDEO_VAE = {
    "latent_channels": LATENT_CHANNELS,
    "block_out_channels": (64, 64, 128, 128),
    "layers_per_block": (1, 1, 1, 1, 1),
    "decoder_block_out_channels": (32, 64, 128),
    "decoder_layers_per_block": (2, 2, 2, 2),
    "upsample_residual": (True, True, True),
    "upsample_factor": (2, 2, 2),
    "decoder_spatial_padding_mode": "zeros",
    "decoder_causal": False,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
AUDIO_VAE = {
    "base_channels": AUDIO_TOKEN_DIM,
    "latent_channels": AUDIO_LATENT_CHANNELS,
    "mel_bins": MEL_BINS,
    "num_res_blocks": 1,
    "sample_rate": MEL_RATE,
    "mel_hop_length": 160,
}
VOCODER = {
    "in_channels": 2 * MEL_BINS,
    "hidden_channels": 128,
    "upsample_kernel_sizes": [11, 8, 8, 4],
    "upsample_factors": [5, 4, 4, 2],
    "resnet_kernel_sizes": [3, 7],
    "resnet_dilations": [[1, 3, 5], [1, 3, 5]],
    "output_sampling_rate": OUTPUT_RATE,
}
TRANSFORMER = {
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "num_attention_heads": VIDEO_HEADS,
    "attention_head_dim": VIDEO_HEAD_DIM,
    "cross_attention_dim": VIDEO_HEADS * VIDEO_HEAD_DIM,
    "audio_in_channels": AUDIO_TOKEN_DIM,
    "audio_out_channels": AUDIO_TOKEN_DIM,
    "audio_num_attention_heads": AUDIO_HEADS,
    "audio_attention_head_dim": AUDIO_HEAD_DIM,
    "audio_cross_attention_dim": AUDIO_HEADS * AUDIO_HEAD_DIM,
    "num_layers": LAYERS,
    "caption_channels": TEXT_WIDTH,
    "rope_type": "split",
    "perturbed_attn": True,
}
CONNECTORS = {
    "caption_channels": TEXT_WIDTH,
    "text_proj_in_factor": TEXT_LAYERS + 1,
    "video_connector_num_attention_heads": 4,
    "video_connector_attention_head_dim": 32,
    "video_connector_num_layers": 1,
    "video_connector_num_learnable_registers": 32,
    "audio_connector_num_attention_heads": 4,
    "audio_connector_attention_head_dim": 32,
    "audio_connector_num_layers": 1,
    "audio_connector_num_learnable_registers": 32,
    "rope_type": "split",
}
UPSAMPLER = {"in_channels": LATENT_CHANNELS, "mid_channels": 64, "num_blocks_per_stage": 1}


def text_encoder(vocabulary: int) -> Gemma3ForConditionalGeneration:
    """A Gemma 3 of `TEXT_LAYERS` layers whose vision tower, never used, is as small as the class allows."""
    config = Gemma3Config(
        text_config=Gemma3TextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            query_pre_attn_scalar=32,
            sliding_window=128,
            max_position_embeddings=1024,
            layer_types=["full_attention"] * TEXT_LAYERS,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=2,
        ).to_dict(),
        vision_config=SiglipVisionConfig(
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=32,
            patch_size=16,
            vision_use_head=False,
        ).to_dict(),
        mm_tokens_per_image=4,
        boi_token_index=vocabulary - 3,
        eoi_token_index=vocabulary - 2,
        image_token_index=vocabulary - 1,
    )
    return Gemma3ForConditionalGeneration(config)


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "vae": lambda: AutoencoderKLLTX2Video(**VIDEO_VAE),
    "audio_vae": lambda: AutoencoderKLLTX2Audio(**AUDIO_VAE),
    "vocoder": lambda: LTX2Vocoder(**VOCODER),
    "transformer": lambda: LTX2VideoTransformer3DModel(**TRANSFORMER),
    "connectors": lambda: LTX2TextConnectors(**CONNECTORS),
    "latent_upsampler": lambda: LTX2LatentUpsamplerModel(**UPSAMPLER),
}


def build(name: str, vocabulary: int = 0) -> nn.Module:
    """A freshly initialised network by its Diffusers folder name; `text_encoder` needs the size of its `vocabulary`."""
    network = text_encoder(vocabulary) if name == "text_encoder" else BUILDERS[name]()
    if name == "transformer":
        _start_small(network)
    return network


def _start_small(transformer: nn.Module) -> None:
    """Let blocks begin near the identity: the class draws the audio-video tables with unit variance for checkpoints."""
    with torch.no_grad():
        for key, table in transformer.named_parameters():
            if key.endswith("cross_attn_scale_shift_table"):
                table.mul_(table.shape[-1] ** -0.5)
        for head in (transformer.proj_out, transformer.audio_proj_out):
            head.weight.zero_()
            head.bias.zero_()


def save(network: nn.Module, path: Path) -> None:
    """Write the weights as bfloat16 safetensors, atomically; tied copies of a tensor are written once."""
    seen: set[int] = set()
    tensors = {}
    for key, value in network.state_dict().items():
        if value.data_ptr() in seen:
            continue
        seen.add(value.data_ptr())
        tensors[key] = value.detach().to("cpu", torch.bfloat16 if value.is_floating_point() else None).contiguous()
    part = path.with_suffix(".part")
    save_file(tensors, part)
    part.replace(path)


def start(name: str, path: Path) -> tuple[nn.Module, bool]:
    """A network to train: from the weights at `path` where they are, else fresh; and whether it goes on from weights."""
    return (load(name, path), True) if path.exists() else (build(name), False)


def load(name: str, path: Path, vocabulary: int = 0) -> nn.Module:
    """Build a network and fill it in float32 from `path`; every key must be there, tied copies excepted."""
    network = build(name, vocabulary)
    missing, unexpected = network.load_state_dict(load_file(path), strict=False)
    tied = {"lm_head.weight"} if name == "text_encoder" else set()
    if unexpected or set(missing) - tied:
        raise ValueError(f"{path} does not fit the {name}: missing {missing}, unexpected {unexpected}")
    return network.float()
