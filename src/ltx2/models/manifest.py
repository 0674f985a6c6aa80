"""Compares tensors with the shipped manifests: names and shapes of every published network, in Diffusers' spelling.

The manifests were derived from the published configs and agree with the published file sizes; no real file was opened.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ltx2.models.gemma import gemma_name
from ltx2.models.header import Entry, Header
from ltx2.models.packing import FP8_DTYPES, sort_out
from ltx2.models.rename import component_of, diffusers_name
from ltx2.models.split import bare_component
from ltx2.spec.card import Version
from ltx2.spec.errors import CheckpointError

Shapes = dict[str, tuple[int, ...]]
VERSIONS: tuple[Version, ...] = ("2.0", "2.3", "2.5")
# The class that a component's config must name; `-Diffusers` in a repository's name proves nothing.
CLASSES = {
    "transformer": ("LTX2VideoTransformer3DModel",),
    "connectors": ("LTX2TextConnectors",),
    "vae": ("AutoencoderKLLTX2Video",),
    "audio_vae": ("AutoencoderKLLTX2Audio",),
    "vocoder": ("LTX2Vocoder", "LTX2VocoderWithBWE"),
    "upsampler": ("LTX2LatentUpsamplerModel",),
    "text_encoder": ("Gemma3ForConditionalGeneration", "Gemma4UnifiedForConditionalGeneration"),
}
_FILES = {"2.0": "LTX-2", "2.3": "LTX-2.3", "2.5": "LTX-2.5"}
# The x2 upsampler of 2.5 is 2.3's, tensor for tensor.
_UPSAMPLERS = {"2.0": "LTX-2-upsampler", "2.3": "LTX-2.3-upsampler", "2.5": "LTX-2.3-upsampler"}
# Published upscalers that no recipe of this engine uses: the versions that they were published for.
_OTHER_UPSAMPLERS: dict[str, tuple[Version, ...]] = {"upsampler-x1.5": ("2.3",), "upsampler-temporal": VERSIONS}
_GEMMAS = {"2.0": "gemma3-12b", "2.3": "gemma3-12b", "2.5": "gemma4-12b"}
_LEVELS = 4
_FLOATS = ("BF16", "F32", "F16")
_LORA = re.compile(r"(?:diffusion_model\.)?(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True)
class Fit:
    """How a component compares: the versions whose manifest it fills exactly, else what differs from the nearest."""

    versions: tuple[Version, ...]
    problems: tuple[str, ...] = ()


@cache
def manifest(version: Version) -> Mapping[str, Shapes]:
    """Shapes of every tensor of every published component of a version, by component and Diffusers name."""
    components: dict[str, Shapes] = {"upsampler": _read(_UPSAMPLERS[version]), "text_encoder": _gemma(_GEMMAS[version])}
    for key, shape in _read(_FILES[version]).items():
        if place := component_of(key):
            component, name = place
            components.setdefault(component, {})[diffusers_name(component, name, _LEVELS)] = shape
    return components


def compare(component: str, entries: Mapping[str, Entry], version: Version | None = None) -> Fit:
    """Compare one component's tensors, under Diffusers names, with the manifests of all versions.

    What differs is told for `version`, else for the version that differs least.
    """
    found = {name: entry.shape for name, entry in entries.items()}
    if component == "text_encoder":
        found = {gemma_name(name): shape for name, shape in found.items()} | {"lm_head.weight": ()}
    differences: dict[Version, list[tuple[str, list[str]]]] = {
        other: _differences(manifest(other)[component], found) for other in VERSIONS
    }
    exact: tuple[Version, ...] = tuple(other for other in VERSIONS if not differences[other])
    if component == "upsampler" and not exact:
        exact = next((versions for name, versions in _OTHER_UPSAMPLERS.items() if _read(name) == found), ())
    kinds = _wrong_dtypes(entries)
    if exact:
        return Fit(exact, kinds)
    nearest = version or min(VERSIONS, key=lambda other: sum(len(names) for _, names in differences[other]))
    texts = tuple(
        f"{len(names)} {what} for {nearest}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in differences[nearest]
    )
    return Fit((), texts + kinds)


def take_apart(header: Header) -> dict[str, dict[str, Entry]]:
    """The tensors of an official single file, by component and Diffusers name; scales are checked and left out.

    Raises CheckpointError for tensors of no known component, for formats that are not supported, and for scales
    without their weight or weights without their scale.
    """
    bare = bare_component(header)
    components: dict[str, dict[str, Entry]] = {}
    unknown: list[str] = []
    for key, entry in sort_out(header.entries, header.file.name)[0].items():
        place = component_of(key, bare)
        if place and place[0] == "tokenizer":
            continue
        if place:
            component, name = place
            components.setdefault(component, {})[diffusers_name(component, name, _LEVELS)] = entry
        elif not key.startswith("duration_head."):
            unknown.append(key)
    if unknown or not components:
        named = ", ".join(unknown[:3]) or "it is empty"
        raise CheckpointError(f"{header.file.name} has {len(unknown)} tensors of no known component: {named}")
    return components


def is_lora(header: Header) -> bool:
    """Whether a file holds a LoRA."""
    return any(_LORA.fullmatch(key) for key in header.entries)


def compare_lora(header: Header) -> Fit:
    """Compare a LoRA's pairs, A [rank, in] and B [out, rank], with the linears of every version."""
    pairs: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, entry in header.entries.items():
        if match := _LORA.fullmatch(key):
            pairs.setdefault(match[1], {})[match[2]] = entry.shape
    others = [key for key in header.entries if not _LORA.fullmatch(key)]
    wrong: dict[Version, list[str]] = {version: _lora_mismatches(version, pairs) for version in VERSIONS}
    versions: tuple[Version, ...] = tuple(version for version in VERSIONS if not wrong[version])
    problems = [f"{len(others)} tensors are not of a LoRA: {', '.join(others[:3])}"] if others else []
    if not versions:
        nearest = min(VERSIONS, key=lambda version: len(wrong[version]))
        problems.append(
            f"{len(wrong[nearest])} of {len(pairs)} layers do not fit {nearest}: {', '.join(wrong[nearest][:3])}"
        )
    return Fit(versions, tuple(problems))


def _read(name: str) -> Shapes:
    file = Path(__file__).parent / "manifests" / f"{name}.json.gz"
    return {key: tuple(shape) for key, shape in json.loads(gzip.decompress(file.read_bytes())).items()}


@cache
def _gemma(name: str) -> Shapes:
    # The head shares the embedding's weight and need not be in a file.
    return {gemma_name(name): shape for name, shape in _read(name).items()} | {"lm_head.weight": ()}


def _differences(expected: Shapes, found: Shapes) -> list[tuple[str, list[str]]]:
    wrong = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    kinds = (("missing", missing), ("unexpected", unexpected), ("of the wrong shape", wrong))
    return [(what, names) for what, names in kinds if names]


def _wrong_dtypes(entries: Mapping[str, Entry]) -> tuple[str, ...]:
    odd = [
        f"{name} {entry.dtype}" for name, entry in entries.items() if entry.dtype not in (*_FLOATS, *FP8_DTYPES, "F4")
    ]
    return (f"{len(odd)} of an unexpected dtype: {', '.join(odd[:3])}",) if odd else ()


def _lora_mismatches(version: Version, pairs: Mapping[str, Mapping[str, tuple[int, ...]]]) -> list[str]:
    linears = manifest(version)
    wrong: list[str] = []
    for layer, pair in pairs.items():
        component, name = component_of(f"{layer}.weight", "transformer") or ("transformer", layer)
        weight = linears[component].get(diffusers_name(component, name, _LEVELS))
        down, up = pair.get("A", ()), pair.get("B", ())
        fits = weight is not None and len(down) == len(up) == 2 and down[0] == up[1] and (up[0], down[1]) == weight
        if not fits:
            wrong.append(layer)
    return wrong
