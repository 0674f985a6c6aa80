"""The video decoder with channels innermost: norm, activation and padding before a convolution are one operation.

Convolutions are faster in this layout, but Diffusers' padding leaves it at every one of them. Activations are
[B, F, H, W, C] in memory; weights are the Diffusers module's own.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from ltx2.models.fast.ops import Ops


def unsupported(vae: nn.Module) -> str | None:
    """Why this decoder cannot take the fast path, or None when it can."""
    owner: Any = vae
    decoder = owner.decoder
    if decoder.timestep_scale_multiplier is not None:
        return "it is conditioned on a timestep"
    for name, module in decoder.named_modules():
        kind = type(module).__name__
        if kind == "LTX2VideoResnetBlock3d" and module.per_channel_scale1 is not None:
            return f"{name} injects noise"
        if kind == "LTX2VideoResnetBlock3d" and not isinstance(module.nonlinearity, nn.SiLU):
            return f"{name} has another activation than SiLU"
        if kind == "LTX2VideoCausalConv3d":
            conv = module.conv
            if (
                conv.kernel_size != (3, 3, 3)
                or conv.stride != (1, 1, 1)
                or conv.padding_mode not in ("zeros", "reflect")
            ):
                return f"{name} is no plain convolution of three by three by three"
    if owner.use_tiling or owner.use_framewise_decoding or owner.use_slicing:
        return "it is set to decode in tiles"
    return None


def decode(vae: nn.Module, latent: Tensor, ops: Ops) -> Tensor:
    """Latents [B, C, F, H, W] (not normalised) -> pixels [B, 3, 8F-7, 32H, 32W] in -1..1, as `vae.decode`."""
    owner: Any = vae
    decoder = owner.decoder
    causal = bool(decoder.is_causal)
    x = latent.movedim(1, -1).contiguous()
    x = _convolve(decoder.conv_in, x, ops, causal, None)
    for resnet in decoder.mid_block.resnets:
        x = _resnet(resnet, x, ops, causal)
    for block in decoder.up_blocks:
        if block.conv_in is not None:
            x = _resnet(block.conv_in, x, ops, causal)
        for upsampler in block.upsamplers or ():
            x = _upsample(upsampler, x, ops, causal)
        for resnet in block.resnets:
            x = _resnet(resnet, x, ops, causal)
    x = _convolve(decoder.conv_out, x, ops, causal, decoder.norm_out.eps)
    return _unpatch(x, decoder.patch_size_t, decoder.patch_size)


def _convolve(layer: Any, x: Tensor, ops: Ops, causal: bool, eps: float | None) -> Tensor:
    """A 3x3x3 convolution; with `eps` of the RMS norm and the SiLU before it."""
    if layer.conv.padding_mode == "reflect" and min(x.shape[2:4]) < 2:
        raise ValueError("a picture of less than two latents a side cannot be mirrored")
    padded = ops.pad(x, eps, 2 if causal else 1, 0 if causal else 1, layer.conv.padding_mode == "reflect")
    result = functional.conv3d(padded.movedim(-1, 1), layer.conv.weight, layer.conv.bias)
    return result.movedim(1, -1).contiguous()


def _resnet(block: Any, x: Tensor, ops: Ops, causal: bool) -> Tensor:
    h = _convolve(block.conv1, x, ops, causal, block.norm1.eps)
    h = _convolve(block.conv2, h, ops, causal, block.norm2.eps)
    if block.norm3 is not None:
        x = block.norm3(x)
    if block.conv_shortcut is not None:
        x = functional.linear(x, block.conv_shortcut.weight.flatten(1), block.conv_shortcut.bias)
    return h + x


def _upsample(layer: Any, x: Tensor, ops: Ops, causal: bool) -> Tensor:
    """More frames and pixels out of channels; the residual repeats its channels."""
    result = _shuffle(_convolve(layer.conv, x, ops, causal, None), layer.stride)
    if layer.residual:
        repeats = layer.stride[0] * layer.stride[1] * layer.stride[2] // layer.upscale_factor
        result = result + _shuffle(x, layer.stride).repeat(1, 1, 1, 1, repeats)
    return result


def _shuffle(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """[B, F, H, W, C*t*h*w] -> [B, tF - (t-1), hH, wW, C]: the first frame stands for one."""
    t, h, w = stride
    parts = x.unflatten(-1, (-1, t, h, w)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return parts.flatten(5, 6).flatten(3, 4).flatten(1, 2)[:, t - 1 :]


def _unpatch(x: Tensor, frames: int, side: int) -> Tensor:
    """[B, F, H, W, C*frames*side*side] -> [B, C, F*frames, H*side, W*side]; width comes before height in the channels."""
    parts = x.unflatten(-1, (-1, frames, side, side)).permute(0, 4, 1, 5, 2, 7, 3, 6)
    return parts.flatten(6, 7).flatten(4, 5).flatten(2, 3)
