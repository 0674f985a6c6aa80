"""LTX-2.5's official files: a model in several of them, which together are read as one.

The transformer's file has the connectors' blocks, the text encoder's has their projections, tokenizer and config with it,
and the VAEs have files of their own. They lie in the folders that their repository has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ltx2.models.header import Header, read_header
from ltx2.models.rename import component_of
from ltx2.spec.errors import CheckpointError

TRANSFORMERS, TEXT_ENCODERS, VAES = "diffusion_models", "text_encoders", "vae"
# A key that only the VAE with the diffusion decoder has.
_DIFFUSION_VAE = "decoder.conv_in.weight"
# The text encoder's config in the header of its own file, and in that of a joined one, which is not its file.
GEMMA, JOINED_GEMMA = "gemma_config", "joined_gemma_config"
_ROTATED = ".comfy_quant"
_HINT = "`ltx2 download ltx-2.5-distilled` fetches all parts"


def is_split(folder: Path) -> bool:
    """Whether a folder has the layout of the official repository."""
    return (folder / TRANSFORMERS).is_dir() and not (folder / "transformer").is_dir()


def transformer_file(folder: Path) -> Path:
    """The one transformer in a folder of the official layout. Raises CheckpointError when there are more, or none."""
    found = sorted((folder / TRANSFORMERS).glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    names = ", ".join(file.name for file in found) or "none"
    raise CheckpointError(
        f"{folder / TRANSFORMERS} holds {names}: one transformer is needed",
        knob="model", hint="name the file itself" if found else _HINT,
    )  # fmt: skip


def read_official(file: Path, text_encoder: Path | None = None) -> Header:
    """The header of an official file, joined with those of the parts that lie in the folders beside its own.

    `text_encoder` replaces the one found there: a file has the connectors' projections with it, while of a folder
    nothing is read here. Raises CheckpointError for a part that is there twice, or in a form that is not supported.
    """
    header = read_header(file)
    if file.parent.name != TRANSFORMERS:
        others = [text_encoder] if text_encoder and text_encoder.is_file() else []
        return join([header, *map(read_header, others)]) if others else header
    root = file.parent.parent
    texts = [text_encoder] if text_encoder and text_encoder.is_file() else sorted(_files(root / TEXT_ENCODERS))
    vaes = [read_header(part) for part in sorted(_files(root / VAES))]
    return join([header, *_text(texts), *_vaes(vaes)])


def join(headers: Sequence[Header]) -> Header:
    """One header of several files, the first one's file and metadata; tensors that carry no prefix get one.

    Raises CheckpointError for a tensor that is there twice and for files of different versions.
    """
    first = headers[0]
    entries = dict(first.entries)
    config, metadata = first.config(), dict(first.metadata)
    for header in headers[1:]:
        _same(first, header, "model_version")
        bare = bare_component(header)
        for key, entry in header.entries.items():
            component, name = component_of(key, bare) or ("", key)
            full = f"{component}.{name}" if component in (bare, "tokenizer") else key
            if full in entries:
                raise CheckpointError(f"{key} is there twice, in {entries[full].file.name} and {header.file.name}")
            entries[full] = entry
        config |= {name: part for name, part in header.config().items() if part is not None}
        if GEMMA in header.metadata:
            metadata[JOINED_GEMMA] = header.metadata[GEMMA]
    _same_gemma(metadata)
    return Header(first.file, metadata | {"config": json.dumps(config)}, entries)


def bare_component(header: Header) -> str | None:
    """The component of a file whose keys carry no prefix, by a key that only it has; None for a combined file."""
    if GEMMA in header.metadata:
        return "text_encoder"
    signs = {"initial_conv.weight": "upsampler", "patchify_proj.weight": "transformer"}
    for key, component in signs.items():
        if key in header.entries:
            return component
    if "decoder.conv_in.conv.weight" in header.entries:
        rank = len(header.entries["decoder.conv_in.conv.weight"].shape)
        return "vae" if rank == 5 else "audio_vae"
    return None


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.glob("*.safetensors") if file.is_file()]


def _text(files: Sequence[Path]) -> list[Header]:
    """The one text encoder that can be used, or none: a folder may be named for it."""
    headers = [read_header(file) for file in files]
    usable = [header for header in headers if not any(key.endswith(_ROTATED) for key in header.entries)]
    if len(usable) > 1:
        names = ", ".join(header.file.name for header in usable)
        raise CheckpointError(
            f"{names}: one text encoder is needed", knob="text_encoder", hint="name the file by --text-encoder"
        )
    # A rotated one alone goes on, to be refused by name.
    return usable or headers[:1]


def _vaes(headers: Sequence[Header]) -> list[Header]:
    usable = [header for header in headers if _DIFFUSION_VAE not in header.entries]
    if headers and not any(bare_component(header) == "vae" for header in usable):
        named = [header.file.name for header in headers if header not in usable]
        held = f"{named[0]} holds the diffusion decoder, which is not supported" if named else "there is no video VAE"
        raise CheckpointError(f"{held}: the convolutional one is needed", knob="model", hint=_HINT)
    return usable


def _same(one: Header, other: Header, key: str) -> None:
    stated, also = one.metadata.get(key, ""), other.metadata.get(key, "")
    if stated and also and stated[:3] != also[:3]:
        raise CheckpointError(f"{one.file.name} is of {stated}, {other.file.name} of {also}: the model mixes versions")


def _same_gemma(metadata: dict[str, str]) -> None:
    """The text encoder must be the one that the transformer was trained with, where both say which."""
    versions: list[str] = []
    for key in ("gemma_source_checkpoint", JOINED_GEMMA):
        try:
            version = json.loads(metadata.get(key, "{}")).get("gemma_version") or ""
        except (ValueError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"the file's {key} is damaged: {error}") from error
        if not isinstance(version, str):
            raise CheckpointError(f"the file's {key} is damaged: gemma_version is {version!r:.40}, and no text")
        versions += [version] if version else []
    if len(set(versions)) > 1:
        raise CheckpointError(
            f"the transformer was made with the text encoder {versions[0]}, but {versions[1]} is there",
            knob="text_encoder",
        )
