"""Finds a model and describes it (its Card) from configs and headers alone: no torch, no weights, milliseconds.

A model is the embedded `tiny`, a Diffusers-format folder, an official single file, or a hub id. With random weights
it may also be the name of a published config: `ltx-2`, `ltx-2.3`, `ltx-2.5`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any, Literal

from ltx2.models import official
from ltx2.models.catalogue import FOLDER_FILES, FOLDER_IGNORED
from ltx2.models.header import Header, read_header
from ltx2.models.lineage import check_gemma, check_upsampler, kind_of, version_of_configs, version_of_file
from ltx2.models.packing import sort_out
from ltx2.models.rename import component_of
from ltx2.models.split import GEMMA, JOINED_GEMMA, bare_component, is_split, read_official, transformer_file
from ltx2.spec.card import Card, Kind, Shape
from ltx2.spec.errors import CheckpointError, UnknownModel
from ltx2.spec.precision import lora_bytes

Config = dict[str, Any]
HERE = Path(__file__).parent
PUBLISHED = {
    "ltx-2": "Lightricks/LTX-2",
    "ltx-2.3": "diffusers/LTX-2.3-Diffusers",
    "ltx-2.5": "Lightricks/LTX-2.5-Diffusers",
}
REQUIRED = ("transformer", "connectors", "vae", "audio_vae", "vocoder", "text_encoder")
PARTS_HINT = "the files of 2.5 belong in diffusion_models/, text_encoders/ and vae/ of one folder"
STG_BLOCKS: dict[str, tuple[int, ...]] = {"2.0": (29,), "2.3": (28,), "2.5": (28,)}
# Bytes of transformer, text encoder and the rest in the dtypes they run in; nothing to measure when weights are random.
_PUBLISHED_BYTES = {
    "2.0": (37_752_349_184, 24_374_650_080, 6_521_328_380),
    "2.3": (37_977_676_288, 24_374_650_080, 9_415_240_358),
    "2.5": (37_975_718_400, 23_919_460_448, 9_415_240_358),
}


@dataclass(frozen=True)
class Source:
    """Which model, and what comes with it from elsewhere.

    `kind` declares dev or distilled where names and schedulers do not say, and chooses `transformer_full/` where a
    folder has both. `text_encoder` is a folder with `text_encoder/` and `tokenizer/` (single files have none), a folder
    with the files of both, as Google's, or 2.5's one file; `upsampler` and `distilled_lora` are safetensors files that
    replace the model's own. `download` allows fetching a hub id that is not in the local cache.
    """

    model: str
    weights: Literal["real", "random"] = "real"
    kind: Kind | None = None
    text_encoder: Path | None = None
    upsampler: Path | None = None
    distilled_lora: Path | None = None
    download: bool = False


@dataclass(frozen=True)
class Place:
    """A located model: a folder, or an official file (of 2.5's several ones that of the transformer), and its revision."""

    name: str
    path: Path
    revision: str | None = None

    @property
    def is_file(self) -> bool:
        return self.path.is_file()


def locate(source: Source) -> Place:
    """Find the model on this disk.

    Raises UnknownModel for a name that is nothing here, among them a hub id that is not in the local cache unless
    `source.download` allows fetching it.
    """
    model = source.model
    if model == "tiny":
        return Place("tiny", HERE / "tiny")
    if source.weights == "random" and model in PUBLISHED:
        return Place(model, HERE / "configs" / model)
    path = Path(model).expanduser()
    if path.exists():
        return Place(model, transformer_file(path) if is_split(path) else path)
    if model in PUBLISHED:
        hint = f"--weights random, or the hub id {PUBLISHED[model]}"
        raise UnknownModel(f"model: {model} names a config without weights", knob="model", hint=hint)
    if model.count("/") == 1 and not model.startswith((".", "/", "~")) and not path.suffix:
        return _from_hub(model, source.download)
    if path.suffix or "/" in model:
        raise UnknownModel(f"model: {model} does not exist", knob="model", hint="a folder, a safetensors file or tiny")
    known = ", ".join(["tiny", *PUBLISHED.values()])
    raise UnknownModel(f"model: {model!r} is not known", knob="model", hint=f"a path, or one of {known}")


def read_card(source: Source) -> Card:
    """Describe a model without loading it.

    The version comes from the header's `model_version`, else from keys, else from the Diffusers configs. Dev or
    distilled cannot be seen in weights: it is declared, or stands in the name, or the scheduler has its shift off.
    Raises UnknownModel or CheckpointError, e.g. for a folder that lacks components or mixes two versions.
    """
    place = locate(source)
    if place.is_file:
        header = read_official(place.path, source.text_encoder)
        configs, version = singlefile_configs(header), version_of_file(header)
        missing = [name for name in REQUIRED if name not in configs and name != "text_encoder"]
        if missing:
            raise CheckpointError(
                f"{header.file.name} is no whole model: it holds no {', '.join(missing)}", knob="model", hint=PARTS_HINT
            )
        folder = source.text_encoder if source.text_encoder and source.text_encoder.is_dir() else None
        counts = _count(header, configs, folder)
        configs |= {"text_encoder": _json(text_folders(folder)[0] / "config.json")} if folder else {}
    else:
        configs = folder_configs(place.path, source.kind)
        version = version_of_configs(configs)
        shipped = place.path.parent == HERE / "configs"
        counts = _PUBLISHED_BYTES[version] if shipped else _weigh(place.path, configs, source.kind)
    check_gemma(configs, version)
    if source.upsampler:
        check_upsampler(singlefile_configs(read_header(source.upsampler)).get("upsampler"), source.upsampler.name)
    elif "upsampler" in configs:
        check_upsampler(configs["upsampler"], "the upsampler")
    path = place.path
    lora = distilled_lora_file(source, path)
    lora_file_bytes = lora.stat().st_size if lora and source.weights == "real" else 0
    shape = shape_of(configs, counts)
    card = Card(
        name=place.name,
        version=version,
        kind=_kind(place, source),
        family=version,
        revision=place.revision,
        output_sampling_rate=configs["vocoder"]["output_sampling_rate"],
        stg_blocks=STG_BLOCKS[version],
        distilled_lora=source.weights == "random" or lora is not None,
        upsampler=source.upsampler is not None or "upsampler" in configs,
        audio_latents_per_second=audio_rate(configs["audio_vae"]),
        note=_note(source),
        shape=replace(
            shape,
            lora_bytes=lora_file_bytes,
            drawn_lora_bytes=lora_bytes(shape) if source.weights == "random" else 0,
        ),
    )
    return _apply_own_card(card, path / "card.json") if path.is_dir() else card


def text_folders(folder: Path) -> tuple[Path, Path]:
    """Where text encoder and tokenizer lie: in folders of their own, or both in this one, as in Google's repositories."""
    flat = (folder / "config.json").exists() and not (folder / "text_encoder").is_dir()
    return (folder, folder) if flat else (folder / "text_encoder", folder / "tokenizer")


def transformer_folder(root: Path, kind: Kind | None) -> str:
    """Where a folder's transformer lies: 2.5 has the distilled one in `transformer/`, the other in `transformer_full/`."""
    return "transformer_full" if kind == "dev" and (root / "transformer_full").is_dir() else "transformer"


def folder_configs(root: Path, kind: Kind | None = None) -> dict[str, Config]:
    """The config of every component of a Diffusers-format folder. Raises CheckpointError naming what is missing."""
    folders = {name: root / name / "config.json" for name in REQUIRED}
    folders["transformer"] = root / transformer_folder(root, kind) / "config.json"
    missing = [f"{name}/config.json" for name, file in folders.items() if not file.exists()]
    if missing:
        raise CheckpointError(
            f"{root} is no LTX-2 checkpoint: {', '.join(missing)} missing",
            knob="model", hint="a Diffusers-format folder has one folder for each component",
        )  # fmt: skip
    upsampler = root / "latent_upsampler" / "config.json"
    folders |= {"upsampler": upsampler} if upsampler.exists() else {}
    return {name: _json(file) for name, file in folders.items()}


def singlefile_configs(header: Header) -> dict[str, Config]:
    """Diffusers configs of every component that an official file describes in its header and holds tensors of."""
    config, bare = header.config(), bare_component(header)
    if not config and bare != "text_encoder":
        raise CheckpointError(f"{header.file.name} has no config in its metadata; it is not an official LTX-2 file")
    held = {place[0] for key in header.entries if (place := component_of(key, bare))}
    configs: dict[str, Config] = {}
    if "transformer" in held:
        configs["transformer"] = official.transformer_config(config)
    if "connectors" in held:
        configs["connectors"] = official.connectors_config(config, _text_states(header, config))
    if "vae" in held:
        configs["vae"] = official.vae_config(config)
    if "audio_vae" in held:
        configs["audio_vae"] = official.audio_vae_config(config)
    if "vocoder" in held:
        name, fields_ = official.vocoder_config(config)
        configs["vocoder"] = {"_class_name": name} | fields_
    if "upsampler" in held:
        configs["upsampler"] = official.upsampler_config(config)
    if "text_encoder" in held:
        configs["text_encoder"] = _gemma_config(header)
    return configs


def distilled_lora_file(source: Source, path: Path) -> Path | None:
    """The distilled LoRA: the declared file, or the one that lies beside the model's components."""
    if source.distilled_lora:
        return source.distilled_lora
    found = sorted(path.glob("*distilled*lora*.safetensors")) if path.is_dir() else []
    return found[-1] if found else None


def _from_hub(model: str, download: bool) -> Place:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            model, allow_patterns=[*FOLDER_FILES], ignore_patterns=[*FOLDER_IGNORED], local_files_only=not download
        )
    except Exception as error:
        reason = "could not be downloaded" if download else "is not in the local cache"
        hint = str(error).splitlines()[0] if download else "nothing is downloaded unasked: use --download"
        raise UnknownModel(f"model: {model} {reason}", knob="model", hint=hint) from error
    root = Path(folder)
    return Place(model, transformer_file(root) if is_split(root) else root, root.name)


def _kind(place: Place, source: Source) -> Kind:
    # Random weights are what they are declared to be, and a folder with both transformers is of both kinds.
    if source.kind and (
        source.weights == "random" or transformer_folder(place.path, source.kind) == "transformer_full"
    ):
        return source.kind
    return kind_of(place.name, place.path, source.kind)


def shape_of(configs: dict[str, Config], counts: tuple[int, int, int]) -> Shape:
    """Sizes of the networks from their Diffusers configs; `counts` are bytes of transformer, text encoder, the rest."""
    transformer, audio = configs["transformer"], configs["audio_vae"]
    video_dim = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    text = configs.get("text_encoder", {}).get("text_config", {})
    width = transformer["caption_channels"] if transformer.get("use_prompt_embeddings", True) else video_dim
    return Shape(
        layers=transformer["num_layers"],
        heads=transformer["num_attention_heads"],
        video_dim=video_dim,
        audio_dim=transformer["audio_num_attention_heads"] * transformer["audio_attention_head_dim"],
        text_width=width,
        latent_channels=transformer["in_channels"],
        audio_channels=audio["latent_channels"],
        audio_bins=audio["mel_bins"] // 4,
        text_layers=text.get("num_hidden_layers", 48),
        text_hidden=text.get("hidden_size", 3840),
        transformer_bytes=counts[0],
        text_encoder_bytes=counts[1],
        other_bytes=counts[2],
    )


def _weigh(root: Path, configs: dict[str, Config], kind: Kind | None) -> tuple[int, int, int]:
    """Bytes in the dtypes that the networks run in, from the headers in a folder."""
    folders = {name: root / ("latent_upsampler" if name == "upsampler" else name) for name in configs}
    folders["transformer"] = root / transformer_folder(root, kind)
    sizes = {name: _elements(folder) * _width(configs[name]) for name, folder in folders.items()}
    first, text = sizes.pop("transformer"), sizes.pop("text_encoder")
    return first, text, sum(sizes.values())


def _count(header: Header, configs: dict[str, Config], text: Path | None) -> tuple[int, int, int]:
    """The same for a single file and the folder that its text encoder comes from."""
    sizes, bare = dict.fromkeys(configs, 0), bare_component(header)
    for key, entry in sort_out(header.entries, header.file.name)[0].items():
        if (place := component_of(key, bare)) and place[0] in sizes:
            sizes[place[0]] += prod(entry.shape) * _width(configs[place[0]])
    text_bytes = sizes.pop("text_encoder", Shape().text_encoder_bytes)
    text_bytes = _elements(text_folders(text)[0]) * 2 if text else text_bytes
    return sizes.pop("transformer", 0), text_bytes, sum(sizes.values())


def _elements(folder: Path) -> int:
    """Elements of all tensors in a folder; a set of shards that is there twice counts once."""
    sizes: dict[str, int] = {}
    for file in folder.glob("*.safetensors"):
        sizes |= {key: prod(entry.shape) for key, entry in read_header(file).entries.items()}
    return sum(sizes.values())


def _width(config: Config) -> int:
    """Bytes an element: two, but four for the 48 kHz vocoder, which runs in float32."""
    return 4 if config.get("_class_name") == "LTX2VocoderWithBWE" else 2


def audio_rate(config: Config) -> Fraction:
    """Audio latents per second, from the audio VAE's config: sampling rate / hop / 4."""
    return Fraction(config["sample_rate"], config["mel_hop_length"] * 4)


def _text_states(header: Header, config: Config) -> int:
    width = config["transformer"].get("caption_channels", 3840)
    for name in ("aggregate_embed", "video_aggregate_embed"):
        entry = header.entries.get(f"text_embedding_projection.{name}.weight")
        if entry:
            return entry.shape[1] // width
    raise CheckpointError(
        f"{header.file.name} has connectors but no text_embedding_projection, which lies in 2.5's text encoder file",
        knob="model", hint=PARTS_HINT,
    )  # fmt: skip


def _gemma_config(header: Header) -> Config:
    """The text encoder's config in its file's header."""
    try:
        return dict(json.loads(header.metadata.get(JOINED_GEMMA) or header.metadata[GEMMA]))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{header.file.name} has a damaged {GEMMA} in its metadata: {error}") from error


def _note(source: Source) -> str:
    if source.weights == "real":
        return ""
    return "random weights: for measuring, the result is noise"


def _apply_own_card(card: Card, file: Path) -> Card:
    if not file.exists():
        return card
    own = _json(file)
    own = {key: tuple(value) if isinstance(value, list) else value for key, value in own.items()}
    unknown = own.keys() - {field.name for field in fields(Card)}
    if unknown:
        raise CheckpointError(f"{file} has unknown fields: {', '.join(sorted(unknown))}")
    return replace(card, **own)


def _json(file: Path) -> Config:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
