"""A whole small checkpoint on disk, random weights, for doors that load what a user would load."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ltx2.models.small import small
    from tests.models.checkpoints import write_folder

    return write_folder(small("2.0"), tmp_path_factory.mktemp("small") / "model")
