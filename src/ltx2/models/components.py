"""The networks that a generation needs, on one device, behind one small object: what the pipeline sees of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoTokenizer

from ltx2.models.describe import HERE, REQUIRED, Place, Source, distilled_lora_file, folder_configs, locate, read_card
from ltx2.models.lora import Lora, check, load_lora, merge_into, merged
from ltx2.models.randoms import fill_randomly
from ltx2.models.residency import Policy, Residency
from ltx2.models.singlefile import open_singlefile, prepare_component
from ltx2.models.weights import Prepared, build, compute_dtype, fill, prepare_folder
from ltx2.spec.card import Card
from ltx2.spec.errors import CheckpointError


@dataclass
class Models:
    """All networks of one model, ready to work.

    `card` describes the model; `tokenizer` is Gemma's (left padding, `card.text_tokens` long); networks are
    `text_encoder`, `connectors`, `transformer`, `vae`, `audio_vae`, `vocoder` and, when it came along, `upsampler`.
    """

    card: Card
    tokenizer: Any
    networks: dict[str, nn.Module]
    device: torch.device
    dtype: torch.dtype
    residency: Residency
    loras: tuple[tuple[Lora, float], ...] = ()
    distilled_lora: Lora | None = None
    random_lora: bool = field(default=False)

    @contextmanager
    def use(self, name: str) -> Iterator[Any]:
        """Yield a network that is on the device for the duration of the block.

        Raises CheckpointError when the model has no such network (an upsampler that did not come along).
        """
        if name not in self.networks:
            raise CheckpointError(
                f"{self.card.name} has no {name}", knob=name, hint=f"there are {', '.join(self.networks)}"
            )
        network = self.networks[name]
        with self.residency.at_work(network):
            yield network

    @contextmanager
    def lora(self, strength: float) -> Iterator[None]:
        """Merge the distilled LoRA at `strength` and the user's LoRAs into the transformer for the block.

        With strength 0 and no user LoRAs nothing happens. With random weights the distilled LoRA is a no-op, since
        merged weights cost nothing at run time. Raises CheckpointError when a LoRA is asked for that is not there.
        """
        loras = list(self.loras)
        if strength and self.distilled_lora:
            loras.append((self.distilled_lora, strength))
        elif strength and not self.random_lora:
            raise CheckpointError(
                f"{self.card.name} came without its distilled LoRA", hint="name it with --distilled-lora"
            )
        with self.use("transformer") as transformer, merged(transformer, loras):
            yield


def load(
    model: str | Source,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    weights: Literal["real", "random"] = "real",
    loras: Sequence[tuple[str | Path, float]] = (),
    residency: Policy = "resident",
) -> Models:
    """Load a model; see `describe` for what `model` may be, and `Source` for parts from elsewhere.

    `dtype` is what the networks compute in (the vocoder of 2.3+ stays in float32). `loras` are (file, strength) pairs
    merged in every stage. Raises UnknownModel for a name that is nothing, CheckpointError for files that do not fit,
    before weights are read wherever headers can tell.
    """
    source = model if isinstance(model, Source) else Source(model, weights)
    device = torch.device(device)
    card, place = read_card(source), locate(source)
    home = device if residency == "resident" else torch.device("cpu")
    if source.weights == "random":
        networks, tokenizer = _random(place, dtype, device, home), _tokenizer(HERE / "tiny", card)
    else:
        networks, tokenizer = _real(source, place, card, dtype, home)
    user = tuple((load_lora(Path(file), device), strength) for file, strength in loras)
    lora_file = distilled_lora_file(source, place.path)
    distilled = load_lora(lora_file, device) if lora_file and source.weights == "real" else None
    for lora in [lora for lora, _ in user] + ([distilled] if distilled else []):
        for component in lora.layers:
            check(networks[component], component, lora)
    # The text is encoded once, before the stages, so the user's LoRAs are merged into the connectors for good; the
    # distilled LoRA belongs to stages and leaves the connectors alone.
    merge_into(networks["connectors"], user, "connectors")
    return Models(
        card,
        tokenizer,
        networks,
        device,
        dtype,
        Residency(residency, device),
        user,
        distilled,
        source.weights == "random",
    )


def _real(
    source: Source, place: Place, card: Card, dtype: torch.dtype, device: torch.device
) -> tuple[dict[str, nn.Module], Any]:
    """Prepare every network first, so that anything wrong is refused before the first byte of weights is read."""
    names = [*REQUIRED, *(["upsampler"] if card.upsampler and not source.upsampler else [])]
    parts: dict[str, Prepared] = {}
    if place.is_file:
        if source.text_encoder is None:
            raise CheckpointError(
                f"{place.path.name} has no text encoder, as all official single files",
                knob="text_encoder", hint="name a folder with text_encoder/ and tokenizer/ by --text-encoder",
            )  # fmt: skip
        opened = open_singlefile(place.path)
        names.remove("text_encoder")
        parts = {name: prepare_component(opened, name, dtype=dtype) for name in names}
    else:
        parts = {name: prepare_folder(place.path, name, dtype=dtype) for name in names}
    if source.text_encoder:
        parts["text_encoder"] = prepare_folder(source.text_encoder, "text_encoder", dtype=dtype)
    if source.upsampler:
        parts["upsampler"] = prepare_component(open_singlefile(source.upsampler), "upsampler", dtype=dtype)
    tokenizer = _tokenizer(source.text_encoder or place.path, card)
    return {name: fill(prepared, device) for name, prepared in parts.items()}, tokenizer


def _random(place: Place, dtype: torch.dtype, device: torch.device, home: torch.device) -> dict[str, nn.Module]:
    networks: dict[str, nn.Module] = {}
    for seed, (name, config) in enumerate(folder_configs(place.path).items()):
        target = compute_dtype(name, config, dtype)
        networks[name] = fill_randomly(build(name, config), dtype=target, device=device, seed=seed).to(home)
    return networks


def _tokenizer(root: Path, card: Card) -> Any:
    """The model's tokenizer; with random weights the embedded model's (its ids are valid in Gemma's vocabulary)."""
    folder = root / "tokenizer"
    if not folder.is_dir():
        raise CheckpointError(f"{root} has no tokenizer/")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.padding_side = "left"
    tokenizer.model_max_length = card.text_tokens
    return tokenizer
