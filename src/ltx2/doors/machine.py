"""From flags and settings to a model on a device: which checkpoint, which files, where, in which precision."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx2.doors.flags import given
from ltx2.models.describe import Source, read_card
from ltx2.spec.card import Card
from ltx2.spec.errors import RefusedRequest
from ltx2.spec.precision import Held, suited
from ltx2.spec.settings import ACTIVATION_SCALES, ATTENTIONS, LORA_MODES, PRECISIONS, TEXT_PRECISIONS, Settings

if TYPE_CHECKING:
    from ltx2.models.components import Models
    from ltx2.models.embeddings import Embeddings
    from ltx2.models.holding import Holding
    from ltx2.spec.plan import Plan

EMBEDDED_NOTE = (
    "no --model given: this is the small embedded model, which knows coloured shapes that move and sound, for two seconds "
    "at 256x192; the real one is --model Lightricks/LTX-2 (add --download once; LTX-2 Community License)"
)
# Who compiles kernels, and where they are kept for the next process: Triton, torch.compile, and the driver.
KERNELS = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor", "CUDA_CACHE_PATH": "driver"}
# Flags that are also settings, and name one of a few ways.
WAYS = {
    "precision": PRECISIONS,
    "text_encoder_precision": TEXT_PRECISIONS,
    "lora_mode": LORA_MODES,
    "attention": ATTENTIONS,
    "activation_scales": ACTIVATION_SCALES,
}


@dataclass(frozen=True)
class Choice:
    """The checkpoint that flags and settings name, its card, and whether nobody named one."""

    source: Source
    card: Card
    defaulted: bool


def choose(values: argparse.Namespace, settings: Settings, fallback: str | None = None) -> Choice:
    """Find the checkpoint and read its card, without torch.

    `fallback` is the model when neither flag nor environment names one. Raises UnknownModel, CheckpointError, or
    RefusedRequest for a file that is not there, and for a way of holding and running it that there is not.
    """
    flags = given(values)
    check_ways(flags, settings)
    use_cache(settings)
    named = flags.get("model") or settings.model or fallback
    weights, kind = flags.get("weights", "real"), flags.get("kind")
    _one_of("weights", weights, ("real", "random"))
    _one_of("kind", kind or "dev", ("dev", "distilled"))
    files = {knob: _existing(knob, flags.get(knob)) for knob in ("text_encoder", "upsampler", "distilled_lora")}
    source = Source(named or "tiny", weights=weights, kind=kind, download="download" in flags, **files)
    return Choice(source, read_card(source), named is None)


def check_ways(flags: dict[str, Any], settings: Settings) -> None:
    """Raise RefusedRequest for a way of holding and running models that there is not."""
    chosen = {knob: flags.get(knob, getattr(settings, knob)) for knob in WAYS}
    for knob, known in WAYS.items():
        _one_of(knob, chosen[knob], known)
    if chosen["activation_scales"] == "static" and chosen["precision"] != "fp8":
        raise RefusedRequest(
            "activation_scales: static goes with fp8 only", knob="activation_scales", hint="--precision fp8 works"
        )


def use_cache(settings: Settings) -> None:
    """Tell huggingface_hub and the compilers, before they are imported, where downloaded models and kernels lie.

    What the environment says of a compiler's own folder counts more.
    """
    if settings.cache:
        os.environ.setdefault("HF_HUB_CACHE", str(settings.cache))
    if settings.kernel_cache:
        for variable, folder in KERNELS.items():
            os.environ.setdefault(variable, str(settings.kernel_cache.absolute() / folder))


def precision_of(values: argparse.Namespace, settings: Settings, device: str) -> str:
    """bf16, fp32 or fp8: as asked, else what suits the device."""
    return suited(given(values).get("precision", settings.precision), device)


def held_of(values: argparse.Namespace, settings: Settings, device: str) -> Held:
    """How the device is to hold a model."""
    flags = given(values)
    text = flags.get("text_encoder_precision", settings.text_encoder_precision)
    loras = flags.get("lora_mode", settings.lora_mode)
    where = flags.get("text_encoder_device", settings.text_encoder_device)
    return Held.on(device, precision_of(values, settings, device), text, where, loras, settings.fast)


def ways_of(values: argparse.Namespace, settings: Settings, device: str) -> tuple[Held, Holding]:
    """How the device is to hold a model, in words as counting takes it and in parts as loading does.

    Raises RefusedRequest for what this device cannot do, and for a device of the text encoder that is not there.
    """
    import torch

    from ltx2.models.fast.attention import check_attention
    from ltx2.models.holding import Holding

    flags, held = given(values), held_of(values, settings, device)
    text = flags.get("text_encoder_precision", settings.text_encoder_precision)
    text_device = flags.get("text_encoder_device", settings.text_encoder_device)
    if text_device != "auto":
        _checked_device("text_encoder_device", text_device)
    check_attention(flags.get("attention", settings.attention), torch.device(device), settings.fast)
    return held, Holding.named(held.precision, text, text_device, held.loras).checked(torch.device(device))


def device_of(values: argparse.Namespace, settings: Settings) -> str:
    """The device as asked, else cuda if there is one. Raises RefusedRequest for a device that is not there."""
    import torch

    device = given(values).get("device", settings.device)
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return _checked_device("device", device)


def _checked_device(knob: str, device: str) -> str:
    import torch

    kind, _, index = device.partition(":")
    _one_of(knob, kind, ("cpu", "cuda"))
    if index and not index.isdecimal():
        raise RefusedRequest(f"{knob}: there is no {device!r}", knob=knob, hint="as in cuda:0")
    if kind == "cuda" and not (torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count()):
        raise RefusedRequest(f"{knob}: there is no {device} here", knob=knob, hint="cpu works")
    return device


def load_models(choice: Choice, values: argparse.Namespace, settings: Settings, plan: Plan) -> Models:
    """Load the checkpoint of a plan onto its device.

    Raises DoesNotFit before weights are read when the device cannot hold them and the plan.
    """
    import torch

    from ltx2.engine import memory
    from ltx2.models.components import load

    flags, device = given(values), device_of(values, settings)
    held, holding = ways_of(values, settings, device)
    memory.check(plan, choice.card, torch.device(device), held, loaded=False)
    models = load(
        choice.source,
        device=device,
        dtype=torch.float32 if held.precision == "fp32" else torch.bfloat16,
        loras=plan.loras,
        holding=holding,
        embeddings=_embeddings(flags.get("prompt_cache", settings.prompt_cache)),
    )
    models.fast, models.attention = settings.fast, flags.get("attention", settings.attention)
    models.scale_activations(flags.get("activation_scales", settings.activation_scales))
    return models


def _embeddings(where: str) -> Embeddings | None:
    from ltx2.models.embeddings import Embeddings

    if where == "off":
        return None
    if where == "memory":
        return Embeddings()
    folder = Path(where).expanduser()
    if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise RefusedRequest(
            f"prompt_cache: {where} is no folder that can be written", knob="prompt_cache", hint="memory or off works"
        )
    return Embeddings(folder)


def check_inputs(plan: Plan) -> None:
    """Raise RefusedRequest for an image or LoRA file of the plan that is not there."""
    _existing("image", plan.image or None)
    for path, _ in plan.loras:
        _existing("lora", path)


def check_output(out: Path) -> None:
    """Raise RefusedRequest unless `out` can be written: an .mp4 in a folder that exists and takes files."""
    if out.suffix.lower() != ".mp4":
        raise RefusedRequest(
            f"output: {out} does not end in .mp4", knob="output", hint=f"{out.with_suffix('.mp4')} works"
        )
    if out.is_dir():
        raise RefusedRequest(f"output: {out} is a folder", knob="output", hint=f"{out / 'out.mp4'} works")
    if not out.parent.is_dir():
        raise RefusedRequest(f"output: there is no folder {out.parent}", knob="output", hint="make it first")
    if not os.access(out.parent, os.W_OK) or (out.exists() and not os.access(out, os.W_OK)):
        raise RefusedRequest(f"output: {out} cannot be written", knob="output", hint="choose a folder of your own")


def _existing(knob: str, path: str | None) -> Path | None:
    if path is None:
        return None
    if not Path(path).exists():
        raise RefusedRequest(f"{knob}: there is no file {path}", knob=knob)
    return Path(path)


def _one_of(knob: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RefusedRequest(f"{knob}: there is no {value!r}", knob=knob, hint="one of " + ", ".join(known))
