"""Which version and kind a checkpoint is, by its own words, and whether its parts belong to each other."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltx2.models.header import Header
from ltx2.spec.card import Kind, Version
from ltx2.spec.errors import CheckpointError

Configs = Mapping[str, Mapping[str, Any]]


def version_of_file(header: Header) -> Version:
    """By tensors; Raises CheckpointError when the header states another one."""
    stated = header.metadata.get("model_version", "")
    keys = header.entries.keys()
    if any(key.endswith("keyframes_abs_pos_embedding") for key in keys):
        seen: Version = "2.5"
    elif any("to_gate_logits" in key or "video_aggregate_embed" in key for key in keys):
        seen = "2.3"
    else:
        seen = "2.0"
    if stated and not stated.startswith(seen):
        raise CheckpointError(f"{header.file.name} states model_version {stated}, but its tensors are those of {seen}")
    return seen


def version_of_configs(configs: Configs) -> Version:
    """By the configs of a folder. Raises CheckpointError when they are of two versions."""
    transformer = configs["transformer"]
    gated = bool(transformer.get("gated_attn"))
    newer = {
        "transformer": gated,
        "connectors": bool(configs["connectors"].get("per_modality_projections")),
        "vocoder": configs["vocoder"].get("_class_name") == "LTX2VocoderWithBWE",
    }
    if len(set(newer.values())) > 1:
        forms = ", ".join(f"{name} of {'2.3 or later' if new else '2.0'}" for name, new in newer.items())
        raise CheckpointError(f"the folder mixes versions: {forms}")
    if not gated:
        return "2.0"
    return "2.5" if transformer.get("use_keyframes_abs_pos_embedding") else "2.3"


def kind_of(name: str, path: Path, declared: Kind | None) -> Kind:
    """Dev or distilled, by declaration, name or scheduler; dev when nothing says it.

    Raises CheckpointError when a checkpoint is declared otherwise than it says itself.
    """
    said = said_kind(name, path)
    if declared and said and said != declared:
        raise CheckpointError(
            f"{name} says of itself that it is {said}, but it is declared {declared}", knob="kind",
            hint=f"leave --kind out, or say {said}",
        )  # fmt: skip
    return declared or said or "dev"


def said_kind(name: str, path: Path) -> Kind | None:
    """What the name or the scheduler of a folder or file says; None when neither does.

    A scheduler that shifts says nothing: repositories of both kinds have it.
    """
    if "distilled" in f"{name}/{path.name}".lower():
        return "distilled"
    if path.is_file():
        return "dev" if re.search(r"(^|[-_.])dev([-_.]|$)", path.name.lower()) else None
    scheduler = path / "scheduler" / "scheduler_config.json"
    try:
        shifting = json.loads(scheduler.read_text()).get("use_dynamic_shifting", True) if scheduler.exists() else True
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{scheduler} cannot be read: {error}") from error
    return None if shifting else "distilled"


def check_upsampler(config: Mapping[str, Any] | None, name: str) -> None:
    """Raise CheckpointError unless an upsampler doubles width and height, as two stages need: published upscalers of
    other kinds would fail after the first stage only.
    """
    if config is None:
        raise CheckpointError(f"{name} is no upsampler", knob="upsampler", hint="take the spatial upscaler x2")
    scale = config.get("rational_spatial_scale") or 2.0
    if config.get("temporal_upsample") or not config.get("spatial_upsample", True) or scale != 2:
        what = "more frames" if config.get("temporal_upsample") else f"{scale:g} times the width and height"
        raise CheckpointError(
            f"{name} makes {what}, but two stages need twice the width and height",
            knob="upsampler", hint="take the spatial upscaler x2",
        )  # fmt: skip


def check_gemma(configs: Configs, version: Version) -> None:
    """Raise CheckpointError for the Gemma of another version: both have states of one width, so it would load and give
    nonsense.
    """
    config = configs.get("text_encoder")
    if config is None:
        return
    name = str((config.get("architectures") or [""])[0] or config.get("model_type", ""))
    newer = name.lower().startswith("gemma4")
    if newer != (version == "2.5"):
        raise CheckpointError(
            f"the text encoder is Gemma {4 if newer else 3}, but LTX-{version} was made with Gemma {3 if newer else 4}",
            knob="text_encoder",
        )
