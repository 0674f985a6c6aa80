"""One transformer block over both streams, with fused projections and fused elementwise work.

A stream goes from block to block as its residual `h` and its already normalised and modulated `n`, so that adding a
branch, normalising and modulating for the next reader is always one operation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ltx2.models.fast.attention import attend
from ltx2.models.fast.modulation import Modulation
from ltx2.models.fast.ops import Affine, Ops, Rows, Table
from ltx2.models.fast.projection import Projection, project


class Stream(NamedTuple):
    """A stream between two operations: the residual [B, T, D] and what the next layer reads."""

    h: Tensor
    n: Tensor | Rows


class TextKeys(NamedTuple):
    """Normalised keys and values of the text for one block and stream: [B, S, D]."""

    k: Tensor
    v: Tensor


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
    """Queries, keys, values and gate logits in one product; perturbed, the values take the attention's place."""

    def __init__(self, module: Any):
        gate = [module.to_gate_logits] if module.to_gate_logits is not None else []
        self.project = project([module.to_q, module.to_k, module.to_v, *gate])
        self.norms, self.out, self.gated = _norms(module), project([module.to_out[0]]), bool(gate)

    def __call__(self, n: Tensor | Rows, ops: Ops, table: Table, perturbed: bool) -> Tensor:
        norms = self.norms
        if perturbed:
            v, *gate = self.project(n, ops, first=2)
            return self.out(_gate(v, gate, ops, self.out.quantised), ops)[0]
        q, k, v, *gate = self.project(n, ops)
        q = ops.normalise_heads(q, norms.q, table, norms.heads, norms.eps)
        k = ops.normalise_heads(k, norms.k, table, norms.heads, norms.eps)
        return self.out(_gate(attend(q, k, v, norms.heads), gate, ops, self.out.quantised), ops)[0]


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
        return self.out(_gate(seen, gate, ops, self.out.quantised), ops)[0]


class Half:
    """The layers of one stream in a block: self-attention, text attention, feed-forward."""

    def __init__(self, own: Any, text: Any, feed: Any, eps: float):
        self.own, self.text, self.eps = SelfAttention(own), CrossAttention(text), eps
        self.feed_in: Projection = project([feed.net[0].proj])
        self.feed_out: Projection = project([feed.net[2]])

    def attend(self, stream: Stream, side: Side, ops: Ops) -> tuple[Tensor, Tensor]:
        """Self-attention and text attention: the residual after the first, and what the second adds."""
        made = side.modulation
        y = self.own(stream.n, ops, side.tables.own, side.perturbed)
        h, (n,) = ops.residual_norm(
            stream.h, (y, made.own_gate), [made.query], side.index, self.eps, self.text.query.quantised
        )
        return h, self.text(n, side.text, ops)

    def feed(self, stream: Stream, side: Side, ops: Ops, quantise: bool) -> Stream:
        """The feed-forward layer, and the norm for the next block (none after the last)."""
        hidden = ops.gelu(self.feed_in(stream.n, ops)[0], self.feed_out.quantised)
        y = self.feed_out(hidden, ops)[0]
        targets = [] if side.following is None else [side.following]
        h, results = ops.residual_norm(
            stream.h, (y, side.modulation.feed_gate), targets, side.index, self.eps, quantise
        )
        return Stream(h, results[0] if results else h)


class Block:
    """A block of the transformer over the Diffusers module's own weights.

    `reads_rows` says for (video, audio) whether the block wants its input quantised.
    """

    def __init__(self, module: Any):
        eps = module.norm1.eps
        self.video = Half(module.attn1, module.attn2, module.ff, eps)
        self.audio = Half(module.audio_attn1, module.audio_attn2, module.audio_ff, eps)
        self.a2v = CrossAttention(module.audio_to_video_attn)
        self.v2a = CrossAttention(module.video_to_audio_attn)
        self.reads_rows = (self.video.own.project.quantised, self.audio.own.project.quantised)

    def __call__(
        self,
        streams: tuple[Stream, Stream],
        sides: tuple[Side, Side],
        ops: Ops,
        isolated: bool,
        quantise: tuple[bool, bool],
    ) -> tuple[Stream, Stream]:
        """Both streams through the block. `isolated` leaves out the exchange between them; `quantise` says whether
        the next block wants its inputs quantised."""
        halves = (self.video, self.audio)
        added = [half.attend(stream, side, ops) for half, stream, side in zip(halves, streams, sides, strict=True)]
        streams = self._alone(added, sides, ops) if isolated else self._exchange(added, sides, ops)
        video, audio = (
            half.feed(stream, side, ops, rows)
            for half, stream, side, rows in zip(halves, streams, sides, quantise, strict=True)
        )
        return video, audio

    def _alone(self, added: list[tuple[Tensor, Tensor]], sides: tuple[Side, Side], ops: Ops) -> tuple[Stream, Stream]:
        video, audio = (
            self._towards_feed(half, h, (y, side.modulation.query_gate), side, ops)
            for half, (h, y), side in zip((self.video, self.audio), added, sides, strict=True)
        )
        return video, audio

    def _exchange(
        self, added: list[tuple[Tensor, Tensor]], sides: tuple[Side, Side], ops: Ops
    ) -> tuple[Stream, Stream]:
        """Audio looks at video and video at audio, both as they were before the exchange."""
        (h_video, n_video, k_video), (h_audio, n_audio, k_audio) = (
            self._towards_exchange(half, h, y, side, ops)
            for half, (h, y), side in zip((self.video, self.audio), added, sides, strict=True)
        )
        video, audio = sides
        to_video = self.a2v(n_video, self.a2v.remember(k_audio, ops, audio.tables.cross), ops, video.tables.cross)
        to_audio = self.v2a(n_audio, self.v2a.remember(k_video, ops, video.tables.cross), ops, audio.tables.cross)
        return (
            self._towards_feed(self.video, h_video, (to_video, video.modulation.cross_gate), video, ops),
            self._towards_feed(self.audio, h_audio, (to_audio, audio.modulation.cross_gate), audio, ops),
        )

    def _towards_exchange(
        self, half: Half, h: Tensor, y: Tensor, side: Side, ops: Ops
    ) -> tuple[Tensor, Tensor | Rows, Tensor | Rows]:
        made = side.modulation
        rows = all(reader.quantised for reader in (self.a2v.query, self.a2v.keys, self.v2a.query, self.v2a.keys))
        h, (asking, asked) = ops.residual_norm(
            h, (y, made.query_gate), [made.from_other, made.to_other], side.index, half.eps, rows
        )
        return h, asking, asked

    def _towards_feed(
        self, half: Half, h: Tensor, update: tuple[Tensor, Tensor | None], side: Side, ops: Ops
    ) -> Stream:
        targets = [side.modulation.feed]
        h, (n,) = ops.residual_norm(h, update, targets, side.index, half.eps, half.feed_in.quantised)
        return Stream(h, n)


def _norms(module: Any) -> Norms:
    return Norms(module.norm_q.weight.detach(), module.norm_k.weight.detach(), module.norm_q.eps, module.heads)


def _gate(x: Tensor, logits: list[Tensor], ops: Ops, quantise: bool) -> Tensor | Rows:
    """Per-head gates where the attention has them; without, quantising is the projection's business."""
    return ops.gate_heads(x, logits[0], quantise) if logits else x
