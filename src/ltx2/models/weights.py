"""Builds the networks and fills them, strictly: every tensor of a file is used or refused by name, nothing stays empty."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video
from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio
from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
)

from ltx2.models.header import Entry
from ltx2.models.holding import FORMS, Hold, layers, replace_layers
from ltx2.models.packing import FP8_DTYPES, Packing, sort_out
from ltx2.models.precision import dequantise, unpack_nvfp4
from ltx2.models.reading import read
from ltx2.spec.errors import CheckpointError

Config = dict[str, Any]
CLASSES: dict[str, tuple[type[Any], ...]] = {
    "text_encoder": (Gemma3ForConditionalGeneration, Gemma4UnifiedForConditionalGeneration),
    "connectors": (LTX2TextConnectors,),
    "transformer": (LTX2VideoTransformer3DModel,),
    "vae": (AutoencoderKLLTX2Video,),
    "audio_vae": (AutoencoderKLLTX2Audio,),
    "vocoder": (LTX2Vocoder, LTX2VocoderWithBWE),
    "upsampler": (LTX2LatentUpsamplerModel,),
}
FOLDERS = {name: name for name in CLASSES} | {"upsampler": "latent_upsampler"}
_STATISTICS = ("latents_mean", "latents_std")
_FLOATS = ("F32", "BF16", "F16", "F64")
_LISTED = 4


@dataclass(frozen=True)
class Prepared:
    """A network on meta and the tensors that will fill it exactly: all that can be checked has been checked.

    `packings` are its quantised weights, by name; `dtype` is what the network computes in.
    """

    network: nn.Module
    entries: Mapping[str, Entry]
    dtype: torch.dtype
    packings: Mapping[str, Packing] = field(default_factory=dict)


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
            network: Any = network_class(_gemma_config(network_class, fields))
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

    Raises CheckpointError when a tensor is missing, unexpected, misshaped or of a dtype that cannot fill it, by name,
    and as `build` and `packing.sort_out` do.
    """
    plain, packings = sort_out(entries, source)
    network = build(component, config, without)
    account(network, {name: entry.shape for name, entry in plain.items()}, source)
    _check_dtypes(network, plain, source)
    return Prepared(network, plain, compute_dtype(component, config, dtype), packings)


def fill(prepared: Prepared, device: torch.device, hold: Hold = "plain") -> nn.Module:
    """Read the tensors straight to `device`, in the dtype of the network.

    Quantised weights become what they stand for. `hold` says which linears are held in another form: they are quantised
    one by one as they come, and with `fp8` those that the file holds in fp8 are taken as they are, with its scales, and
    no others. Float32 scale_shift_tables are cast like everything else: the networks compute in one dtype and would fail
    on mixed ones (the official code casts them at each use, with the same result). Latent statistics stay float32.
    """
    network, packings = prepared.network, prepared.packings
    own = _own_fp8(prepared) if hold == "fp8" else []
    chosen = {f"{layer}.weight" for layer in own or layers(network, hold)}
    scales = _read_scales(packings, device)
    stored = {name: packings[name].weight if name in packings else entry for name, entry in prepared.entries.items()}
    state: dict[str, Tensor] = {}
    held: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read(stored, device):
        if name in chosen and own:
            held[name.removesuffix(".weight")] = _as_published(tensor, scales[name])
            continue
        value = _unpack(packings[name], tensor, scales[name]) if name in packings else tensor
        if name in chosen:
            held[name.removesuffix(".weight")] = FORMS[hold].quantise(value)
        else:
            state[name] = cast(name, value, prepared.dtype)
    replace_layers(network, hold, held)
    return assign(network, state, device)


def _own_fp8(prepared: Prepared) -> list[str]:
    """The linears that the file itself holds in e4m3."""
    linears = {name for name, module in prepared.network.named_modules() if isinstance(module, nn.Linear)}
    packed = (name.removesuffix(".weight") for name, it in prepared.packings.items() if it.weight.dtype == "F8_E4M3")
    return [layer for layer in packed if layer in linears]


def _as_published(weight: Tensor, scales: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an Fp8Linear: one scale for the whole weight is one for every row."""
    scale = scales["scale"].float().reshape(-1).expand(weight.shape[0]).contiguous()
    tensors = {"weight": weight, "scale": scale.to(weight.device)}
    if "input_scale" in scales:
        tensors["input_scale"] = scales["input_scale"].float().reshape(()).to(weight.device)
    return tensors


def _read_scales(packings: Mapping[str, Packing], device: torch.device) -> dict[str, dict[str, Tensor]]:
    """All scales by the name of their weight: single numbers on the CPU, block scales on the device."""
    single: dict[str, Entry] = {}
    blocks: dict[str, Entry] = {}
    for name, packing in packings.items():
        for kind in ("scale", "second", "input_scale"):
            entry: Entry | None = getattr(packing, kind)
            if entry is not None:
                (blocks if packing.format == "nvfp4" and kind == "scale" else single)[f"{kind}/{name}"] = entry
    scales: dict[str, dict[str, Tensor]] = {name: {} for name in packings}
    for entries, home in ((single, torch.device("cpu")), (blocks, device)):
        for label, tensor in read(entries, home):
            kind, _, name = label.partition("/")
            scales[name][kind] = tensor
    return scales


def _unpack(packing: Packing, stored: Tensor, scales: Mapping[str, Tensor]) -> Tensor:
    if packing.format == "nvfp4":
        return unpack_nvfp4(stored, scales["scale"], scales["second"].reshape(()).to(stored.device))
    return dequantise(stored, scales["scale"].to(stored.device))


def _check_dtypes(network: nn.Module, entries: Mapping[str, Entry], source: str) -> None:
    """Whole numbers cannot stand for weights unless a packing says how."""
    known = network.state_dict()
    odd = [
        f"{name} {entry.dtype}"
        for name, entry in entries.items()
        if name in known and known[name].is_floating_point() and entry.dtype not in (*_FLOATS, *FP8_DTYPES, "F4")
    ]
    if odd:
        raise CheckpointError(f"{source} has {len(odd)} of an unexpected dtype: {', '.join(odd[:_LISTED])}")


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


def cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The dtype rule for one tensor: latent statistics in float32, other floating ones in `dtype`."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.float32 if name in _STATISTICS else dtype)


def _class_of(component: str, config: Config) -> type[Any]:
    classes = CLASSES[component]
    name = config.get("_class_name") or (config.get("architectures") or [classes[0].__name__])[0]
    for candidate in classes:
        if candidate.__name__ == name:
            return candidate
    known = " or ".join(candidate.__name__ for candidate in classes)
    raise CheckpointError(f"{component} is of the class {name}; only {known} is supported")


def _gemma_config(network_class: type[Any], fields: Config) -> Any:
    try:
        return (Gemma3Config if network_class is Gemma3ForConditionalGeneration else Gemma4UnifiedConfig).from_dict(
            fields
        )
    except Exception as error:
        # transformers checks types with errors of its own.
        raise CheckpointError(f"the text encoder's config is damaged: {str(error).splitlines()[0]}") from error


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
    return ["lm_head.weight"] if isinstance(network, CLASSES["text_encoder"]) else []
