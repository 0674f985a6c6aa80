"""How a linear layer holds its weights: plainly, or in fp8 with scales; and what published fp8 and nvfp4 tensors stand for.

An fp8 weight is e4m3 [out, in] with one float32 scale for each output channel: W = weight * scale. On a GPU both factors
of the product are fp8 (the activations get a scale for each row); anywhere else the weight is dequantised before it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
E4M3_MAX = 448.0
SMALLEST = 1e-12
# The units of a GPU take matrices whose both sides are multiples of 16.
_MULTIPLE = 16
# Values of the four bits of nvfp4: a sign and e2m1.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_NVFP4_BLOCK = 16
_TILE_ROWS, _TILE_COLUMNS = 128, 4


class Fp8Linear(nn.Module):
    """A linear layer with weight [out, in] e4m3, scale [out] float32 and a bias in the compute dtype, or none.

    `input_scale` [] float32 is the publisher's calibration of the activations, where there is one. It is used only
    while `static` is set; otherwise every row of activations gets its own scale, which needs no calibration.
    `counts` [2] int64 then has the activations that went beyond the calibration, and all of them. It is counted in place,
    so that a CUDA graph goes on counting.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None, input_scale: Tensor | None = None):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.input_scale = None if input_scale is None else nn.Parameter(input_scale, requires_grad=False)
        self.static = False
        self.counts: Tensor | None
        # A buffer, so that it goes where the weights go.
        self.register_buffer("counts", None, persistent=False)

    @staticmethod
    def quantise(weight: Tensor) -> dict[str, Tensor]:
        """W [out, in] -> weight and scale: the largest magnitude of each output channel becomes 448."""
        wide = weight.float()
        scale = wide.abs().amax(dim=1).clamp(min=SMALLEST) / E4M3_MAX
        return {"weight": (wide / scale.unsqueeze(1)).to(FP8), "scale": scale}

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out] in the dtype of x."""
        if self.static and self.input_scale is not None:
            values, scales = self._calibrated(x, self.input_scale)
        elif x.device.type == "cuda" and runs_on_units(self.weight):
            values, scales = quantise_rows(x)
        else:
            return nn.functional.linear(x, dequantise(self.weight, self.scale, x.dtype), _cast(self.bias, x.dtype))
        return product(values, scales, self.weight, self.scale, self.bias, x.dtype)

    def _calibrated(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        # Without the clamp a value beyond the calibration becomes NaN, and the video black.
        scaled = x.float() / scale
        if self.counts is not None:
            self.counts[0].add_((scaled.abs() > E4M3_MAX).sum())
            self.counts[1].add_(x.numel())
        values = scaled.clamp(-E4M3_MAX, E4M3_MAX).to(FP8)
        return values, scale.reshape(1).expand(*x.shape[:-1], 1)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations [..., in] -> (e4m3 [..., in], scales [..., 1] float32); rows that are not finite stay so."""
    wide = x.float()
    scales = wide.abs().amax(-1, keepdim=True).clamp(min=SMALLEST) / E4M3_MAX
    return (wide / scales).to(FP8), scales


def dequantise(weight: Tensor, scale: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """dtype(float32(weight [out, in]) * scale), scale [], [1], [out] or [out, 1]: what an fp8 weight stands for."""
    factor = scale.float().reshape(-1, 1) if scale.ndim else scale.float()
    return (weight.float() * factor).to(dtype)


def product(
    values: Tensor, scales: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """(values * scales) @ (weight * scale).T + bias, [..., out] in `dtype`; both factors are e4m3.

    On a GPU its fp8 units do it; elsewhere, and for sides that are no multiples of 16, float32 does.
    """
    bias = _cast(bias, dtype)
    if values.device.type != "cuda" or not runs_on_units(weight) or dtype != torch.bfloat16:
        wide = nn.functional.linear(values.float(), weight.float()) * scales * scale
        return (wide if bias is None else wide + bias.float()).to(dtype)
    rows = scales.reshape(-1, 1).contiguous()
    result = torch._scaled_mm(
        values.flatten(0, -2), weight.t(),
        scale_a=rows, scale_b=scale.unsqueeze(0), bias=bias, out_dtype=dtype, use_fast_accum=True,
    )  # fmt: skip
    return result.unflatten(0, values.shape[:-1])


def runs_on_units(weight: Tensor) -> bool:
    """Whether a weight's sides suit the fp8 units."""
    return weight.shape[0] % _MULTIPLE == 0 and weight.shape[1] % _MULTIPLE == 0


def unpack_nvfp4(packed: Tensor, block_scale: Tensor, scale: Tensor) -> Tensor:
    """What a published nvfp4 weight stands for, [out, in] bfloat16.

    packed uint8 [out, in / 2], element 2j in the high four bits of byte j; block_scale e4m3 [out to 128, in / 16 to 4],
    one for 16 elements, in the order of cuBLAS's tiles of 128 x 4; scale [] float32.
    """
    rows, columns = packed.shape[0], packed.shape[1] * 2
    table = torch.tensor([*_E2M1, *(-value for value in _E2M1)], device=packed.device)
    halves = torch.stack((packed >> 4, packed & 15), dim=-1).flatten(1)
    scales = unswizzle(block_scale)[:rows, : columns // _NVFP4_BLOCK].float() * scale.float()
    values = table[halves.long()].unflatten(1, (-1, _NVFP4_BLOCK))
    return (values * scales.unsqueeze(-1)).flatten(1).to(torch.bfloat16)


def unswizzle(scales: Tensor) -> Tensor:
    """Block scales [128 m, 4 n] from the order of cuBLAS's tiles to rows and columns.

    Inside a tile, row r and column c lie at (r % 32) * 16 + (r // 32) * 4 + c.
    """
    tiles = scales.reshape(scales.shape[0] // _TILE_ROWS, scales.shape[1] // _TILE_COLUMNS, 32, 4, _TILE_COLUMNS)
    return tiles.permute(0, 3, 2, 1, 4).reshape(scales.shape)


def fp8_linears(network: nn.Module) -> Iterator[tuple[str, Fp8Linear]]:
    """The fp8 layers of a network, by name."""
    for name, module in network.named_modules():
        if isinstance(module, Fp8Linear):
            yield name, module


@torch.inference_mode(False)
def use_calibration(network: nn.Module, static: bool = True) -> int:
    """Scale activations by the publisher's calibration (or, with False, a row at a time again); starts counting anew.

    Returns the number of layers that have one; the others go on a row at a time.
    """
    calibrated = [layer for _, layer in fp8_linears(network) if layer.input_scale is not None]
    for layer in calibrated:
        layer.static = static
        layer.counts = torch.zeros(2, dtype=torch.int64, device=layer.weight.device) if static else None
    return len(calibrated)


@torch.inference_mode()
def count_anew(network: nn.Module) -> None:
    """Forget what was clamped so far, in place; also where the counts came to the device in inference mode."""
    for _, layer in fp8_linears(network):
        if layer.counts is not None:
            layer.counts.zero_()


def clamped_share(network: nn.Module) -> dict[str, float]:
    """Of each layer that was used with its calibration: the share of activations that went beyond it."""
    counted = [(name, layer.counts) for name, layer in fp8_linears(network) if layer.counts is not None]
    if not counted:
        return {}
    # All at once: every look at a tensor of a GPU waits for it.
    numbers = torch.stack([counts for _, counts in counted]).tolist()
    return {name: beyond / of for (name, _), (beyond, of) in zip(counted, numbers, strict=True) if of}


def clamping(network: nn.Module) -> str | None:
    """What was clamped, in words; None when no layer was used with its calibration."""
    shares = clamped_share(network)
    if not shares:
        return None
    worst = max(shares, key=lambda name: shares[name])
    mean = sum(shares.values()) / len(shares)
    said = f"the file's activation scales clamped {mean:.2g} of the activations of {len(shares)} layers"
    return f"{said}, at most {shares[worst]:.2g} in {worst}" if shares[worst] else said


def _cast(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.to(dtype)
