"""The Triton kernels without a GPU: in Triton's interpreter against their twins, and compiled for Hopper.

Each runs in a process of its own, since Triton reads TRITON_INTERPRET when kernels are defined.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def _run(module: str, interpreted: bool) -> list[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpreted else "0"}
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return done.stdout.splitlines()


def test_kernels_equal_their_twins() -> None:
    lines = _run("ltx2.models.fast.compare", interpreted=True)
    assert len(lines) >= 27 and all(line.endswith(" ok") for line in lines)


def test_kernels_compile_for_hopper_with_wide_loads() -> None:
    lines = _run("tests.models.fast.compiled", interpreted=False)
    assert len(lines) >= 10 and all(line.endswith(" wide") for line in lines)


@pytest.mark.slow
def test_a_whole_evaluation_and_decode_equal_the_slow_ones() -> None:
    lines = _run("tests.models.fast.interpreted", interpreted=True)
    bounds = {"lossy": 1e-3}
    assert len(lines) == 6 and all(float(line.split()[-1]) <= bounds.get(line.split()[0], 1e-5) for line in lines)
