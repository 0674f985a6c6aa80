"""Where a measurement comes from: hardware, versions and commit. A number without them is no claim."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ltx2 import __version__

PACKAGES = ("torch", "diffusers", "transformers", "av", "numpy")


def origin(device: str) -> dict[str, Any]:
    """Device name, versions and commit, JSON-ready; `device` is a torch device string."""
    import torch

    cuda = device.startswith("cuda")
    name = torch.cuda.get_device_name(device) if cuda else _processor()
    versions = {"ltx2": __version__, "python": platform.python_version()}
    versions |= {package: found for package in PACKAGES if (found := _version(package))}
    if cuda and torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    return {"device": name, "threads": torch.get_num_threads(), "versions": versions, "commit": commit()}


def commit() -> str | None:
    """The commit of the source tree that this package runs from, with `+` when it is changed; None outside of git."""
    here = Path(__file__).parent
    try:
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        # An installed copy inside some other repository is not that repository's commit.
        if not _git(here, "ls-files", "--", Path(__file__).name):
            return None
        return head + ("+" if _git(here, "status", "--porcelain", "--", str(here.parent)) else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    """The CPU's own name where Linux tells it; `platform` knows the architecture only."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
