"""Scaled dot-product attention for packed heads, with the backend that is fastest for the sequence on this device.

Attention in fp8 is another matter: it is lossy, and taken only where it is asked for. Queries, keys and values are e4m3,
with a scale for every head; so are, inside the kernel, the weights after the softmax.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ltx2.models.fast.ops import Heads, hopper
from ltx2.models.precision import FP8
from ltx2.spec.errors import RefusedRequest

log = logging.getLogger(__name__)

# Under sustained load on one H200, TFLOP/s of fa3-fwd against cuDNN: 640 against 590 at 4,992 tokens, 680 against 601 at
# 24,576; at 1,248 cuDNN needs a tenth less time. In short runs 4,992 queries to the 1,024 tokens of a text: 615 against 586.
FA3_TOKENS, FA3_KEYS = 4_096, 1_024
# From here on self-attention of the video is in fp8, where that is asked for: 860 and 901 TFLOP/s at the same sizes.
FP8_TOKENS = 4_096
# What FlashAttention 3 moves at once, and so of fp8 the number of channels of which a head must be a multiple.
_BYTES = 16
ORDER = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# The weights of a softmax are multiplied by this before they become e4m3, so that small ones are kept.
_WEIGHTS = 256.0
_QUERIES = 512


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for q [B, Tq, H*d], k and v [B, Tk, H*d]; returns [B, Tq, H*d].

    No mask: every token is real. Rows may be strided, as parts of a wider projection are.
    """
    flash = flash_3() if takes_flash_3(q.device, q.dtype, q.shape[1], k.shape[1]) else None
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in (q, k, v))
    if flash is not None:
        return flash(*(_aligned(part) for part in (q, k, v))).flatten(2)
    result = functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return result.transpose(1, 2).flatten(2)


def _aligned(part: Tensor) -> Tensor:
    """Rows and heads at distances that Hopper's copy engine takes, as in all published sizes; otherwise a copy."""
    bytes_apart = [distance * part.element_size() for distance in part.stride()[:-1]]
    fits = part.data_ptr() % _BYTES == 0 and all(distance % _BYTES == 0 for distance in bytes_apart)
    return part if fits else part.contiguous()


def attend_in_fp8(parts: Heads, dtype: torch.dtype) -> Tensor:
    """As `attend` of what `parts` stand for, [B, T, H*d] in `dtype`, with the softmax's weights in e4m3 as well."""
    if parts.q.device.type != "cuda":
        return attend_as_fp8(parts, dtype)
    return through_flash(flash_3(), parts).to(dtype)


def through_flash(flash: Any, parts: Heads) -> Tensor:
    """`attend_in_fp8` by FlashAttention 3, [B, T, H*d] bfloat16; heads that it does not take get channels of zeros."""
    heads = parts.scales[0].shape[1]
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in parts[:3])
    width = q.shape[-1]
    if spare := -width % _BYTES:
        q, k, v = (functional.pad(part.view(torch.uint8), (0, spare)).view(FP8) for part in (q, k, v))
    of_q, of_k, of_v = parts.scales
    seen = flash(q, k, v, softmax_scale=width**-0.5, q_descale=of_q, k_descale=of_k, v_descale=of_v)
    return seen[..., :width].flatten(2)


def attend_as_fp8(parts: Heads, dtype: torch.dtype) -> Tensor:
    """The plain twin of `attend_in_fp8`: float32 sums over the same e4m3 values."""
    q, k, v = (
        (part.unflatten(-1, (scale.shape[1], -1)).float() * scale[:, None, :, None]).transpose(1, 2)
        for part, scale in zip(parts[:3], parts.scales, strict=True)
    )
    results: list[Tensor] = []
    for some in q.split(_QUERIES, dim=2):
        scores = some @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        rounded = (weights * _WEIGHTS).to(FP8).float() / _WEIGHTS
        results.append(rounded @ v / weights.sum(-1, keepdim=True))
    return torch.cat(results, dim=2).transpose(1, 2).flatten(2).to(dtype)


def no_fp8_attention(device: torch.device) -> str | None:
    """Why there can be no attention in fp8 on this device; None where there can."""
    if device.type != "cuda":
        return "only GPUs have fp8 units"
    if not hopper(device):
        return f"{torch.cuda.get_device_name(device)} is no Hopper GPU (compute capability 9.0)"
    missing = [name for name in ("fa3_fwd_interface", "triton") if importlib.util.find_spec(name) is None]
    package = {"fa3_fwd_interface": "fa3-fwd", "triton": "triton"}
    if missing:
        return f"the package {package[missing[0]]} is not installed"
    return "the package fa3-fwd does not load, see the log" if flash_3() is None else None


def check_attention(name: str, device: torch.device, fast: bool = True) -> None:
    """Raise RefusedRequest where attention cannot be as a machine's settings name it."""
    if name != "fp8":
        return
    reason = "LTX2_FAST=off takes the plain path, which has none" if not fast else no_fp8_attention(device)
    if reason:
        raise RefusedRequest(f"attention: no fp8 here: {reason}", knob="attention", hint="auto works, and is exact")


def backend(device: torch.device, dtype: torch.dtype, tokens: int, fp8: bool = False) -> str:
    """The name of what self-attention over `tokens` runs on, for reports."""
    if fp8 and tokens >= FP8_TOKENS:
        return "fa3-fwd in fp8" if device.type == "cuda" else "plain fp8"
    if takes_flash_3(device, dtype, tokens, tokens):
        return "fa3-fwd"
    return "torch, cuDNN first" if device.type == "cuda" else "torch"


@contextmanager
def preferring(device: torch.device, order: list[SDPBackend] | None = None) -> Iterator[None]:
    """Let cuDNN come first on CUDA inside the block (set once a forward, since setting it costs CPU time)."""
    if device.type != "cuda":
        yield
        return
    with sdpa_kernel(order or ORDER, set_priority=True):
        yield


def takes_flash_3(device: torch.device, dtype: torch.dtype, queries: int, keys: int) -> bool:
    """Whether FlashAttention 3 is there (its wheel is `fa3-fwd`), and both sequences long enough to gain by it."""
    if device.type != "cuda" or dtype != torch.bfloat16 or queries < FA3_TOKENS or keys < FA3_KEYS:
        return False
    return hopper(device) and flash_3() is not None


@cache
def flash_3() -> Any:
    """`flash_attn_func` of fa3-fwd for [B, T, H, d], or None where it is not installed or, said aloud, does not load."""
    if importlib.util.find_spec("fa3_fwd_interface") is None:
        return None
    try:
        import fa3_fwd_interface  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError, RuntimeError) as error:
        # A wheel for another CUDA or torch: exact attention goes on without it.
        log.warning("fa3-fwd is installed, but does not load: %s", error)
        return None
    return fa3_fwd_interface.flash_attn_func
