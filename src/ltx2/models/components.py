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

from ltx2.models.describe import (
    HERE,
    REQUIRED,
    Place,
    Source,
    distilled_lora_file,
    folder_configs,
    locate,
    read_card,
    text_folders,
    transformer_folder,
)
from ltx2.models.embeddings import Embeddings, fingerprint, identify, key_of
from ltx2.models.folder import prepare_folder
from ltx2.models.holding import PLAIN, Holding, quantise_network
from ltx2.models.lora import Lora, added, check, load_lora, merge_into, merged
from ltx2.models.precision import use_calibration
from ltx2.models.randoms import draw_lora, fill_randomly
from ltx2.models.residency import Policy, Residency
from ltx2.models.singlefile import open_singlefile, prepare_component, tokenizer_folder
from ltx2.models.weights import Prepared, build, compute_dtype, fill
from ltx2.spec.card import Card
from ltx2.spec.errors import CheckpointError, RefusedRequest
from ltx2.spec.precision import Held


@dataclass
class Models:
    """All networks of one model, ready to work.

    `card` describes the model; `tokenizer` is Gemma's (left padding, `card.text_tokens` long); networks are
    `text_encoder`, `connectors`, `transformer`, `vae`, `audio_vae`, `vocoder` and, when it came along, `upsampler`.
    `fast` says whether networks may take their fast paths (`ltx2.models.fast`), and `attention` fp8 that there the
    transformer's self-attention of large pictures is in float8, which is lossy. `frugal` is a time of too little memory:
    what keeps something on the device beside the weights is left out.
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
    attention: str = "auto"
    frugal: bool = False

    @property
    def fast_passes(self) -> bool:
        """Whether transformer and text encoder may take their fast paths, which keep graphs, keys and joined weights."""
        return self.fast and not self.frugal

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

    def scale_activations(self, how: str) -> None:
        """`static` scales the fp8 transformer's activations as its file was calibrated, `auto` every row on its own.

        Raises RefusedRequest for static without fp8 or without a calibration.
        """
        transformer = self.networks["transformer"]
        if how == "static" and self.holding.transformer != "fp8":
            raise RefusedRequest(
                "activation_scales: static goes with fp8 only", knob="activation_scales", hint="--precision fp8 works"
            )
        if not use_calibration(transformer, how == "static") and how == "static":
            raise RefusedRequest(
                f"activation_scales: {self.card.name} has no input_scale, which published fp8 files have",
                knob="activation_scales", hint="auto works",
            )  # fmt: skip

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
        networks, tokenizer = _random(place, dtype, device, holding), _tokenizer(HERE / "tiny" / "tokenizer", card)
        networks = {name: network.to(homes.get(name, home)) for name, network in networks.items()}
        parts, tokens = {}, []
    else:
        parts, tokenizer, tokens = _prepared(source, place, card, dtype)
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
        models.embeddings, models.identity = embeddings, _identity(models, parts, tokens, loras)
    return models


def _identity(
    models: Models, parts: Mapping[str, Prepared], tokens: Sequence[Path], loras: Sequence[tuple[str | Path, float]]
) -> str:
    """What decides a prompt's tokens: see `embeddings.identify`. `tokens` are the tokenizer's files."""
    names = ("text_encoder", "connectors")
    files = {entry.file for name in names for entry in parts[name].entries.values()}
    networks: list[Any] = [models.networks[name] for name in names]
    return identify(
        [*files, *tokens],
        (models.text_device, models.device),
        dtypes=[str(models.dtype), *(str(network.dtype) for network in networks)],
        text_encoder=models.holding.text_encoder,
        text_tokens=models.card.text_tokens,
        configs=[json.dumps(dict(networks[1].config), default=str), networks[0].config.to_json_string(use_diff=False)],
        loras=[(fingerprint(Path(file)), strength) for file, strength in loras],
    )


def _prepared(
    source: Source, place: Place, card: Card, dtype: torch.dtype
) -> tuple[dict[str, Prepared], Any, list[Path]]:
    """Every network, so that anything wrong is refused before the first byte of weights is read; the tokenizer and its
    files, none where it lies in a network's.
    """
    names = [*REQUIRED, *(["upsampler"] if card.upsampler and not source.upsampler else [])]
    opened = open_singlefile(place.path, source.text_encoder) if place.is_file else None
    folder = source.text_encoder
    if folder and folder.is_file():
        folder = None
        if opened is None:
            raise CheckpointError(
                f"text_encoder: {source.text_encoder} is a file, which goes with the other files of 2.5 only",
                knob="text_encoder", hint="name a folder with text_encoder/ and tokenizer/",
            )  # fmt: skip
    if opened is None:
        full = {"transformer": transformer_folder(place.path, source.kind)}
        parts = {name: prepare_folder(place.path, name, dtype=dtype, name=full.get(name, "")) for name in names}
    else:
        if not folder and "text_encoder" not in opened.configs:
            raise CheckpointError(
                f"{place.path.name} has no text encoder, as all official single files",
                knob="text_encoder", hint="name a folder with text_encoder/ and tokenizer/ by --text-encoder",
            )  # fmt: skip
        names = [name for name in names if name != "text_encoder" or not folder]
        parts = {name: prepare_component(opened, name, dtype=dtype) for name in names}
    if folder:
        parts["text_encoder"] = prepare_folder(
            folder, "text_encoder", dtype=dtype, name="." if text_folders(folder)[0] == folder else ""
        )
    if source.upsampler:
        parts["upsampler"] = prepare_component(open_singlefile(source.upsampler), "upsampler", dtype=dtype)
    if opened and not folder:
        with tokenizer_folder(opened) as written:
            return parts, _read_tokenizer(written, card), []
    tokens = text_folders(folder or place.path)[1]
    files = [file for file in tokens.iterdir() if "token" in file.name] if tokens.is_dir() else []
    return parts, _tokenizer(tokens, card), files


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


def _tokenizer(folder: Path, card: Card) -> Any:
    """The model's tokenizer; with random weights the embedded model's (its ids are valid in Gemma's vocabulary)."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder.parent} has no tokenizer/")
    return _read_tokenizer(folder, card)


def _read_tokenizer(folder: Path, card: Card) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the tokenizer cannot be read: {str(error).splitlines()[0]}") from error
    tokenizer.padding_side = "left"
    tokenizer.model_max_length = card.text_tokens
    return tokenizer
