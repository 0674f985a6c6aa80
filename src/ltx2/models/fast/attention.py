"""Scaled dot-product attention for packed heads, with the backend that is fastest for the sequence on this device."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

# Measured on one H200: 634 against 641-690 TFLOP/s of cuDNN at 4,992 tokens, 702 against 624 at 24,576.
FA3_TOKENS = 16_384
ORDER = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for q [B, Tq, H*d], k and v [B, Tk, H*d]; returns [B, Tq, H*d].

    No mask: every token is real. Rows may be strided, as parts of a wider projection are.
    """
    flash = _flash_3(q, k)
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in (q, k, v))
    if flash is not None:
        return flash(q, k, v).flatten(2)
    result = functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return result.transpose(1, 2).flatten(2)


@contextmanager
def preferring(device: torch.device, order: list[SDPBackend] | None = None) -> Iterator[None]:
    """Let cuDNN come first on CUDA inside the block (set once a forward, since setting it costs CPU time)."""
    if device.type != "cuda":
        yield
        return
    with sdpa_kernel(order or ORDER, set_priority=True):
        yield


def _flash_3(q: Tensor, k: Tensor) -> Any:
    """FlashAttention 3, where its wheel `fa3-fwd` is installed and the sequence is long enough to gain."""
    if q.device.type != "cuda" or q.dtype != torch.bfloat16 or min(q.shape[1], k.shape[1]) < FA3_TOKENS:
        return None
    return flash_3() if torch.cuda.get_device_capability(q.device)[0] == 9 else None


@cache
def flash_3() -> Any:
    """`flash_attn_func` of fa3-fwd for [B, T, H, d], or None where it is not installed."""
    if importlib.util.find_spec("fa3_fwd_interface") is None:
        return None
    import fa3_fwd_interface  # pyright: ignore[reportMissingImports]

    return fa3_fwd_interface.flash_attn_func
