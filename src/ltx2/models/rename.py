"""Official tensor names to Diffusers' names, by path segments: the table that lets official files fill Diffusers' networks.

Matching whole segments matters: `adaln_single` is also a part of `prompt_adaln_single` and of four other names.
"""

from __future__ import annotations

import re

_ATTENTION = {"q_norm": "norm_q", "k_norm": "norm_k"}
_TRANSFORMER = _ATTENTION | {
    "patchify_proj": "proj_in",
    "audio_patchify_proj": "audio_proj_in",
    "adaln_single": "time_embed",
    "audio_adaln_single": "audio_time_embed",
    "prompt_adaln_single": "prompt_adaln",
    "audio_prompt_adaln_single": "audio_prompt_adaln",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    "scale_shift_table_a2v_ca_video": "video_a2v_cross_attn_scale_shift_table",
    "scale_shift_table_a2v_ca_audio": "audio_a2v_cross_attn_scale_shift_table",
}
_CONNECTORS = _ATTENTION | {
    "video_embeddings_connector": "video_connector",
    "audio_embeddings_connector": "audio_connector",
    "transformer_1d_blocks": "transformer_blocks",
    "aggregate_embed": "text_proj_in",
    "video_aggregate_embed": "video_text_proj_in",
    "audio_aggregate_embed": "audio_text_proj_in",
}
_VOCODER = {
    "ups": "upsamplers",
    "resblocks": "resnets",
    "conv_pre": "conv_in",
    "conv_post": "conv_out",
    "act_post": "act_out",
}
_STATISTICS = {"mean-of-means": "latents_mean", "std-of-means": "latents_std"}
_SEGMENTS = {
    "transformer": _TRANSFORMER,
    "connectors": _CONNECTORS,
    "vae": {
        "res_blocks": "resnets",
        "last_time_embedder": "time_embedder",
        "last_scale_shift_table": "scale_shift_table",
    }
    | _STATISTICS,
    "audio_vae": _STATISTICS,
    "vocoder": _VOCODER,
    "upsampler": {},
    "text_encoder": {},
}
_DROPPED = {"per_channel_statistics", "text_embedding_projection", "lowpass"}
_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_OWN_PREFIX = ("vae", "audio_vae", "vocoder", "text_encoder", "tokenizer")
# Files that the text encoder's file carries as tensors of bytes.
TOKENIZER, ASSET = "tokenizer_json", "hf_asset__"


def component_of(key: str, bare: str | None = None) -> tuple[str, str] | None:
    """The component that an official key belongs to, and the key without its prefix; None for an unknown prefix.

    `bare` names the component of keys that carry no prefix (split files, upscalers, transformer-only files).
    """
    for prefix in _PREFIXES:
        if key.startswith(prefix):
            return _inside_transformer(key.removeprefix(prefix))
    head, _, rest = key.partition(".")
    if head == "text_embedding_projection":
        return "connectors", key
    if head in _OWN_PREFIX and rest and bare != "text_encoder":
        return head, rest
    if bare == "transformer":
        return _inside_transformer(key)
    if bare == "text_encoder" and (key == TOKENIZER or key.startswith(ASSET)):
        return "tokenizer", key
    return (bare, key) if bare else None


def diffusers_name(component: str, name: str, levels: int = 4) -> str:
    """Diffusers' name of an official tensor without its prefix; `levels` is the video VAE encoder's number of stages."""
    if component == "vae":
        name = _unflatten(name, levels)
    table = _SEGMENTS[component]
    return ".".join(table.get(part, part) for part in name.split(".") if part not in _DROPPED)


def official_key(component: str, name: str, levels: int = 4) -> str:
    """The full official key of a tensor in Diffusers' spelling: the inverse of `component_of` and `diffusers_name`."""
    inverse = {new: old for old, new in _SEGMENTS[component].items()}
    name = _flatten(name, levels) if component == "vae" else name
    name = ".".join(inverse.get(part, part) for part in name.split("."))
    if name in _STATISTICS:
        return f"{component}.per_channel_statistics.{name}"
    if component == "vocoder":
        return "vocoder." + name.replace("downsample.filter", "downsample.lowpass.filter")
    if "aggregate_embed" in name:
        return f"text_embedding_projection.{name}"
    prefix = {"upsampler": "", "vae": "vae.", "audio_vae": "audio_vae."}.get(component, _PREFIXES[0])
    return prefix + name


def _inside_transformer(name: str) -> tuple[str, str]:
    is_connector = name.startswith(("video_embeddings_connector.", "audio_embeddings_connector."))
    return ("connectors" if is_connector else "transformer"), name


def _unflatten(name: str, levels: int) -> str:
    """The official video VAE counts residual and resampling blocks in one flat list; Diffusers nests them."""
    match = re.match(r"(encoder\.down_blocks|decoder\.up_blocks)\.(\d+)\.(.*)", name)
    if not match:
        return name
    blocks, index, rest = match[1], int(match[2]), match[3]
    level, odd = divmod(index, 2)
    if blocks.startswith("encoder"):
        if odd:
            return f"{blocks}.{level}.downsamplers.0.{rest}"
        return f"encoder.mid_block.{rest}" if level == levels else f"{blocks}.{level}.{rest}"
    if odd:
        return f"{blocks}.{level}.upsamplers.0.{rest}"
    return f"decoder.mid_block.{rest}" if level == 0 else f"{blocks}.{level - 1}.{rest}"


def _flatten(name: str, levels: int) -> str:
    match = re.match(
        r"(encoder|decoder)\.(?:(?:down|up)_blocks\.(\d+)|mid_block)\.((?:down|up)samplers\.0\.)?(.*)", name
    )
    if not match:
        return name
    encoder = match[1] == "encoder"
    if match[2] is None:
        index = 2 * levels if encoder else 0
    else:
        index = 2 * int(match[2]) + (bool(match[3]) if encoder else 1 + (not match[3]))
    return f"{match[1]}.{'down' if encoder else 'up'}_blocks.{index}.{match[4]}"
