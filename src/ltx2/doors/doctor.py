"""`ltx2 doctor [NAME]`: what this machine is and can hold, and whether a model, here or on the hub, would load.

Exit codes: 0 nothing is wrong, 1 something is, 2 refused (there is no such model).
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from ltx2.doors import hardware
from ltx2.doors.flags import given
from ltx2.doors.machine import check_ways, device_of, use_cache, ways_of
from ltx2.doors.show import size
from ltx2.doors.verdict import tell
from ltx2.models.catalogue import CATALOGUE, find
from ltx2.models.checkup import Finding, check_local, check_remote
from ltx2.models.describe import PUBLISHED, Source
from ltx2.spec.errors import Ltx2Error, RefusedRequest
from ltx2.spec.settings import Settings

_PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "huggingface_hub", "av")
GIB = 2**30


def doctor_command(values: argparse.Namespace, settings: Settings) -> int:
    """Look at the machine, or at one model, and print what was found. Raises UnknownModel for a name that is nothing."""
    use_cache(settings)
    findings = check_model(values.name, values.revision) if values.name else list(check_machine(values, settings))
    return tell(findings, values.json)


def check_model(name: str, revision: str | None) -> list[Finding]:
    """Findings about a folder, a file, the embedded model, or a published model by its remote headers."""
    if name == "tiny" or Path(name).expanduser().exists():
        return check_local(name)
    entry = find(name)
    from ltx2.models import hub

    return check_remote(entry, hub.listing(entry.hub, revision or entry.revision))


def check_machine(values: argparse.Namespace, settings: Settings) -> Iterator[Finding]:
    """Findings about packages, disk, hub, memory, GPUs, what fits at the presets' own sizes, and the service if any."""
    versions = {name: _version(name) for name in _PACKAGES}
    yield Finding("python", True, f"{platform.python_version()} on {platform.platform()}")
    yield _packages(versions)
    if versions["huggingface_hub"]:
        yield from _disk_and_hub()
    if all(versions.values()):
        yield from hardware.look(given(values).get("device", settings.device))
        yield from _models(values, settings)
    yield from _service()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _packages(versions: dict[str, str | None]) -> Finding:
    told = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    if not all(versions.values()):
        return Finding("packages", False, f"{told}; pip install 'ltx2[engine]'")
    wrong = [line for name, version in versions.items() if (line := _unfit(name, version or ""))]
    return Finding("packages", not wrong, "; ".join([told, *wrong]))


def _unfit(package: str, version: str) -> str:
    """What is wrong with the version of a package by the requirements of this one; empty when nothing is."""
    from packaging.requirements import Requirement

    # A package that lies on the path without being installed says nothing of what it needs.
    for line in metadata.requires("ltx2") or () if _version("ltx2") else ():
        requirement = Requirement(line)
        asked = requirement.marker is None or requirement.marker.evaluate({"extra": "engine"})
        if requirement.name == package and asked and not requirement.specifier.contains(version, prereleases=True):
            return f"{package}{requirement.specifier} is needed: pip install 'ltx2[engine]'"
    return ""


def _disk_and_hub() -> Iterator[Finding]:
    from huggingface_hub import constants, get_token

    cache = Path(constants.HF_HUB_CACHE).absolute()
    least = min(entry.size for entry in CATALOGUE if entry.size and entry.version and entry.kind and not entry.refused)
    yield _disk("disk", cache, least / GIB, f"no room for a published model, which takes {size(least)} or more", True)
    token = "with a token" if get_token() else "without a token"
    if constants.HF_HUB_OFFLINE:
        yield Finding(
            "hub", True, f"offline, {token}: nothing can be downloaded while HF_HUB_OFFLINE is set", note=True
        )
    else:
        yield Finding("hub", True, f"{constants.ENDPOINT}, {token}; not asked: `ltx2 doctor NAME` does", note=True)


def _disk(subject: str, folder: Path, wanted: float, less: str, note: bool) -> Finding:
    """Whether a folder, or the one that it is to be made in, can be written; `less` than `wanted` GiB is told as such."""
    there = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    try:
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding(subject, False, f"{folder}: {error.strerror}")
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        return Finding(subject, False, f"{folder} cannot be written: {there} is no folder that this user may write")
    text = f"{size(free)} free in {folder}"
    if free < wanted * GIB:
        return Finding(subject, note, f"{text}: {less}", note=True)
    return Finding(subject, True, text)


def _models(values: argparse.Namespace, settings: Settings) -> Iterator[Finding]:
    """What fits on the device that the settings name, held as they say; only the model that they name must."""
    try:
        check_ways(given(values), settings)
        device = device_of(values, settings)
        held, _ = ways_of(values, settings, device)
    except RefusedRequest as error:
        yield Finding("settings", False, str(error))
        return
    if settings.model:
        yield hardware.fits(f"model {settings.model}", Source(settings.model), device, held, needed=True)
    yield hardware.fits("tiny", Source("tiny"), device, held, needed=True)
    for name in PUBLISHED:
        yield hardware.fits(name, Source(name, "random"), device, held, needed=False)


def _service() -> Iterator[Finding]:
    """The folder and the database of `ltx2 serve`, where the settings name one or there is one; nothing is changed."""
    try:
        from ltx2.doors.premises import read_settings
    except ModuleNotFoundError:
        return
    try:
        service, _, file = read_settings(argparse.Namespace(), os.environ)
    except RefusedRequest as error:
        yield Finding("service", False, str(error))
        return
    if not (file or service.db or service.folder.exists()):
        return
    full = f"nothing new is taken below {service.min_free_gib:g} GiB (min_free_gib)"
    yield _disk("service", service.folder, service.min_free_gib, full, False)
    yield _database(service.database)


def _database(url: str) -> Finding:
    from ltx2.jobs.database import peek
    from ltx2.jobs.tables import STEPS

    try:
        version = peek(url)
    except Ltx2Error as error:
        return Finding("database", False, " ".join(str(error).split()))
    if version is None:
        return Finding("database", True, "not made yet: `ltx2 serve` makes it", note=True)
    older = version < len(STEPS)
    text = f"schema version {version}" + (f", which `ltx2 serve` brings to {len(STEPS)}" if older else "")
    return Finding("database", True, text, note=older)
