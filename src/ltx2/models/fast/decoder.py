"""The video decoder with channels innermost, and its last blocks piece by piece in time.

Convolutions are faster with channels innermost, but Diffusers' padding leaves that layout at every one of them. Activations
are [B, F, H, W, C] in memory; norm, activation and padding before a convolution are one operation; weights are the
Diffusers module's own.

Pieces are exact, not tiles: a convolution keeps the two frames before the next piece, so every frame of every layer is
computed once and from the same neighbours as in one go. The memory that those blocks took for a whole video they take
for a piece, and whoever takes the pieces can work on one while the next is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ltx2.models.fast.ops import Ops
from ltx2.spec.cost import piece_frames

# Blocks whose work is done in pieces: four fifths of that of 2.0's decoder, 55 % of 2.3's and 2.5's. Those before see the
# video in half of its frames (2.0: a quarter) or fewer, where what a convolution waits for is a large part of the video.
STREAMED = 2

Layer = Callable[[Tensor, bool], "Tensor | None"]
"""From the next frames [B, f, H, W, C], and whether they are the last, to those that can be told by now, if any."""


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


def decode(vae: nn.Module, latent: Tensor, ops: Ops, piece: int | None = None) -> Iterator[Tensor]:
    """Latents [B, C, F, H, W] (not normalised) -> pixels [B, 3, f, 32H, 32W] in -1..1, 8F-7 in all, as `vae.decode`.

    Pieces have at most `piece` frames, or what the last two blocks make of one if that is more; by default what fills a
    large GPU.
    """
    owner: Any = vae
    decoder = owner.decoder
    causal = bool(decoder.is_causal)
    blocks = [_layers(block, ops, causal) for block in decoder.up_blocks]
    before: list[Layer] = [_Convolution(decoder.conv_in, ops, causal)]
    before += [_Resnet(resnet, ops, causal) for resnet in decoder.mid_block.resnets]
    before += [layer for block in blocks[:-STREAMED] for layer in block]
    last = [layer for block in blocks[-STREAMED:] for layer in block]
    last.append(_Convolution(decoder.conv_out, ops, causal, decoder.norm_out.eps))
    x = latent.movedim(1, -1).contiguous()
    (x,) = _through(before, x, True, x.shape[1])
    faster = math.prod(layer.faster for layer in last if isinstance(layer, _Upsample))
    if piece is None:
        height, width = (32 * side for side in latent.shape[3:])
        piece = piece_frames(width, height)
    count = max(1, piece // faster)
    parts = x.split(count, dim=1)
    for number, part in enumerate(parts):
        for made in _through(last, part, number == len(parts) - 1, count):
            yield _unpatch(made, decoder.patch_size_t, decoder.patch_size)


def _layers(block: Any, ops: Ops, causal: bool) -> list[Layer]:
    layers: list[Layer] = [] if block.conv_in is None else [_Resnet(block.conv_in, ops, causal)]
    layers += [_Upsample(upsampler, ops, causal) for upsampler in block.upsamplers or ()]
    return [*layers, *(_Resnet(resnet, ops, causal) for resnet in block.resnets)]


def _through(layers: list[Layer], x: Tensor, last: bool, most: int) -> Iterator[Tensor]:
    """What `layers` make of the next frames, at most `most` of those that enter going on at once.

    After the last ones each layer tells what it has kept back, in the end more than a piece, which would be late for
    whoever takes it and need more memory: it goes on in parts.
    """
    for number, layer in enumerate(layers):
        made = layer(x, last)
        if made is None:
            return
        if isinstance(layer, _Upsample):
            most *= layer.faster
        if made.shape[1] > most:
            parts = made.tensor_split(-(-made.shape[1] // most), dim=1)
            for place, part in enumerate(parts, 1):
                yield from _through(layers[number + 1 :], part, last and place == len(parts), most)
            return
        x = made
    yield x


class _Convolution:
    """A 3x3x3 convolution; with `eps`, of the RMS norm and the SiLU before it.

    First and last frame of the video are repeated beyond its ends: one at each, or, if causal, two at the begin. A
    convolution that is not causal is a frame behind what it was given, until the last piece.
    """

    def __init__(self, layer: Any, ops: Ops, causal: bool, eps: float | None = None):
        self.conv, self.ops, self.eps = layer.conv, ops, eps
        self.ends = (2, 0) if causal else (1, 1)
        self.reflects = layer.conv.padding_mode == "reflect"
        self.before: Tensor | None = None
        self.begun = False

    def __call__(self, x: Tensor, last: bool) -> Tensor | None:
        if self.reflects and min(x.shape[2:4]) < 2:
            raise ValueError("a picture of less than two latents a side cannot be mirrored")
        front, back = 0 if self.begun else self.ends[0], self.ends[1] if last else 0
        before = self.before
        if not self.begun:
            # Frames that were too few to begin with.
            x = x if before is None else torch.cat([before, x], 1)
            before = None
            if front + x.shape[1] + back < 3:
                self.before = x
                return None
        self.begun = True
        if not last:
            # A copy, or the whole piece would stay in memory.
            self.before = _last_two(x, before).clone()
        padded = self.ops.pad(x, self.eps, front, back, self.reflects, before)
        result = functional.conv3d(padded.movedim(-1, 1), self.conv.weight, self.conv.bias)
        return result.movedim(1, -1).contiguous()


def _last_two(x: Tensor, before: Tensor | None) -> Tensor:
    """The last two frames so far; of a video with one so far, that one twice."""
    if x.shape[1] > 1:
        return x[:, -2:]
    return torch.cat([x if before is None else before[:, -1:], x], 1)


class _Resnet:
    def __init__(self, block: Any, ops: Ops, causal: bool):
        self.block = block
        self.first = _Convolution(block.conv1, ops, causal, block.norm1.eps)
        self.second = _Convolution(block.conv2, ops, causal, block.norm2.eps)
        self.waiting: Tensor | None = None

    def __call__(self, x: Tensor, last: bool) -> Tensor | None:
        h = self.first(x, last)
        if h is not None:
            h = self.second(h, last)
        if self.block.norm3 is not None:
            x = self.block.norm3(x)
        if self.block.conv_shortcut is not None:
            conv = self.block.conv_shortcut
            x = functional.linear(x, conv.weight.flatten(1), conv.bias)
        parts = [x] if self.waiting is None else [self.waiting, x]
        self.waiting = None if last else _after(parts, 0 if h is None else h.shape[1])
        if h is None:
            return None
        # In place, part by part: a piece that was joined to the frames waiting for it would be copied whole.
        begin = 0
        for part in parts:
            place = h[:, begin : begin + part.shape[1]]
            place += part[:, : place.shape[1]]
            begin += part.shape[1]
        return h


def _after(parts: list[Tensor], count: int) -> Tensor:
    """Copies of the frames of `parts` after the first `count`."""
    left = []
    for part in parts:
        left.append(part[:, count:])
        count = max(0, count - part.shape[1])
    return torch.cat(left, 1)


class _Upsample:
    """More frames and pixels out of channels; the residual repeats its channels. The first frame stands for one."""

    def __init__(self, layer: Any, ops: Ops, causal: bool):
        self.layer, self.conv = layer, _Convolution(layer.conv, ops, causal)
        self.faster: int = layer.stride[0]
        self.waiting: Tensor | None = None
        self.begun = False

    def __call__(self, x: Tensor, last: bool) -> Tensor | None:
        h = self.conv(x, last)
        count = 0 if h is None else h.shape[1]
        result = None if h is None else _shuffle(h, self.layer.stride)
        if self.layer.residual:
            seen = x if self.waiting is None else torch.cat([self.waiting, x], 1)
            self.waiting = None if last else seen[:, count:].clone()
            if result is not None:
                repeats = (
                    self.layer.stride[0] * self.layer.stride[1] * self.layer.stride[2] // self.layer.upscale_factor
                )
                result += _shuffle(seen[:, :count], self.layer.stride).repeat(1, 1, 1, 1, repeats)
        if result is not None and not self.begun:
            self.begun = True
            result = result[:, self.layer.stride[0] - 1 :]
        return result


def _shuffle(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """[B, F, H, W, C*t*h*w] -> [B, tF, hH, wW, C]."""
    t, h, w = stride
    parts = x.unflatten(-1, (-1, t, h, w)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return parts.flatten(5, 6).flatten(3, 4).flatten(1, 2)


def _unpatch(x: Tensor, frames: int, side: int) -> Tensor:
    """[B, F, H, W, C*frames*side*side] -> [B, C, F*frames, H*side, W*side]; width comes before height in the channels."""
    parts = x.unflatten(-1, (-1, frames, side, side)).permute(0, 4, 1, 5, 2, 7, 3, 6)
    return parts.flatten(6, 7).flatten(4, 5).flatten(2, 3)
