"""Looks at every operation of what a CUDA graph would record: nothing of it may touch the host.

The device `meta` stands for the GPU: a value that is asked for does not exist there, and an operation with a tensor of the
host in it is a copy that a recording does not allow, or would never repeat.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")


class Apart(TorchDispatchMode):
    """`touched` are the operations with a tensor of the host, of `done` altogether, while it is entered as a context."""

    def __init__(self) -> None:
        super().__init__()
        self.touched: list[str] = []
        self.done = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.done += 1
        tensors = [one for one in tree_leaves((args, kwargs, result)) if isinstance(one, Tensor)]
        if any(tensor.device != META for tensor in tensors):
            self.touched.append(str(func))
        return result
