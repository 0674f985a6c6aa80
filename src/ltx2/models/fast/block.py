"""One transformer block over both streams, with fused projections and fused elementwise work.

A stream goes from block to block as its residual `h` and its already normalised and modulated `n`, so that adding a
branch, normalising and modulating for the next reader is always one operation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from ltx2.models.fast.attention import attend, attend_in_fp8
from ltx2.models.fast.lanes import Lanes, both
from ltx2.models.fast.modulation import Modulation
from ltx2.models.fast.ops import Affine, Ops, Reads, Rows, Table, norm_scales
from ltx2.models.fast.projection import Joined, Projection, project


class Stream(NamedTuple):
    """A stream between two operations: the residual [B, T, D] and what the next layer reads."""

    h: Tensor
    n: Tensor | Rows


class TextKeys(NamedTuple):
    """Normalised keys and values of the text for one block and stream: [B, S, D]."""

    k: Tensor
    v: Tensor


Attended = tuple[Tensor, Tensor]
"""The residual [B, T, D] after self-attention, and what text attention adds to it."""
Prepared = tuple[Tensor, Tensor | Rows, "Tensor | Rows | TextKeys"]
"""For the exchange: the residual, the stream as queries, and what the other looks at: keys and values, or their input."""


class Tables(NamedTuple):
    """RoPE of one stream: for its own attention and, by time alone, for the exchange with the other."""

    own: Table
    cross: Table


class Side(NamedTuple):
    """What a block needs of one stream besides the stream itself."""

    modulation: Modulation
    index: Tensor | None
    tables: Tables
    text: TextKeys
    following: Affine | None
    perturbed: bool


@dataclass(frozen=True)
class Norms:
    """Weights [D] of the query and key norms, their eps, and the number of heads."""

    q: Tensor
    k: Tensor
    eps: float
    heads: int


class SelfAttention:
    """Queries, keys, values and gate logits in one product; perturbed, the values take the attention's place.

    From `fp8_from` tokens on (None: never) the attention is in fp8, which is lossy.
    """

    def __init__(self, module: Any, fp8_from: int | None = None):
        gate = [module.to_gate_logits] if module.to_gate_logits is not None else []
        self.project = project([module.to_q, module.to_k, module.to_v, *gate])
        self.norms, self.out, self.fp8_from = _norms(module), project([module.to_out[0]]), fp8_from
        self.scales: tuple[Tensor, Tensor] | None = None
        if fp8_from is not None:
            heads = self.norms.heads
            self.scales = (norm_scales(self.norms.q, heads), norm_scales(self.norms.k, heads))

    def __call__(self, n: Tensor | Rows, ops: Ops, table: Table, perturbed: bool) -> Tensor:
        norms = self.norms
        if perturbed:
            v, *gate = self.project(n, ops, first=2)
            return self.out(_gate(v, gate, ops, self.out.reads == Reads.ROWS), ops)[0]
        q, k, v, *gate = self.project(n, ops)
        weights = (norms.q, norms.k)
        if self.scales and self.fp8_from is not None and q.shape[1] >= self.fp8_from:
            parts = ops.quantise_heads((q, k, v), weights, self.scales, table, norms.heads, norms.eps)
            seen = attend_in_fp8(parts, v.dtype)
        else:
            q, k = ops.normalise_pair(q, k, weights, table, norms.heads, norms.eps)
            seen = attend(q, k, v, norms.heads)
        return self.out(_gate(seen, gate, ops, self.out.reads == Reads.ROWS), ops)[0]


class CrossAttention:
    """Queries and gate logits of one sequence, keys and values of another."""

    def __init__(self, module: Any):
        gate = [module.to_gate_logits] if module.to_gate_logits is not None else []
        self.query, self.keys = project([module.to_q, *gate]), project([module.to_k, module.to_v])
        self.norms, self.out = _norms(module), project([module.to_out[0]])

    def remember(self, other: Tensor | Rows, ops: Ops, table: Table | None = None) -> TextKeys:
        """Normalised keys and values of the sequence that is looked at."""
        k, v = self.keys(other, ops)
        return TextKeys(ops.normalise_heads(k, self.norms.k, table, self.norms.heads, self.norms.eps), v)

    def __call__(self, n: Tensor | Rows, keys: TextKeys, ops: Ops, table: Table | None = None) -> Tensor:
        q, *gate = self.query(n, ops)
        q = ops.normalise_heads(q, self.norms.q, table, self.norms.heads, self.norms.eps)
        seen = attend(q, keys.k, keys.v, self.norms.heads)
        return self.out(_gate(seen, gate, ops, self.out.reads == Reads.ROWS), ops)[0]


class Half:
    """The layers of one stream in a block: self-attention, text attention, feed-forward."""

    def __init__(self, own: SelfAttention, text: Any, feed: Any, eps: float):
        self.own, self.text, self.eps = own, CrossAttention(text), eps
        self.feed_in: Projection = project([feed.net[0].proj])
        self.feed_out: Projection = project([feed.net[2]])

    def attend(self, stream: Stream, side: Side, ops: Ops) -> tuple[Tensor, Tensor]:
        """Self-attention and text attention: the residual after the first, and what the second adds.

        A stream of one row becomes as many as there are texts: until here they are all the same.
        """
        made = side.modulation
        y = self.own(stream.n, ops, side.tables.own, side.perturbed)
        h, (n,) = ops.residual_norm(
            stream.h, (y, made.own_gate), [made.query], side.index, self.eps, self.text.query.reads
        )
        rows = len(side.text.k)
        return _repeat(h, rows), self.text(_repeat_rows(n, rows), side.text, ops)

    def feed(self, stream: Stream, side: Side, ops: Ops, reads: Reads) -> Stream:
        """The feed-forward layer, and the norm for the next block (none after the last)."""
        y = self.feed_out(self._hidden(stream.n, ops), ops)[0]
        targets = [] if side.following is None else [side.following]
        h, results = ops.residual_norm(stream.h, (y, side.modulation.feed_gate), targets, side.index, self.eps, reads)
        return Stream(h, results[0] if results else h)

    def _hidden(self, n: Tensor | Rows, ops: Ops) -> Tensor | Rows:
        layer = self.feed_in
        if (
            ops.linear_gelu
            and isinstance(layer, Joined)
            and layer.bias is not None
            and self.feed_out.reads == Reads.TENSOR
        ):
            assert isinstance(n, Tensor)
            return ops.linear_gelu(n, layer.weight, layer.bias)
        return ops.gelu(layer(n, ops)[0], self.feed_out.reads == Reads.ROWS)


class Block:
    """A block of the transformer over the Diffusers module's own weights; `fp8_from` as for the video's `SelfAttention`.

    `reads` says for (video, audio) what the block wants as its input.
    """

    def __init__(self, module: Any, fp8_from: int | None = None):
        eps = module.norm1.eps
        self.video = Half(SelfAttention(module.attn1, fp8_from), module.attn2, module.ff, eps)
        self.audio = Half(SelfAttention(module.audio_attn1), module.audio_attn2, module.audio_ff, eps)
        self.a2v = CrossAttention(module.audio_to_video_attn)
        self.v2a = CrossAttention(module.video_to_audio_attn)
        self.reads = (self.video.own.project.reads, self.audio.own.project.reads)

    def __call__(
        self,
        streams: tuple[Stream, Stream],
        sides: tuple[Side, Side],
        ops: Ops,
        lanes: Lanes,
        isolated: bool,
        reads: tuple[Reads, Reads],
    ) -> tuple[Stream, Stream]:
        """Both streams through the block, the video's in the main lane and the audio's in the side lane.

        `isolated` leaves out the exchange between them; `reads` is what the next block wants as its input.
        """
        halves = (self.video, self.audio)
        between = self._alone if isolated else self._exchange
        towards = between(
            both(lanes, *(partial(halves[n].attend, streams[n], sides[n], ops) for n in (0, 1))), sides, ops, lanes
        )
        return both(lanes, *(partial(halves[n].feed, towards[n], sides[n], ops, reads[n]) for n in (0, 1)))

    def _alone(
        self, added: tuple[Attended, Attended], sides: tuple[Side, Side], ops: Ops, lanes: Lanes
    ) -> tuple[Stream, Stream]:
        def towards(half: Half, h: Tensor, y: Tensor, side: Side) -> Stream:
            return self._towards_feed(half, h, (y, side.modulation.query_gate), side, ops)

        return both(
            lanes,
            partial(towards, self.video, *added[0], sides[0]),
            partial(towards, self.audio, *added[1], sides[1]),
        )

    def _exchange(
        self, added: tuple[Attended, Attended], sides: tuple[Side, Side], ops: Ops, lanes: Lanes
    ) -> tuple[Stream, Stream]:
        """Audio looks at video and video at audio, both as they were before the exchange."""

        def keys(reader: CrossAttention, asked: Tensor | Rows | TextKeys, side: Side) -> TextKeys:
            return asked if isinstance(asked, TextKeys) else reader.remember(asked, ops, side.tables.cross)

        def prepare(half: Half, reader: CrossAttention | None, y: Attended, side: Side) -> Prepared:
            h, asking, asked = self._towards_exchange(half, *y, side, ops)
            return h, asking, asked if reader is None else keys(reader, asked, side)

        def look(half: Half, reader: CrossAttention, own: Prepared, other: Prepared, n: int) -> Stream:
            seen = keys(reader, other[2], sides[1 - n])
            update = (reader(own[1], seen, ops, sides[n].tables.cross), sides[n].modulation.cross_gate)
            return self._towards_feed(half, own[0], update, sides[n], ops)

        video, audio = both(
            lanes,
            # The video's keys for the audio are a product that the video does not need: it goes aside, too.
            partial(prepare, self.video, None, added[0], sides[0]),
            partial(prepare, self.audio, self.a2v, added[1], sides[1]),
        )
        lanes.meet(video[2], audio[2])
        return both(
            lanes,
            partial(look, self.video, self.a2v, video, audio, 0),
            partial(look, self.audio, self.v2a, audio, video, 1),
        )

    def _towards_exchange(
        self, half: Half, h: Tensor, y: Tensor, side: Side, ops: Ops
    ) -> tuple[Tensor, Tensor | Rows, Tensor | Rows]:
        made = side.modulation
        looks, shows = (self.a2v, self.v2a) if half is self.video else (self.v2a, self.a2v)
        h, (asking, asked) = ops.residual_norm(
            h, (y, made.query_gate), [made.from_other, made.to_other], side.index, half.eps,
            (looks.query.reads, shows.keys.reads),
        )  # fmt: skip
        return h, asking, asked

    def _towards_feed(
        self, half: Half, h: Tensor, update: tuple[Tensor, Tensor | None], side: Side, ops: Ops
    ) -> Stream:
        targets = [side.modulation.feed]
        h, (n,) = ops.residual_norm(h, update, targets, side.index, half.eps, half.feed_in.reads)
        return Stream(h, n)


def _repeat(x: Tensor, rows: int) -> Tensor:
    return x if len(x) == rows else x.expand(rows, -1, -1).contiguous()


def _repeat_rows(n: Tensor | Rows, rows: int) -> Tensor | Rows:
    return n.each(lambda part: _repeat(part, rows)) if isinstance(n, Rows) else _repeat(n, rows)


def _norms(module: Any) -> Norms:
    return Norms(module.norm_q.weight.detach(), module.norm_k.weight.detach(), module.norm_q.eps, module.heads)


def _gate(x: Tensor, logits: list[Tensor], ops: Ops, quantise: bool) -> Tensor | Rows:
    """Per-head gates where the attention has them; without, quantising is the projection's business."""
    return ops.gate_heads(x, logits[0], quantise) if logits else x
