"""Says whether a checkpoint, on the hub or here, is one that this engine can load: from configs and headers only.

What is on the hub is compared with the shipped manifests, before anything is downloaded; what is here is fitted into
the networks that its own configs describe, which are built without memory for weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from ltx2.models.catalogue import Published
from ltx2.models.describe import REQUIRED, Source, locate, read_card
from ltx2.models.header import Entry, Header
from ltx2.models.manifest import CLASSES, Fit, compare, compare_lora, is_lora, take_apart
from ltx2.models.split import join, read_official
from ltx2.spec.card import Version
from ltx2.spec.errors import CheckpointError, Ltx2Error, UnknownModel

if TYPE_CHECKING:
    from ltx2.models.hub import RemoteFile, Repository

# Forms that take a whole tree of files; the others are one file each.
WHOLE = ("folder", "text-encoder")
FOLDERS = {"upsampler": "latent_upsampler"}
FULL = "transformer_full"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, whether nothing is wrong with it, and what was found.

    `note` marks what nobody vouches for: it is not wrong, but it was not tried, or does less than one may hope.
    """

    subject: str
    ok: bool
    text: str
    note: bool = False


def check_remote(entry: Published, repository: Repository) -> list[Finding]:
    """Compare a published model with the manifests by its remote headers; nothing is kept on the disk.

    Raises UnknownModel when the repository lacks it, and RefusedRequest or Ltx2Error as `hub.listing` does.
    """
    from ltx2.models import hub

    files = wanted(entry, repository)
    size = sum(file.size for file in files) / 1e9
    findings = [Finding("hub", True, f"{len(files)} files, {size:.1f} GB, commit {repository.revision}")]
    if entry.refused:
        findings.append(Finding("engine", False, entry.refused))
    try:
        if entry.form in WHOLE:
            return findings + _check_folder(entry, repository, files)
        headers = hub.remote_headers(repository, files)
        return findings + check_header(join(headers) if len(headers) > 1 else headers[0], entry.version)
    except CheckpointError as error:
        return [*findings, Finding("files", False, str(error))]


def wanted(entry: Published, repository: Repository) -> list[RemoteFile]:
    """The files of a repository that a download of the entry takes.

    Raises UnknownModel when there are none, or when a pattern that is for one file matches several.
    """
    files = [file for file in repository.files if entry.wants(file.path)]
    if entry.form == "split":
        return [_only(entry, repository, pattern) for pattern in entry.files]
    if not files or (entry.form not in WHOLE and len(files) > 1):
        found = ", ".join(file.path for file in files[:4]) or "nothing"
        hint = "the repository may have changed: name one file as in owner/name/file.safetensors"
        raise UnknownModel(f"model: {entry.name} matches {found} in {entry.hub}", knob="model", hint=hint)
    return files


def _only(entry: Published, repository: Repository, pattern: str) -> RemoteFile:
    found = [file for file in repository.files if fnmatchcase(file.path, pattern)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(file.path for file in found[:4]) or "nothing"
    raise UnknownModel(
        f"model: {pattern} of {entry.name} matches {names} in {entry.hub}", knob="model",
        hint="the repository may have changed since this release",
    )  # fmt: skip


def check_local(model: str) -> list[Finding]:
    """Fit a model on this disk into the networks of its own configs; reads no weights.

    Raises UnknownModel when there is nothing of this name here.
    """
    place = locate(Source(model))
    if place.is_file:
        return _guarded("file", lambda: _fitted_file(place.path))
    findings = _guarded("card", lambda: [Finding("card", True, _described(model))])
    components = [name for name in (*CLASSES, FULL) if (place.path / FOLDERS.get(name, name) / "config.json").exists()]
    return findings + [_fitted(place.path, component) for component in components]


def check_header(header: Header, version: Version | None) -> list[Finding]:
    """Compare a single file with the manifests: a LoRA, or one or more components in the official spelling.

    `version` is the one that is expected, None for any. Raises CheckpointError for a file of no known form.
    """
    if is_lora(header):
        return [_finding("lora", compare_lora(header), header.entries.values())]
    components = take_apart(header)
    fits = {component: compare(component, entries, version) for component, entries in components.items()}
    findings = [_finding(name, fit, components[name].values()) for name, fit in fits.items()]
    return findings + _agreed(list(fits.values()), header.metadata.get("model_version", version or "")[:3])


def _check_folder(entry: Published, repository: Repository, files: Sequence[RemoteFile]) -> list[Finding]:
    from ltx2.models import hub

    held: dict[str, list[RemoteFile]] = {}
    for file in files:
        folder = file.path.partition("/")[0]
        for component in CLASSES:
            if folder == FOLDERS.get(component, component) or (folder == FULL and component == "transformer"):
                held.setdefault(component, []).append(file)
    required = ("text_encoder",) if entry.form == "text-encoder" else REQUIRED
    findings = [Finding(name, False, "missing") for name in required if name not in held]
    fits: list[Fit] = []
    for component, parts in held.items():
        configs = [file for file in parts if file.path.endswith("/config.json")]
        if not configs:
            findings.append(Finding(component, False, "it has no config.json"))
            continue
        problem = _foreign(component, hub.remote_text(repository, configs[0]))
        if problem:
            findings.append(Finding(component, False, problem))
            continue
        weights = [file for file in parts if file.path.endswith(".safetensors")]
        entries: dict[str, Entry] = {}
        for header in hub.remote_headers(repository, weights):
            entries |= header.entries
        fit = compare(component, entries, entry.version)
        fits.append(fit)
        findings.append(_finding(component, fit, entries.values()))
    return findings + _agreed(fits, entry.version or "")


def _foreign(component: str, text: bytes) -> str:
    try:
        config = json.loads(text)
        name = config.get("_class_name") or config["architectures"][0]
    except (ValueError, AttributeError, LookupError, TypeError, RecursionError):
        return "its config.json names no class"
    return "" if name in CLASSES[component] else f"it is of the class {name}, not {' or '.join(CLASSES[component])}"


def _finding(name: str, fit: Fit, entries: Iterable[Entry]) -> Finding:
    dtypes: dict[str, int] = {}
    for entry in entries:
        dtypes[entry.dtype] = dtypes.get(entry.dtype, 0) + 1
    counted = ", ".join(f"{count} {dtype}" for dtype, count in sorted(dtypes.items()))
    if fit.problems or not fit.versions:
        return Finding(name, False, "; ".join(fit.problems))
    return Finding(name, True, f"fits {' and '.join(fit.versions)} ({counted})")


def _agreed(fits: Sequence[Fit], version: str) -> list[Finding]:
    """Whether components that fit are of one version, and of the one that was promised."""
    fitting = [set(fit.versions) for fit in fits if fit.versions]
    if not fitting:
        return []
    common = set.intersection(*fitting)
    if not common:
        return [Finding("version", False, "the components are of different versions")]
    if version and version not in common:
        return [
            Finding(
                "version", False, f"{version} is stated, but the tensors are those of {' or '.join(sorted(common))}"
            )
        ]
    return [Finding("version", True, " or ".join(sorted(common)))]


def _described(model: str) -> str:
    card = read_card(Source(model))
    return f"LTX {card.version}, {card.kind}" + (f"; {card.note}" if card.note else "")


def _fitted(root: Path, component: str) -> Finding:
    import torch

    from ltx2.models.folder import prepare_folder

    def fit() -> list[Finding]:
        part = "transformer" if component == FULL else component
        name = FULL if component == FULL else ""
        prepared = prepare_folder(root, part, dtype=torch.bfloat16, name=name)
        return [Finding(component, True, f"{len(prepared.entries)} tensors fit {type(prepared.network).__name__}")]

    return _guarded(component, fit)[0]


def _fitted_file(file: Path) -> list[Finding]:
    header = read_official(file)
    if is_lora(header) or not header.config():
        return check_header(header, None)
    import torch

    from ltx2.models.singlefile import open_singlefile, prepare_component

    opened = open_singlefile(file)

    def fit(component: str) -> list[Finding]:
        prepared = prepare_component(opened, component, dtype=torch.bfloat16)
        return [Finding(component, True, f"{len(prepared.entries)} tensors fit {type(prepared.network).__name__}")]

    return [finding for name in opened.configs for finding in _guarded(name, lambda name=name: fit(name))]


def _guarded(subject: str, work: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return work()
    except Ltx2Error as error:
        return [Finding(subject, False, str(error))]
