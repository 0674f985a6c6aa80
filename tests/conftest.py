"""What all tests share: one thread for each worker, and which tests a machine without a GPU leaves out."""

from __future__ import annotations

import os
import signal

import pytest

# A shell's background jobs ignore Ctrl-C, and so would all that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Before torch is imported: workers with a thread pool each are slower than single threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in [name for name in os.environ if name.startswith("LTX2_")]:
    del os.environ[name]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests on a CPU, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu") or item.get_closest_marker("slow")]
    if not marked:
        return
    import torch

    if torch.cuda.is_available():
        return
    left_out = [item for item in marked if item.get_closest_marker("gpu") or not config.getoption("--slow")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)
