"""Linear layers of the text encoder with weights in eight or four bits; activations stay as they are.

Weight-only, since the spikes in a language model's activations are what eight bits lose most of; docs/02-models.md has the
errors of these forms beside those of other libraries. The weight is widened just before the product, so speed is that of
the compute dtype, less the widening.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Weights of four bits that share a scale and an offset.
GROUP = 32
_STEPS8, _STEPS4 = 127, 15
_SMALLEST = 1e-12
# The smallest normal float16: below it a step would lose its precision.
_SMALLEST_STEP = 6.2e-5


class Int8Linear(nn.Module):
    """weight [out, in] int8 with scale [out] float32, one for each output channel; bias in the compute dtype, or none."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @staticmethod
    def quantise(weight: Tensor) -> dict[str, Tensor]:
        """W [out, in] -> its tensors: the largest magnitude of each output channel becomes 127."""
        wide = weight.float()
        scale = wide.abs().amax(dim=1).clamp(min=_SMALLEST) / _STEPS8
        return {"weight": (wide / scale.unsqueeze(1)).round().to(torch.int8), "scale": scale}

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """[out, in] in `dtype`."""
        return (self.weight.float() * self.scale.unsqueeze(1)).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out] in the dtype of x."""
        return nn.functional.linear(x, self.dequantise(x.dtype), self.bias)


class Int4Linear(nn.Module):
    """weight [out, in / 2] uint8, column 2j in the low four bits of byte j; scale and low [out, in / 32] float16.

    A weight is low + scale * q with q in 0..15, for each group of 32 along the input. bias as in Int8Linear.
    """

    def __init__(self, weight: Tensor, scale: Tensor, low: Tensor, bias: Tensor | None):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.low = nn.Parameter(low, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @staticmethod
    def quantise(weight: Tensor) -> dict[str, Tensor]:
        """W [out, in] -> its tensors: the range of every group is divided into 15 steps. `in` is a multiple of 32."""
        groups = weight.float().unflatten(1, (-1, GROUP))
        low = groups.amin(-1, keepdim=True).half()
        span = groups.amax(-1, keepdim=True) - low.float()
        scale = (span / _STEPS4).clamp(min=_SMALLEST_STEP).half()
        steps = ((groups - low.float()) / scale.float()).round().clamp(0, _STEPS4).to(torch.uint8).flatten(1)
        packed = steps[:, 0::2] | steps[:, 1::2] << 4
        return {"weight": packed, "scale": scale.squeeze(-1), "low": low.squeeze(-1)}

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """[out, in] in `dtype`."""
        steps = torch.stack((self.weight & _STEPS4, self.weight >> 4), dim=-1).flatten(1).unflatten(1, (-1, GROUP))
        wide = steps.float() * self.scale.float().unsqueeze(-1) + self.low.float().unsqueeze(-1)
        return wide.flatten(1).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out] in the dtype of x."""
        return nn.functional.linear(x, self.dequantise(x.dtype), self.bias)
