"""The transformer's forward, and all guidance passes of one evaluation, over the Diffusers module's own weights.

Against the plain forward: AdaLN for distinct timesteps instead of tokens, RoPE and text keys once a stage where that is
exact, joined projections, fused elementwise work, and the perturbed pass starts from the conditional one's state at
the first block that differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ltx2.models.fast.block import Block, Side, Tables, TextKeys
from ltx2.models.fast.block import Stream as Carried
from ltx2.models.fast.lanes import ONE, Lanes
from ltx2.models.fast.modulation import Modulation, Steps, audio_embedders, text_modulations, video_embedders
from ltx2.models.fast.ops import Affine, Ops, Reads, spread
from ltx2.models.fast.stage import Constant, Given, Pair, levels, once, one_row, shared_positions, table
from ltx2.models.velocity import NONE, Perturbation, Stream

Keys = tuple[list[TextKeys], list[TextKeys]]


class Pass(NamedTuple):
    """What the blocks need besides the streams: modulations of every block, of the output, and text keys."""

    modulations: tuple[list[Modulation], list[Modulation]]
    outputs: tuple[Affine, Affine]
    keys: Keys


def unsupported(transformer: nn.Module) -> str | None:
    """Why this transformer cannot take the fast path, or None when it can."""
    config: Any = transformer.config
    if config.rope_type != "split":
        return f"its RoPE is {config.rope_type}, not split"
    if config.norm_elementwise_affine:
        return "its block norms have weights"
    if config.activation_fn != "gelu-approximate":
        return f"its activation is {config.activation_fn}"
    return None


class Forward:
    """One transformer on its device; only for inference. To be built anew when `stale`: its weights moved."""

    def __init__(self, transformer: Any, ops: Ops, lanes: Lanes = ONE, fp8_from: int | None = None):
        self.transformer, self.ops, self.lanes, self.config = transformer, ops, lanes, transformer.config
        self.blocks = [Block(module, fp8_from) for module in transformer.transformer_blocks]
        self.fp8_from = fp8_from
        self.embedders = (video_embedders(transformer), audio_embedders(transformer))
        self.text = text_modulations(transformer)
        # Not the module's own: with layers in fp8 that is one of several.
        self.dtype: torch.dtype = transformer.scale_shift_table.dtype
        self.layers, self.addresses = list(transformer.modules()), _addresses(transformer)

    def stale(self) -> bool:
        """Whether layers were replaced, or lie elsewhere, since this was built."""
        layers = list(self.transformer.modules())
        if len(layers) != len(self.layers) or any(a is not b for a, b in zip(layers, self.layers, strict=True)):
            return True
        return _addresses(self.transformer) != self.addresses

    def constant(self, video: Stream, audio: Stream) -> Constant:
        """What a stage computes once, from the streams of its first evaluation."""
        transformer = self.transformer
        at = (shared_positions(video), shared_positions(audio))
        tables = (
            Tables(table(transformer.rope, at[0]), table(transformer.cross_attn_rope, at[0][:, :1])),
            Tables(table(transformer.audio_rope, at[1]), table(transformer.cross_attn_audio_rope, at[1][:, :1])),
        )
        texts = (video.context, audio.context)
        if self.config.use_prompt_embeddings:
            texts = (transformer.caption_projection(texts[0]), transformer.audio_caption_projection(texts[1]))
        moving = self.text is not None and self.text[0].network is not None
        keys = None if moving else self._keys(texts, (None, None))
        marks = None
        if self.config.use_keyframes_abs_pos_embedding and video.keyframes is not None:
            marks = (once(video.keyframes) > 0).to(self.dtype)
        return Constant(tables, (levels(video)[1], levels(audio)[1]), keys, texts if moving else None, marks)

    def evaluate(
        self, given: Given, constant: Constant, weak: Sequence[Perturbation] = ()
    ) -> list[tuple[Tensor, Tensor]]:
        """Velocities of the plain pass over all rows, then of each weak pass over the first row."""
        made = self._prepare(given, constant)
        entered = self._enter(given, constant, made)
        try:
            self.lanes.meet(entered)
            return self._passes(entered, made, constant, weak)
        finally:
            # Also where something failed: what the side lane still reads is dropped by whoever handles it.
            self.lanes.meet()

    def _passes(
        self, entered: Pair, made: Pass, constant: Constant, weak: Sequence[Perturbation]
    ) -> list[tuple[Tensor, Tensor]]:
        begins = [first_block(one) for one in weak]
        streams, kept = self._run(entered, made, constant, NONE, {*begins})
        results = [self._leave(streams, made.outputs, constant)]
        first = _first_row(made)
        for one, begin in zip(weak, begins, strict=True):
            streams, _ = self._run(one_row(kept[begin]), first, constant, one, set(), begin)
            results.append(self._leave(streams, first.outputs, constant))
        return results

    def _prepare(self, given: Given, constant: Constant) -> Pass:
        scale = float(self.config.timestep_scale_multiplier)
        gate_scale = float(self.config.cross_attn_timestep_scale_multiplier)
        made = [
            embedders.blocks(Steps(level * scale, other * gate_scale), self.dtype)
            for embedders, level, other in zip(self.embedders, given.levels, reversed(given.sigmas), strict=True)
        ]
        keys = constant.keys
        if keys is None:
            assert constant.texts is not None, "a stage has text keys, or the text that they come from"
            keys = self._keys(constant.texts, (given.sigmas[0] * scale, given.sigmas[1] * scale))
        return Pass((made[0][0], made[1][0]), (made[0][1], made[1][1]), keys)

    def _keys(self, texts: tuple[Tensor, Tensor], sigmas: tuple[Tensor | None, Tensor | None]) -> Keys:
        """Text keys and values of every block; `sigmas` [R] modulate the text in 2.3."""
        results: list[list[TextKeys]] = []
        for side, (text, sigma) in enumerate(zip(texts, sigmas, strict=True)):
            layers = [(block.video, block.audio)[side].text for block in self.blocks]
            affines = self.text[side].blocks(sigma, self.dtype) if self.text else [None] * len(layers)
            results.append(
                [
                    layer.remember(text if affine is None else text * (1 + affine.scale) + affine.shift, self.ops)
                    for layer, affine in zip(layers, affines, strict=True)
                ]
            )
        return results[0], results[1]

    def _enter(self, given: Given, constant: Constant, made: Pass) -> Pair:
        """From latents to the first block's input."""
        transformer, begin = self.transformer, self.blocks[0]
        video, audio = transformer.proj_in(given.latents[0]), transformer.audio_proj_in(given.latents[1])
        if constant.marks is not None:
            video = video + constant.marks * transformer.keyframes_abs_pos_embedding.to(video.dtype)
        results: list[Carried] = []
        for side, h in enumerate((video, audio)):
            own = made.modulations[side][0].own
            h, (n,) = self.ops.residual_norm(h, None, [own], constant.indices[side], begin.video.eps, begin.reads[side])
            results.append(Carried(h, n))
        return results[0], results[1]

    def _run(
        self, streams: Pair, made: Pass, constant: Constant, perturbation: Perturbation, keep: set[int], begin: int = 0
    ) -> tuple[Pair, dict[int, Pair]]:
        """Blocks from number `begin` on; also the streams as they were before each block in `keep`."""
        kept: dict[int, Pair] = {}
        for number in range(begin, len(self.blocks)):
            if number in keep:
                kept[number] = streams
            sides = (
                self._side(0, number, made, constant, number in perturbation.video_blocks),
                self._side(1, number, made, constant, number in perturbation.audio_blocks),
            )
            last = number + 1 == len(self.blocks)
            reads = (Reads.TENSOR, Reads.TENSOR) if last else self.blocks[number + 1].reads
            streams = self.blocks[number](streams, sides, self.ops, self.lanes, perturbation.isolated, reads)
        return streams, kept

    def _side(self, side: int, number: int, made: Pass, constant: Constant, perturbed: bool) -> Side:
        modulations = made.modulations[side]
        following = modulations[number + 1].own if number + 1 < len(modulations) else None
        return Side(
            modulations[number], constant.indices[side], constant.tables[side], made.keys[side][number], following,
            perturbed,
        )  # fmt: skip

    def _leave(self, streams: Pair, outputs: tuple[Affine, Affine], constant: Constant) -> tuple[Tensor, Tensor]:
        """From the last block to velocities, both in the main lane: what leaves belongs to the callers' lane."""
        transformer = self.transformer
        self.lanes.meet(streams)
        layers = (
            (transformer.norm_out, transformer.proj_out),
            (transformer.audio_norm_out, transformer.audio_proj_out),
        )
        results: list[Tensor] = []
        for (norm, layer), stream, affine, index in zip(layers, streams, outputs, constant.indices, strict=True):
            normal = functional.layer_norm(stream.h.float(), stream.h.shape[-1:], eps=norm.eps)
            result = normal * (1 + spread(affine.scale, index)) + spread(affine.shift, index)
            results.append(layer(result.to(stream.h.dtype)))
        return results[0], results[1]


def first_block(perturbation: Perturbation) -> int:
    """The first block whose work differs from the plain pass."""
    return 0 if perturbation.isolated else min((*perturbation.video_blocks, *perturbation.audio_blocks), default=0)


def _addresses(transformer: nn.Module) -> list[int]:
    return [weight.data_ptr() for weight in transformer.parameters()]


def _first_row(made: Pass) -> Pass:
    """The part of `made` that the first row needs."""
    keys = [[TextKeys(pair.k[:1], pair.v[:1]) for pair in side] for side in made.keys]
    modulations = [[block.first_row() for block in side] for side in made.modulations]
    outputs = [Affine(affine.scale[:1], affine.shift[:1]) for affine in made.outputs]
    return Pass((modulations[0], modulations[1]), (outputs[0], outputs[1]), (keys[0], keys[1]))
