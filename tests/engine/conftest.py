"""Engines in child processes, ended with their tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ltx2.engine.process import Limits, ProcessEngine
from tests.engine.children import FAULTY, HERE, QUICK, Make


@pytest.fixture
def make() -> Iterator[Make]:
    """A function that makes engines with the options of the faulty one."""
    made: list[ProcessEngine] = []

    def engine(limits: Limits = QUICK, **options: Any) -> ProcessEngine:
        made.append(ProcessEngine(options, FAULTY, limits, HERE))
        return made[-1]

    yield engine
    for each in made:
        each.close()
        assert each.pid is None, "no child is left"


@pytest.fixture(scope="module")
def steady() -> Iterator[ProcessEngine]:
    """One engine for all tests that leave it, or its successor, working."""
    with ProcessEngine({}, FAULTY, QUICK, HERE) as engine:
        yield engine
