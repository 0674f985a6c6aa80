"""Turns the `config` JSON in the header of an official file into the configs of the Diffusers networks.

Fields that only one value makes sense for are checked, because a file that differs there would load and give wrong
numbers. Fields without influence on these networks are left alone.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

from ltx2.spec.errors import CheckpointError

Config = dict[str, Any]

_FIXED_TRANSFORMER = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "av_cross_ada_norm": True,
    "cross_attention_norm": True,
    "double_self_attention": False,
    "norm_elementwise_affine": False,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "positional_embedding_type": "rope",
    "qk_norm": "rms_norm",
    "share_ff": False,
    "standardization_norm": "rms_norm",
    "upcast_attention": False,
    "use_audio_video_cross_attention": True,
    "use_linear_projection": False,
    "use_middle_indices_grid": True,
}
_FIXED_VAE = {
    "dims": 3,
    "latent_log_var": "uniform",
    "norm_layer": "pixel_norm",
    "normalize_latent_channels": False,
    "use_quant_conv": False,
}
_RESAMPLING = {"compress_space": "spatial", "compress_time": "temporal", "compress_all": "spatiotemporal"}


def transformer_config(header: Config) -> Config:
    """Config of LTX2VideoTransformer3DModel. `perturbed_attn` is always on: without it STG would be a costly no-op."""
    c = header["transformer"]
    _check_fixed(c, _FIXED_TRANSFORMER)
    time, height, width = c.get("positional_embedding_max_pos", (20, 2048, 2048))
    gated, modulated = c.get("apply_gated_attention", False), c.get("cross_attention_adaln", False)
    return {
        "in_channels": c.get("in_channels", 128),
        "out_channels": c.get("out_channels", 128),
        "num_attention_heads": c.get("num_attention_heads", 32),
        "attention_head_dim": c.get("attention_head_dim", 128),
        "cross_attention_dim": c.get("cross_attention_dim", 4096),
        "pos_embed_max_pos": time,
        "base_height": height,
        "base_width": width,
        "gated_attn": gated,
        "cross_attn_mod": modulated,
        "audio_in_channels": c.get("audio_in_channels", 128),
        "audio_out_channels": c.get("audio_out_channels", 128),
        "audio_num_attention_heads": c.get("audio_num_attention_heads", 32),
        "audio_attention_head_dim": c.get("audio_attention_head_dim", 64),
        "audio_cross_attention_dim": c.get("audio_cross_attention_dim", 2048),
        "audio_pos_embed_max_pos": c.get("audio_positional_embedding_max_pos", [20])[0],
        "audio_gated_attn": gated,
        "audio_cross_attn_mod": modulated,
        "num_layers": c.get("num_layers", 48),
        "norm_eps": c.get("norm_eps", 1e-6),
        "caption_channels": c.get("caption_channels", 3840),
        "rope_theta": c.get("positional_embedding_theta", 10000.0),
        "rope_double_precision": c.get("frequencies_precision") == "float64",
        "rope_type": c.get("rope_type", "interleaved"),
        "causal_offset": int(c.get("causal_temporal_positioning", False)),
        "timestep_scale_multiplier": int(c.get("timestep_scale_multiplier", 1000)),
        "cross_attn_timestep_scale_multiplier": int(c.get("av_ca_timestep_scale_multiplier", 1)),
        "use_prompt_embeddings": not c.get("caption_proj_before_connector", False),
        "perturbed_attn": True,
        "ff_bias": c.get("ff_bias", True),
        "audio_ff_bias": c.get("audio_ff_bias", True),
        "use_prompt_adaln_single": c.get("use_prompt_adaln_single", True),
        "use_keyframes_abs_pos_embedding": c.get("use_keyframes_abs_pos_embedding", False),
    }


def connectors_config(header: Config, text_states: int = 49) -> Config:
    """Config of LTX2TextConnectors; `text_states` is the number of Gemma states that the projection takes in."""
    c = header["transformer"]
    heads, dim = c.get("connector_num_attention_heads", 30), c.get("connector_attention_head_dim", 128)
    layers, registers = c.get("connector_num_layers", 2), c.get("connector_num_learnable_registers", 128)
    gated, split = c.get("connector_apply_gated_attention", False), c.get("caption_proj_before_connector", False)
    config: Config = {
        "caption_channels": c.get("caption_channels", 3840),
        "text_proj_in_factor": text_states,
        "connector_rope_base_seq_len": c.get("connector_positional_embedding_max_pos", [4096])[0],
        "rope_theta": c.get("positional_embedding_theta", 10000.0),
        "rope_double_precision": c.get("frequencies_precision") == "float64",
        "rope_type": c.get("rope_type", "interleaved"),
        "causal_temporal_positioning": False,
        "per_modality_projections": split,
        "proj_bias": split,
    }
    for stream, prefix in (("video", "connector"), ("audio", "audio_connector")):
        config |= {
            f"{stream}_connector_num_attention_heads": c.get(f"{prefix}_num_attention_heads", heads),
            f"{stream}_connector_attention_head_dim": c.get(f"{prefix}_attention_head_dim", dim),
            f"{stream}_connector_num_layers": layers,
            f"{stream}_connector_num_learnable_registers": registers,
            f"{stream}_gated_attn": gated,
        }
    if split:
        config["video_hidden_dim"] = c.get("num_attention_heads", 32) * c.get("attention_head_dim", 128)
        config["audio_hidden_dim"] = c.get("audio_num_attention_heads", 32) * c.get("audio_attention_head_dim", 64)
    return config


def vae_config(header: Config) -> Config:
    """Config of AutoencoderKLLTX2Video.

    The decoder's padding is `spatial_padding_mode` (reflect when absent) and nothing else, as in the official code:
    `decoder_spatial_padding_mode` in a header has no effect there.
    """
    c = header["vae"]
    _check_fixed(c, _FIXED_VAE)
    if c.get("encoder_base_channels", 128) != c["latent_channels"]:
        raise CheckpointError("a video VAE whose encoder_base_channels differ from latent_channels is not supported")
    down, up = _blocks(c["encoder_blocks"], "_res"), _blocks(c["decoder_blocks"], "")
    patch, types = c.get("patch_size", 4), [_RESAMPLING[name] for name, _ in down.resampling]
    return {
        "in_channels": c.get("in_channels", 3),
        "out_channels": c.get("out_channels", 3),
        "latent_channels": c["latent_channels"],
        "block_out_channels": _widths(c.get("encoder_base_channels", 128), down.resampling),
        "down_block_types": ["LTX2VideoDownBlock3D"] * len(types),
        "layers_per_block": down.layers,
        "spatio_temporal_scaling": [True] * len(types),
        "downsample_type": types,
        "decoder_block_out_channels": _widths(c.get("decoder_base_channels", 128), up.resampling),
        "decoder_layers_per_block": up.layers,
        "decoder_spatio_temporal_scaling": [True] * len(up.resampling),
        "decoder_inject_noise": up.noise,
        "upsample_type": [_RESAMPLING[name] for name, _ in reversed(up.resampling)],
        "upsample_factor": [options.get("multiplier", 1) for _, options in up.resampling],
        "upsample_residual": [options.get("residual", False) for _, options in up.resampling],
        "timestep_conditioning": c.get("timestep_conditioning", False),
        "patch_size": patch,
        "scaling_factor": c.get("scaling_factor", 1.0),
        "encoder_causal": True,
        "decoder_causal": c.get("causal_decoder", False),
        "encoder_spatial_padding_mode": c.get("encoder_spatial_padding_mode", "zeros"),
        "decoder_spatial_padding_mode": c.get("spatial_padding_mode", "reflect"),
        "spatial_compression_ratio": patch * 2 ** sum(kind != "temporal" for kind in types),
        "temporal_compression_ratio": 2 ** sum(kind != "spatial" for kind in types),
    }


class _Blocks(NamedTuple):
    """The flat official block list, taken apart: residual layers, injected noise, and resampling between them."""

    layers: list[int]
    noise: list[bool]
    resampling: list[tuple[str, Config]]


def _blocks(listed: list[Any], suffix: str) -> _Blocks:
    pairs = [(name, options if isinstance(options, dict) else {"num_layers": options}) for name, options in listed]
    expected = ["res_x"] + [part for _ in range(len(pairs) // 2) for part in ("compress", "res_x")]
    kinds = ["res_x" if name == "res_x" else "compress" for name, _ in pairs]
    unknown = [name for name, _ in pairs if name != "res_x" and name.removesuffix(suffix) not in _RESAMPLING]
    if kinds != expected or unknown:
        raise CheckpointError(f"the video VAE's block list is not supported: {[name for name, _ in pairs]}")
    return _Blocks(
        [options["num_layers"] for name, options in pairs if name == "res_x"],
        [options.get("inject_noise", False) for name, options in pairs if name == "res_x"],
        [(name.removesuffix(suffix), options) for name, options in pairs if name != "res_x"],
    )


def audio_vae_config(header: Config) -> Config:
    """Config of AutoencoderKLLTX2Audio."""
    c = header["audio_vae"]
    params, preprocessing = c["model"]["params"], c.get("preprocessing", {})
    d, stft = params["ddconfig"], preprocessing.get("stft", {})
    return {
        "base_channels": d["ch"],
        "output_channels": d["out_ch"],
        "ch_mult": d["ch_mult"],
        "num_res_blocks": d["num_res_blocks"],
        "attn_resolutions": d.get("attn_resolutions") or None,
        "in_channels": d["in_channels"],
        "resolution": d["resolution"],
        "latent_channels": d["z_channels"],
        "norm_type": d.get("norm_type", "pixel"),
        "causality_axis": d.get("causality_axis", "height"),
        "dropout": d.get("dropout", 0.0),
        "mid_block_add_attention": d.get("mid_block_add_attention", False),
        "sample_rate": params.get("sampling_rate", 16000),
        "mel_hop_length": stft.get("hop_length", 160),
        "is_causal": stft.get("causal", True),
        "mel_bins": d.get("mel_bins", 64),
        "double_z": d.get("double_z", True),
    }


def vocoder_config(header: Config) -> tuple[str, Config]:
    """Class name and config: LTX2Vocoder, or LTX2VocoderWithBWE when the header has a bandwidth extension.

    The official 16 kHz generator ends in a clamp when it has no tanh; Diffusers spells that `final_act_fn="clamp"`
    but its own converter writes None.
    """
    c = header["vocoder"]
    mel = header.get("audio_vae", {}).get("preprocessing", {}).get("mel", {}).get("n_mel_channels", 64)
    if "bwe" not in c:
        rate = 16000 // 160 * prod(c["upsample_rates"])
        return "LTX2Vocoder", _generator(c, mel) | {"output_sampling_rate": c.get("output_sampling_rate", rate)}
    first, second = c["vocoder"], c["bwe"]
    extension = {f"bwe_{key}": value for key, value in _generator(second, second["num_mels"]).items()}
    for stage, part in (("", first), ("bwe_", second)):
        snake = part.get("activation", "snakebeta")
        extension |= {f"{stage}act_fn": snake, f"{stage}antialias": snake != "leaky_relu"}
        extension |= {f"{stage}final_bias": part.get("use_bias_at_final", True)}
    return "LTX2VocoderWithBWE", _generator(first, mel) | extension | {
        "final_act_fn": "tanh" if first.get("use_tanh_at_final", True) else "clamp",
        "bwe_final_act_fn": _bwe_final(second),
        "filter_length": second["n_fft"],
        "hop_length": second["hop_length"],
        "window_length": second.get("win_size", second["n_fft"]),
        "num_mel_channels": second["num_mels"],
        "input_sampling_rate": second["input_sampling_rate"],
        "output_sampling_rate": second["output_sampling_rate"],
    }


def upsampler_config(header: Config) -> Config:
    """Config of LTX2LatentUpsamplerModel; the header of an upscaler file holds its fields at the top level."""
    return {
        "in_channels": header.get("in_channels", 128),
        "mid_channels": header.get("mid_channels", 512),
        "num_blocks_per_stage": header.get("num_blocks_per_stage", 4),
        "dims": header.get("dims", 3),
        "spatial_upsample": header.get("spatial_upsample", True),
        "temporal_upsample": header.get("temporal_upsample", False),
        "rational_spatial_scale": header.get("spatial_scale", 2.0),
        "use_rational_resampler": header.get("rational_resampler", False),
    }


def _generator(c: Config, mel_bins: int) -> Config:
    channels = 2 if c.get("stereo", True) else 1
    return {
        "in_channels": channels * mel_bins,
        "hidden_channels": c["upsample_initial_channel"],
        "out_channels": channels,
        "upsample_kernel_sizes": c["upsample_kernel_sizes"],
        "upsample_factors": c["upsample_rates"],
        "resnet_kernel_sizes": c["resblock_kernel_sizes"],
        "resnet_dilations": c["resblock_dilation_sizes"],
    }


def _bwe_final(c: Config) -> str | None:
    if not c.get("apply_final_activation", True):
        return None
    return "tanh" if c.get("use_tanh_at_final", True) else "clamp"


def _widths(base: int, resampling: list[tuple[str, Config]]) -> list[int]:
    multipliers = [options.get("multiplier", 1) for _, options in resampling]
    return [base * prod(multipliers[: level + 1]) for level in range(len(multipliers))]


def _check_fixed(config: Config, fixed: Config) -> None:
    for key, value in fixed.items():
        if key in config and config[key] != value:
            raise CheckpointError(f"the file's config has {key} = {config[key]!r}; only {value!r} is supported")
