"""The benchmarks are scripts beside each other, not a package: imported as they see each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """The module of a benchmark by its name."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return import_module


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Where a benchmark writes its lines."""
    return tmp_path / "results.jsonl"


@pytest.fixture
def lines(results: Path) -> Callable[[], list[dict[str, Any]]]:
    """What it wrote."""
    return lambda: [json.loads(line) for line in results.read_text().splitlines()]
