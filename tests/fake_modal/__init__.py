"""A small stand-in for Modal's control plane, for tests: the real client deploys to it and its real container runtime
runs on it. It keeps apps, functions, calls, dicts, volumes and secrets in memory, starts a process for each container,
and serves web functions over HTTP. Nothing is built, mounted, scheduled on GPUs or billed.
"""

from tests.fake_modal.cloud import Call, Cloud, Container, Function
from tests.fake_modal.machine import FakeModal

__all__ = ["Call", "Cloud", "Container", "FakeModal", "Function"]
