"""What the fast forward is given: what changes with every evaluation, and what stays the same over a stage."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ltx2.models.fast.block import Stream as Carried
from ltx2.models.fast.block import Tables, TextKeys
from ltx2.models.fast.ops import Rows, Table
from ltx2.models.velocity import Stream

Pair = tuple[Carried, Carried]


class Given(NamedTuple):
    """One evaluation, of (video, audio): latents [R, T, C], levels [R, U] and sigmas [R] in 0..1.

    R = 1 where all rows are alike, else B. Latents of one row are those of every row until the first one looks at its text.
    """

    latents: tuple[Tensor, Tensor]
    levels: tuple[Tensor, Tensor]
    sigmas: tuple[Tensor, Tensor]


class Constant(NamedTuple):
    """A stage, of (video, audio).

    `indices` [T] say which level a token has (None: all the first). `keys` are every block's text keys, where sigma
    does not change them; otherwise `texts` are the projected text tokens. `marks` [B, T, 1] are keyframe marks (2.5).
    """

    tables: tuple[Tables, Tables]
    indices: tuple[Tensor | None, Tensor | None]
    keys: tuple[list[TextKeys], list[TextKeys]] | None
    texts: tuple[Tensor, Tensor] | None
    marks: Tensor | None


def given(video: Stream, audio: Stream) -> Given:
    """The evaluation's own values; rows that are all alike are taken once."""
    made = (levels(video)[0], levels(audio)[0])
    latents = (video.latent, audio.latent)
    if len(made[0]) == len(made[1]) == 1:
        latents = (once(video.latent), once(audio.latent))
    return Given(latents, made, (once(video.sigma), once(audio.sigma)))


def levels(stream: Stream) -> tuple[Tensor, Tensor | None]:
    """Distinct timesteps [R, U], and which of them each token has: [T] int32, or None where all have the same."""
    timesteps = once(stream.timesteps)
    if stream.levels is not None or timesteps.shape[1] == 1:
        return timesteps, stream.levels
    distinct, index = torch.unique(timesteps, dim=1, return_inverse=True)
    return distinct, index.to(torch.int32)


def same_stage(one: Stream, other: Stream) -> bool:
    """Whether two streams differ in nothing but what `Given` holds. Tensors are compared by where they lie."""
    if one.levels is None and one.timesteps.shape[1] > 1:
        return False
    pairs = ((one.positions, other.positions), (one.context, other.context), (one.levels, other.levels))
    same = all(_same(a, b) for a, b in (*pairs, (one.keyframes, other.keyframes)))
    return same and one.latent.shape == other.latent.shape and one.timesteps.shape == other.timesteps.shape


def table(rope: Any, positions: Tensor) -> Table:
    """Split RoPE [T, H, d/2] of positions [1, n, T, 2]."""
    cos, sin = rope(positions, device=positions.device)
    return Table(*(part[0].transpose(0, 1).float().contiguous() for part in (cos, sin)))


def shared_positions(stream: Stream) -> Tensor:
    """Positions [1, n, T, 2]. Raises ValueError when rows of the batch have different ones."""
    first = stream.positions[:1]
    if stream.positions.stride(0) != 0 and not torch.equal(first.expand_as(stream.positions), stream.positions):
        raise ValueError("the rows of a batch must have the same positions")
    return first


def one_row(streams: Pair) -> Pair:
    """The first row of both streams."""
    video, audio = (Carried(stream.h[:1], _first(stream.n)) for stream in streams)
    return video, audio


def _first(n: Tensor | Rows) -> Tensor | Rows:
    return n.each(lambda part: part[:1]) if isinstance(n, Rows) else n[:1]


def once(values: Tensor) -> Tensor:
    """[B, ...] expanded from one row -> [1, ...]."""
    return values[:1] if values.stride(0) == 0 else values


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()
