"""AdaLN values of all blocks at once, for the distinct timesteps of a forward instead of for every token."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ltx2.models.fast.ops import Affine


@dataclass(frozen=True)
class Steps:
    """Timesteps of one stream, scaled for the networks: levels [R, U], and the other stream's sigma [R] for the gate."""

    levels: Tensor
    gate: Tensor


@dataclass(frozen=True)
class Modulation:
    """What one block does to one stream; every tensor is [R, U, D].

    `query` and `query_gate` are None in models that do not modulate the text attention. `to_other` and `from_other` are
    for the stream as keys and as queries of the audio-video attention.
    """

    own: Affine
    own_gate: Tensor
    feed: Affine
    feed_gate: Tensor
    query: Affine | None
    query_gate: Tensor | None
    from_other: Affine
    to_other: Affine
    cross_gate: Tensor

    def first_row(self) -> Modulation:
        """The same for the first row of the batch; itself where rows are alike."""
        if len(self.own_gate) == len(self.cross_gate) == 1:
            return self
        return Modulation(**{field.name: _first(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True)
class Embedders:
    """The AdaLN networks and tables of one stream, tables of all L blocks stacked."""

    main: Any
    cross: Any
    gate: Any
    table: Tensor
    cross_table: Tensor
    gate_table: Tensor
    output_table: Tensor
    reversed_cross: bool

    def blocks(self, steps: Steps, dtype: torch.dtype) -> tuple[list[Modulation], Affine]:
        """The modulations of every block, and that of the output layer."""
        main, embedded = _embed(self.main, steps.levels, dtype)
        own = _unbind(self.table, main)
        cross = _unbind(self.cross_table, _embed(self.cross, steps.levels, dtype)[0])
        gate = _unbind(self.gate_table, _embed(self.gate, steps.gate[:, None], dtype)[0])
        made = [self._block(*values) for values in zip(own, cross, gate, strict=True)]
        shift, scale = (self.output_table[None, None] + embedded.unsqueeze(2)).unbind(2)
        return made, Affine(scale, shift)

    def _block(self, own: tuple[Tensor, ...], cross: tuple[Tensor, ...], gate: tuple[Tensor, ...]) -> Modulation:
        queried = len(own) == 9
        a2v, v2a = Affine(cross[0], cross[1]), Affine(cross[2], cross[3])
        return Modulation(
            own=Affine(own[1], own[0]),
            own_gate=own[2],
            feed=Affine(own[4], own[3]),
            feed_gate=own[5],
            query=Affine(own[7], own[6]) if queried else None,
            query_gate=own[8] if queried else None,
            from_other=v2a if self.reversed_cross else a2v,
            to_other=a2v if self.reversed_cross else v2a,
            cross_gate=gate[0],
        )


def video_embedders(transformer: Any) -> Embedders:
    blocks = transformer.transformer_blocks
    return Embedders(
        transformer.time_embed,
        transformer.av_cross_attn_video_scale_shift,
        transformer.av_cross_attn_video_a2v_gate,
        _stack(blocks, "scale_shift_table"),
        _stack(blocks, "video_a2v_cross_attn_scale_shift_table")[:, :4],
        _stack(blocks, "video_a2v_cross_attn_scale_shift_table")[:, 4:],
        transformer.scale_shift_table.detach(),
        reversed_cross=False,
    )


def audio_embedders(transformer: Any) -> Embedders:
    blocks = transformer.transformer_blocks
    return Embedders(
        transformer.audio_time_embed,
        transformer.av_cross_attn_audio_scale_shift,
        transformer.av_cross_attn_audio_v2a_gate,
        _stack(blocks, "audio_scale_shift_table"),
        _stack(blocks, "audio_a2v_cross_attn_scale_shift_table")[:, :4],
        _stack(blocks, "audio_a2v_cross_attn_scale_shift_table")[:, 4:],
        transformer.audio_scale_shift_table.detach(),
        # The first pair of the cross table belongs to a2v, where audio is the keys.
        reversed_cross=True,
    )


@dataclass(frozen=True)
class TextModulation:
    """What modulates the text of one stream in every block: a network of sigma (2.3), or only a table (None)."""

    network: Any | None
    table: Tensor

    def blocks(self, sigma: Tensor | None, dtype: torch.dtype) -> list[Affine]:
        """For every block [R or 1, 1, D]; `sigma` [R] is needed where there is a network."""
        if self.network is None or sigma is None:
            return [Affine(scale[None, None], shift[None, None]) for shift, scale in self.table.to(dtype)]
        embedded, _ = _embed(self.network, sigma[:, None], dtype)
        return [Affine(scale, shift) for shift, scale in _unbind(self.table, embedded)]


def text_modulations(transformer: Any) -> tuple[TextModulation, TextModulation] | None:
    """Of video and audio, or None in models that read the text as it is (2.0)."""
    if not transformer.prompt_modulation:
        return None
    moving, blocks = transformer.config.use_prompt_adaln_single, transformer.transformer_blocks
    return (
        TextModulation(transformer.prompt_adaln if moving else None, _stack(blocks, "prompt_scale_shift_table")),
        TextModulation(
            transformer.audio_prompt_adaln if moving else None, _stack(blocks, "audio_prompt_scale_shift_table")
        ),
    )


def _first(value: Any) -> Any:
    if isinstance(value, Affine):
        return Affine(value.scale[:1], value.shift[:1])
    return value if value is None else value[:1]


def _stack(blocks: Any, name: str) -> Tensor:
    return torch.stack([getattr(block, name).detach() for block in blocks])


def _embed(network: Any, levels: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """An AdaLN network at [R, U] timesteps: its modulations [R, U, K*D] and the embedded timesteps [R, U, D]."""
    values, embedded = network(levels.flatten(), batch_size=len(levels), hidden_dtype=dtype)
    return values.unflatten(0, levels.shape), embedded.unflatten(0, levels.shape)


def _unbind(table: Tensor, values: Tensor) -> list[tuple[Tensor, ...]]:
    """Table [L, K, D] + values [R, U, K*D] -> for each block K tensors [R, U, D]."""
    summed = table[:, None, None] + values.unflatten(-1, table.shape[1:])[None]
    return [block.unbind(2) for block in summed]
