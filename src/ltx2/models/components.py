"""The networks that a generation needs, on one device, behind one small object: what the pipeline sees of a model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from ltx2.models.describe import HERE, REQUIRED, Place, Source, distilled_lora_file, folder_configs, locate, read_card
from ltx2.models.embeddings import Embeddings, fingerprint, identify, key_of
from ltx2.models.folder import prepare_folder
from ltx2.models.holding import PLAIN, Holding, quantise_network
from ltx2.models.lora import Lora, added, check, load_lora, merge_into, merged
from ltx2.models.randoms import draw_lora, fill_randomly
from ltx2.models.residency import Policy, Residency
from ltx2.models.singlefile import open_singlefile, prepare_component
from ltx2.models.weights import Prepared, build, compute_dtype, fill
from ltx2.spec.card import Card
from ltx2.spec.errors import CheckpointError
from ltx2.spec.precision import Held


@dataclass
class Models:
    """All networks of one model, ready to work.

    `card` describes the model; `tokenizer` is Gemma's (left padding, `card.text_tokens` long); networks are
    `text_encoder`, `connectors`, `transformer`, `vae`, `audio_vae`, `vocoder` and, when it came along, `upsampler`.
    `fast` says whether the transformer may take its fast path (`ltx2.models.fast`).
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
    holding: Holding = PLAIN
    embeddings: Embeddings | None = None
    identity: str = ""
    fast: bool = True

    @property
    def text_device(self) -> torch.device:
        """Where the text encoder works."""
        return self.holding.text_device or self.device

    @property
    def held(self) -> Held:
        """How the device holds the model, in words."""
        plain = "fp32" if self.dtype == torch.float32 else "bf16"
        text = {"plain": "auto"}.get(self.holding.text_encoder, self.holding.text_encoder)
        return Held(
            "fp8" if self.holding.transformer == "fp8" else plain,
            text if self.text_device == self.device else "elsewhere",
            self.holding.loras,
            self.fast,
        )

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
        if name == "text_encoder" and self.text_device != self.device:
            yield network
            return
        with self.residency.at_work(network):
            yield network

    def recall(self, text: str) -> tuple[Tensor, Tensor] | None:
        """The text tokens (video [1, S, Dv], audio [1, S, Da]) of a text that was embedded before, or None."""
        return self.embeddings.get(key_of(self.identity, text), self.device) if self.embeddings else None

    def remember(self, text: str, tokens: tuple[Tensor, Tensor]) -> None:
        """Keep the tokens of a text for `recall`."""
        if self.embeddings:
            self.embeddings.put(key_of(self.identity, text), tokens)

    @contextmanager
    def lora(self, strength: float) -> Iterator[None]:
        """Merge the distilled LoRA at `strength` and the user's LoRAs into the transformer for the block, or add them.

        With strength 0 and no user LoRAs nothing happens. With random weights a merged distilled LoRA is a no-op, since
        merged weights cost nothing at run time. Raises CheckpointError when a LoRA is asked for that is not there.
        """
        loras = list(self.loras)
        if strength and self.distilled_lora:
            loras.append((self.distilled_lora, strength))
        elif strength and not self.random_lora:
            raise CheckpointError(
                f"{self.card.name} came without its distilled LoRA", hint="name it with --distilled-lora"
            )
        apply = merged if self.holding.merges else added
        with self.use("transformer") as transformer, apply(transformer, loras):
            yield


def load(
    model: str | Source,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    weights: Literal["real", "random"] = "real",
    loras: Sequence[tuple[str | Path, float]] = (),
    residency: Policy = "resident",
    holding: Holding = PLAIN,
    embeddings: Embeddings | None = None,
) -> Models:
    """Load a model; see `describe` for what `model` may be, and `Source` for parts from elsewhere.

    `dtype` is what the networks compute in (the vocoder of 2.3+ stays in float32), `holding` how weights are held.
    `loras` are (file, strength) pairs used in every stage. `embeddings` remembers embedded prompts. Raises UnknownModel
    for a name that is nothing, CheckpointError for files that do not fit, before weights are read wherever headers can
    tell.
    """
    source = model if isinstance(model, Source) else Source(model, weights)
    device = torch.device(device)
    holding = holding.checked(device)
    card, place = read_card(source), locate(source)
    home = device if residency == "resident" else torch.device("cpu")
    homes = {"text_encoder": holding.text_device or home}
    if source.weights == "random":
        networks, tokenizer = _random(place, dtype, device, holding), _tokenizer(HERE / "tiny", card)
        networks = {name: network.to(homes.get(name, home)) for name, network in networks.items()}
        parts, root = {}, place.path
    else:
        parts, root = _prepared(source, place, card, dtype)
        tokenizer = _tokenizer(root, card)
        networks = fill_all(parts, homes, home, holding)
    user = tuple((load_lora(Path(file), device), strength) for file, strength in loras)
    lora_file = distilled_lora_file(source, place.path)
    distilled = load_lora(lora_file, device) if lora_file and source.weights == "real" else None
    if source.weights == "random" and not holding.merges:
        # What is added costs time and memory, so it must be there to be measured.
        distilled = draw_lora(networks["transformer"], device=device)
    for lora in [lora for lora, _ in user] + ([distilled] if distilled else []):
        for component in lora.layers:
            check(networks[component], component, lora)
    # The text is encoded once, before the stages, so the user's LoRAs are merged into the connectors for good; the
    # distilled LoRA belongs to stages and leaves the connectors alone.
    merge_into(networks["connectors"], user, "connectors")
    models = Models(
        card, tokenizer, networks, device, dtype, Residency(residency, device),
        loras=user,
        distilled_lora=distilled,
        random_lora=source.weights == "random",
        holding=holding,
    )  # fmt: skip
    # Random weights come from no files that could tell them apart.
    if embeddings and parts:
        models.embeddings, models.identity = embeddings, _identity(models, parts, root, loras)
    return models


def _identity(
    models: Models, parts: Mapping[str, Prepared], root: Path, loras: Sequence[tuple[str | Path, float]]
) -> str:
    """What decides a prompt's tokens: see `embeddings.identify`."""
    names = ("text_encoder", "connectors")
    files = {entry.file for name in names for entry in parts[name].entries.values()}
    networks: list[Any] = [models.networks[name] for name in names]
    return identify(
        [*files, *(file for file in (root / "tokenizer").iterdir() if file.is_file())],
        (models.text_device, models.device),
        dtypes=[str(models.dtype), *(str(network.dtype) for network in networks)],
        text_encoder=models.holding.text_encoder,
        text_tokens=models.card.text_tokens,
        configs=[json.dumps(dict(networks[1].config), default=str), networks[0].config.to_json_string(use_diff=False)],
        loras=[(fingerprint(Path(file)), strength) for file, strength in loras],
    )


def _prepared(source: Source, place: Place, card: Card, dtype: torch.dtype) -> tuple[dict[str, Prepared], Path]:
    """Every network, so that anything wrong is refused before the first byte of weights is read; where the tokenizer is."""
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
    return parts, source.text_encoder or place.path


def fill_all(
    parts: dict[str, Prepared], homes: Mapping[str, torch.device], home: torch.device, holding: Holding
) -> dict[str, nn.Module]:
    """Fill the networks, two at a time: while one's tensors are converted, the other's are read."""
    # The two large ones side by side, and the small ones after them.
    order = sorted(parts, key=lambda name: -sum(prod(entry.shape) for entry in parts[name].entries.values()))
    with ThreadPoolExecutor(2) as pool:
        filled = {name: pool.submit(fill, parts[name], homes.get(name, home), holding.of(name)) for name in order}
        return {name: filled[name].result() for name in parts}


def _random(place: Place, dtype: torch.dtype, device: torch.device, holding: Holding) -> dict[str, nn.Module]:
    networks: dict[str, nn.Module] = {}
    for seed, (name, config) in enumerate(folder_configs(place.path).items()):
        target = compute_dtype(name, config, dtype)
        networks[name] = fill_randomly(build(name, config), dtype=target, device=device, seed=seed)
        quantise_network(networks[name], holding.of(name))
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
