"""What a GPU container imports before its memory snapshot, without a question to CUDA.

A CPU snapshot is taken where there is no GPU, and a process that has asked CUDA there never finds one after the restore.
Diffusers (0.42) asks when it is imported beside a torch that was built for CUDA; it is told that there is none.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

# What loading needs.
IMPORTS = (
    "torch",
    "transformers",
    "ltx2.engine.factory",
    "ltx2.engine.engine",
    "ltx2.models.components",
    "ltx2.doors.inspection",
)


def import_all(names: Iterable[str] = IMPORTS) -> None:
    """Import modules, CUDA neither initialised nor asked whether it is there."""
    cuda = import_module("torch").cuda
    asked, cuda.is_available = cuda.is_available, _no
    try:
        for name in names:
            import_module(name)
    finally:
        cuda.is_available = asked


def _no() -> bool:
    return False
