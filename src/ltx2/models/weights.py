"""Builds the networks and fills them, strictly: every tensor of a file is used or refused by name, nothing stays empty."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video
from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio
from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from ltx2.models.header import Entry, read_headers
from ltx2.spec.errors import CheckpointError

Config = dict[str, Any]
CLASSES: dict[str, tuple[type[Any], ...]] = {
    "text_encoder": (Gemma3ForConditionalGeneration,),
    "connectors": (LTX2TextConnectors,),
    "transformer": (LTX2VideoTransformer3DModel,),
    "vae": (AutoencoderKLLTX2Video,),
    "audio_vae": (AutoencoderKLLTX2Audio,),
    "vocoder": (LTX2Vocoder, LTX2VocoderWithBWE),
    "upsampler": (LTX2LatentUpsamplerModel,),
}
FOLDERS = {name: name for name in CLASSES} | {"upsampler": "latent_upsampler"}
_STATISTICS = ("latents_mean", "latents_std")
_LISTED = 4


@dataclass(frozen=True)
class Prepared:
    """A network on meta and the tensors that will fill it exactly: all that can be checked has been checked.

    `scales` are fp8 scales under the names of their weights; `dtype` is what the network computes in.
    """

    network: nn.Module
    entries: Mapping[str, Entry]
    dtype: torch.dtype
    scales: Mapping[str, Entry] = field(default_factory=dict)


def build(component: str, config: Config, without: tuple[str, ...] = ()) -> nn.Module:
    """Construct a network with its parameters on meta and its computed buffers in place; frozen, in eval mode.

    Two corrections to Diffusers are made here so that official numbers come out: `perturbed_attn` is always on in the
    transformer (2.0 configs lack it, and STG would silently do nothing), and the 48 kHz vocoder's first generator ends
    in the official clamp to -1..1. `without` removes submodules that a file does not have (e.g. an audio encoder).
    Raises CheckpointError for a foreign class or for config fields that the class does not know. Not thread-safe.
    """
    network_class = _class_of(component, config)
    fields = {key: value for key, value in config.items() if not key.startswith("_")}
    if component == "transformer":
        fields["perturbed_attn"] = True
    if network_class is LTX2VocoderWithBWE and fields.get("final_act_fn") is None:
        fields["final_act_fn"] = "clamp"
    handle = register_module_parameter_registration_hook(_to_meta)  # pyright: ignore[reportArgumentType]
    try:
        if component == "text_encoder":
            network: Any = Gemma3ForConditionalGeneration(Gemma3Config.from_dict(fields))
        else:
            unknown = fields.keys() - inspect.signature(network_class.__init__).parameters.keys()
            if unknown:
                raise CheckpointError(f"{component}/config.json has unknown fields: {', '.join(sorted(unknown))}")
            network = network_class(**fields)
    finally:
        handle.remove()
    for name in without:
        setattr(network, name, None)
    if component == "audio_vae":
        _fit_statistics(network)
    return network.requires_grad_(False).eval()


def compute_dtype(component: str, config: Config, dtype: torch.dtype) -> torch.dtype:
    """The dtype a network runs in: the asked one, but float32 for the vocoder with bandwidth extension (2.3+).

    Below float32 that vocoder loses 40-90 % in spectral metrics (official comment), for 0.5 GB.
    """
    return torch.float32 if _class_of(component, config) is LTX2VocoderWithBWE else dtype


def prepare(
    component: str,
    config: Config,
    entries: Mapping[str, Entry],
    *,
    dtype: torch.dtype,
    source: str,
    without: tuple[str, ...] = (),
) -> Prepared:
    """Build a network on meta and match it with tensors keyed by Diffusers name; reads no weights.

    Raises CheckpointError when a tensor is missing, unexpected or misshaped, by name, and as `build` does.
    """
    network = build(component, config, without)
    account(network, {name: entry.shape for name, entry in entries.items()}, source)
    return Prepared(network, entries, compute_dtype(component, config, dtype))


def fill(prepared: Prepared, device: torch.device) -> nn.Module:
    """Read the tensors straight to `device`, in the dtype of the network.

    Float32 scale_shift_tables are cast like everything else: the networks compute in one dtype and would fail on mixed
    ones (the official code casts them at each use, with the same result). Latent statistics stay float32.
    """
    scales = dict(read(prepared.scales, device))
    state = {
        name: cast(name, dequantise(tensor, scales[name]) if name in scales else tensor, prepared.dtype)
        for name, tensor in read(prepared.entries, device)
    }
    return assign(prepared.network, state, device)


def account(network: nn.Module, shapes: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Compare names and shapes with the network, both ways. Raises CheckpointError that names what differs."""
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    missing = sorted(expected.keys() - shapes.keys() - set(tied(network)))
    unexpected = sorted(shapes.keys() - expected.keys())
    wrong = [
        f"{name} {list(shapes[name])} instead of {list(expected[name])}"
        for name in sorted(expected.keys() & shapes.keys())
        if expected[name] != tuple(shapes[name])
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''}"
        for names, what in ((missing, "missing"), (unexpected, "unexpected"), (wrong, "of the wrong shape"))
        if names
    ]
    if problems:
        raise CheckpointError(f"{source} does not fit {type(network).__name__}: {'; '.join(problems)}")


def assign(network: nn.Module, state: dict[str, Tensor], device: torch.device) -> nn.Module:
    """Put tensors into an accounted network without copying, re-tie shared ones, and check that nothing stays on meta."""
    network.load_state_dict(state, strict=False, assign=True)
    if tied(network):
        network.tie_weights()  # pyright: ignore[reportCallIssue]
    for module in network.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
    empty = [name for name, tensor in network.state_dict().items() if tensor.is_meta]
    if empty:
        raise CheckpointError(f"{type(network).__name__} was left without {empty[0]} and {len(empty) - 1} more")
    return network.requires_grad_(False)


def read(entries: Mapping[str, Entry], device: torch.device) -> Iterable[tuple[str, Tensor]]:
    """Yield (name, tensor) straight onto the device, file by file."""
    for file in dict.fromkeys(entry.file for entry in entries.values()):
        with safe_open(file, framework="pt", device=str(device)) as stream:
            for name, entry in entries.items():
                if entry.file == file:
                    yield name, stream.get_tensor(entry.key)


def dequantise(weight: Tensor, scale: Tensor) -> Tensor:
    """bfloat16(float32(weight [out, in]) * scale), scale [] or [out, 1]: what a publisher's fp8 weight stands for."""
    return (weight.float() * scale.float()).to(torch.bfloat16)


def cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The dtype rule for one tensor: latent statistics in float32, other floating ones in `dtype`."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.float32 if name in _STATISTICS else dtype)


def read_config(folder: Path, file: str = "config.json") -> Config:
    """Read a JSON config. Raises CheckpointError when it is missing or not JSON."""
    try:
        return json.loads((folder / file).read_text())
    except OSError as error:
        raise CheckpointError(f"{folder} has no readable {file}") from error
    except ValueError as error:
        raise CheckpointError(f"{folder / file} is not JSON: {error}") from error


def prepare_folder(root: Path, component: str, *, dtype: torch.dtype) -> Prepared:
    """Prepare one component of a Diffusers-format folder (shards with or without an index).

    Raises CheckpointError for missing files or shards, foreign classes, and anything `prepare` refuses.
    """
    folder = root / FOLDERS[component]
    config = read_config(folder)
    entries = read_headers(shards(folder, component))
    if component == "text_encoder":
        entries = _gemma_names(build(component, config), entries)
    return prepare(component, config, entries, dtype=dtype, source=str(folder))


def shards(folder: Path, component: str) -> list[Path]:
    """The safetensors files of one component.

    A folder may hold two sets (Lightricks' text encoder does): the one with the component's own stem is taken,
    `model*` for the text encoder and `diffusion_pytorch_model*` for the rest.
    """
    stems = ("model", "diffusion_pytorch_model")
    for stem in stems if component == "text_encoder" else reversed(stems):
        index = folder / f"{stem}.safetensors.index.json"
        if index.exists():
            names = sorted(set(read_config(folder, index.name)["weight_map"].values()))
            absent = [name for name in names if not (folder / name).exists()]
            if absent:
                raise CheckpointError(f"{folder} is incomplete: {', '.join(absent)} missing")
            return [folder / name for name in names]
        if (folder / f"{stem}.safetensors").exists():
            return [folder / f"{stem}.safetensors"]
        if list(folder.glob(f"{stem}-*-of-*.safetensors")):
            raise CheckpointError(f"{folder} has shards but no {index.name}")
    raise CheckpointError(f"{folder} holds no safetensors weights")


def _class_of(component: str, config: Config) -> type[Any]:
    classes = CLASSES[component]
    name = config.get("_class_name") or (config.get("architectures") or [classes[0].__name__])[0]
    for candidate in classes:
        if candidate.__name__ == name:
            return candidate
    known = " or ".join(candidate.__name__ for candidate in classes)
    raise CheckpointError(f"{component} is of the class {name}; only {known} is supported")


def _to_meta(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    if parameter is None or parameter.is_meta:
        return None
    return nn.Parameter(parameter.to("meta"), requires_grad=False)


def _fit_statistics(network: Any) -> None:
    """Diffusers sizes the audio statistics by `base_channels`; what they normalise has latent_channels * bins values."""
    width = network.config.latent_channels * (network.config.mel_bins // network.mel_compression_ratio)
    for name in _STATISTICS:
        network.register_buffer(name, torch.full((width,), float(name == "latents_std")))


def tied(network: nn.Module) -> list[str]:
    """State names that share another tensor and need not be in a file."""
    return ["lm_head.weight"] if isinstance(network, Gemma3ForConditionalGeneration) else []


def _gemma_names(network: nn.Module, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Map Gemma 3 names of every transformers release to this one's (hub files predate 4.50; 5.x moved the vision tower)."""

    def canonical(name: str) -> str:
        name = name.replace("language_model.model.", "language_model.").replace("vision_model.", "")
        return name.removeprefix("model.").replace("language_model.lm_head.", "lm_head.")

    names = {canonical(name): name for name in network.state_dict()}
    return {names.get(canonical(name), name): entry for name, entry in entries.items()}
