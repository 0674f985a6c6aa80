"""Where the networks live while they are not at work: on the device, or on the CPU until their stage comes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from ltx2.models import fast

Policy = Literal["resident", "staged"]


class Residency:
    """Brings networks to the device for their stage.

    `resident`: everything stays on the device. `staged`: networks wait on the CPU and only those at work are on the
    device. Blocks may nest; a network goes home when its outermost block ends.
    """

    def __init__(self, policy: Policy, device: torch.device):
        self.policy = policy
        self.device = device
        self.home = device if policy == "resident" else torch.device("cpu")
        self._depth: Counter[int] = Counter()

    @contextmanager
    def at_work(self, network: nn.Module) -> Iterator[None]:
        """Hold the network on the device inside the block; send it home afterwards, also on errors.

        Also when there was no room for all of it: otherwise a half of it would stay, and count as being at work.
        """
        self._depth[id(network)] += 1
        try:
            if self.home != self.device and self._depth[id(network)] == 1:
                network.to(self.device)
            yield
        finally:
            self._depth[id(network)] -= 1
            if self.home != self.device and not self._depth[id(network)]:
                fast.forget(network)
                network.to(self.home)
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
