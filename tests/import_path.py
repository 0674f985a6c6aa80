"""Where a process that a test starts finds what the test itself imports, whether `ltx2` is installed or not."""

from __future__ import annotations

import os
from pathlib import Path

import ltx2

ROOT = Path(__file__).parents[1]


def import_path() -> str:
    """A PYTHONPATH: the folders of `ltx2` and `tests`, then this process's own one; all absolute."""
    inherited = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    folders = [Path(ltx2.__file__).parents[1], ROOT, *map(Path, inherited)]
    return os.pathsep.join(dict.fromkeys(str(folder.absolute()) for folder in folders))
