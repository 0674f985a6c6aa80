"""The engine that a child process makes: which model, on which device, and warm before the first job comes."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx2.models.describe import Source, read_card
from ltx2.spec.errors import RefusedRequest
from ltx2.spec.plan import Plan
from ltx2.spec.precision import Held
from ltx2.spec.settings import Settings

if TYPE_CHECKING:
    from ltx2.engine.child import Generate
    from ltx2.models.embeddings import Embeddings

LOG = logging.getLogger(__name__)
# What a machine's settings say about the model beyond its device and precision.
WORDS = (
    "text_encoder_precision", "text_encoder_device", "lora_mode", "prompt_cache", "fast", "attention",
    "activation_scales",
)  # fmt: skip


def options(
    source: Source,
    device: str = "auto",
    precision: str = "auto",
    warm_up: Sequence[Plan] = (),
    machine: Settings | None = None,
) -> dict[str, Any]:
    """What `make` needs to know, ready for the pipe; the child makes the `warm_up` plans once before it is ready.

    Of `machine` count the words about text encoder, LoRAs, embedded prompts, fast paths and attention.
    """
    named = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(source).items()}
    words = {name: getattr(machine or Settings(), name) for name in WORDS}
    warm = [plan.as_dict() for plan in warm_up]
    return {"source": named, "device": device, "precision": precision, "warm_up": warm, "machine": words}


def make(given: Mapping[str, Any]) -> Generate:
    """Load the model of `options` and return what makes its videos.

    Raises UnknownModel and CheckpointError for what is no model, DoesNotFit before weights are read when the device
    cannot hold them and the warm-up plans, RefusedRequest for a device that is not there, and says what is wrong with it.
    """
    source = source_of(given["source"])
    card = read_card(source)
    import torch

    from ltx2.engine import memory
    from ltx2.engine.engine import Engine
    from ltx2.models.components import Holding, load
    from ltx2.models.fast.attention import check_attention

    words, device = given["machine"], device_of(given["device"])
    check_attention(words["attention"], torch.device(device), words["fast"])
    text = (words["text_encoder_precision"], words["text_encoder_device"])
    held = Held.on(device, given["precision"], *text, words["lora_mode"], words["fast"])
    holding = Holding.named(held.precision, *text, held.loras)
    warm_up = [Plan.from_dict(plan) for plan in given["warm_up"]]
    for plan in warm_up:
        memory.check(plan, card, torch.device(device), held, loaded=False)
    dtype = torch.float32 if held.precision == "fp32" else torch.bfloat16
    embeddings = _embeddings(words["prompt_cache"])
    models = load(source, device=device, dtype=dtype, holding=holding, embeddings=embeddings)
    models.fast, models.attention = words["fast"], words["attention"]
    models.scale_activations(words["activation_scales"])
    engine = Engine(models)
    for plan in warm_up:
        seconds = engine.warm_up(plan)
        shape = f"{plan.width}x{plan.height}x{plan.frames}:{plan.preset}"
        LOG.info("warm-up of %s: %.1f s", shape, seconds)
    return engine.generate


def _embeddings(where: str) -> Embeddings | None:
    from ltx2.models.embeddings import Embeddings

    if where == "off":
        return None
    return Embeddings() if where == "memory" else Embeddings(Path(where).expanduser())


def source_of(named: Mapping[str, Any]) -> Source:
    """The Source that `options` wrote down."""
    files = {name: Path(named[name]) for name in ("text_encoder", "upsampler", "distilled_lora") if named[name]}
    return Source(**{**named, **files})


def device_of(name: str) -> str:
    """cpu or cuda[:number]; auto is cuda if there is one. Raises RefusedRequest with what the driver says."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RefusedRequest(f"device: there is no {name} here: {trouble()}", knob="device", hint="cpu works")
    return name


def trouble() -> str:
    """Why torch sees no GPU, in the driver's words where it has some."""
    import torch

    if torch.version.cuda is None:
        return "this build of torch knows no CUDA"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden == "":
        return "CUDA_VISIBLE_DEVICES hides every GPU"
    try:
        torch.cuda.init()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return "no GPU was found"
