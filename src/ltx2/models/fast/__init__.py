"""The fast paths of the transformer and of the video decoder, over the same weights as the slow ones.

`passes(transformer)` is what a denoising stage asks, and `ltx2.models.velocity.velocities` its slow twin;
`decoding(vae, latent)` is what the decoder asks, and `vae.decode` its slow twin.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ltx2.models.fast import decoder
from ltx2.models.fast.attention import FP8_TOKENS, preferring
from ltx2.models.fast.forward import Forward, unsupported
from ltx2.models.fast.graphs import CudaRecorder, Graphs
from ltx2.models.fast.lanes import Lanes, lanes_of
from ltx2.models.fast.ops import Ops, choose, no_kernels, on
from ltx2.models.fast.stage import Constant, given, same_stage
from ltx2.models.velocity import Perturbation, Stream, velocities
from ltx2.spec.cost import GRAPH_TOKENS
from ltx2.spec.plan import Plan

log = logging.getLogger(__name__)

_TWIN = "_ltx2_twin"

Passes = Callable[[Stream, Stream, Sequence[Perturbation]], list[tuple[Tensor, Tensor]]]
"""Velocities of the plain pass over all rows of (video, audio), then of each weak pass over the first row."""


def passes(transformer: nn.Module, fast: bool = True, fp8_attention: bool = False) -> Passes:
    """The guidance passes of one stage: the fast ones, or, said aloud, the slow ones where those cannot be.

    To be asked anew for every stage and after every change of weights: text keys are remembered in between. With
    `fp8_attention`, which is lossy, the video's self-attention from FP8_TOKENS tokens on is in fp8, in the fast passes.
    """
    reason = unsupported(transformer) if fast else "it was asked for"
    if reason is None:
        return Stage(_twin(transformer, FP8_TOKENS if fp8_attention else None))
    forget(transformer)
    if fast:
        log.warning("the transformer takes its slow path: %s", reason)

    def slow(video: Stream, audio: Stream, weak: Sequence[Perturbation] = ()) -> list[tuple[Tensor, Tensor]]:
        return velocities(transformer, video, audio, weak)

    return slow


def decoding(vae: nn.Module, latent: Tensor) -> Iterator[Tensor] | None:
    """Pixels [1, 3, f, 32H, 32W] in -1..1 of latents [1, C, F, H, W], in pieces of exact frames.

    None, said aloud, where `vae.decode` must do it.
    """
    if reason := decoder.unsupported(vae):
        log.warning("the video decoder takes its slow path: %s", reason)
        return None
    return _on(latent.device, decoder.decode(vae, latent, choose(latent.device)))


def _on(device: torch.device, pieces: Iterator[Tensor]) -> Iterator[Tensor]:
    """Each piece is made with `device` current, which it need not be between them."""
    while True:
        with on(device):
            piece = next(pieces, None)
        if piece is None:
            return
        yield piece


def slow_paths(transformer: nn.Module, vae: nn.Module, device: torch.device) -> tuple[str, ...]:
    """What a user should know about a video that was to take the fast paths: which of them it did not take, and why."""
    found = (
        ("the transformer took its slow path", unsupported(transformer)),
        ("the video decoder took its slow path", decoder.unsupported(vae)),
        ("plain operations instead of fused kernels", no_kernels(device)),
        ("the transformer ran without a CUDA graph", _unrecorded(transformer)),
    )
    return tuple(f"{what}: {reason}" for what, reason in found if reason)


def _unrecorded(transformer: nn.Module) -> str | None:
    twin: Twin | None = transformer.__dict__.get(_TWIN)
    return next(iter(twin.graphs.refused.values()), None) if twin and twin.graphs else None


def lossy_paths(transformer: nn.Module, plan: Plan, fp8_attention: bool) -> tuple[str, ...]:
    """How a Plan's video whose passes were asked for with `fp8_attention` differs from an exact one.

    In nothing on the slow path, nor where every stage is too small for it.
    """
    tokens = max(plan.grid(stage).video_tokens for stage in plan.stages)
    if not fp8_attention or tokens < FP8_TOKENS or unsupported(transformer):
        return ()
    return (f"lossy: self-attention of the picture in fp8 from {FP8_TOKENS} tokens on, as asked (attention)",)


def forget(network: nn.Module) -> bool:
    """Drop what the fast path keeps of a network: joined weights, graphs with their pool and text keys.

    The network keeps its own weights. Returns whether there was anything; a CUDA cache is emptied by whoever wants the
    room. To be called before its weights go elsewhere, for what is kept stays where it was.
    """
    return network.__dict__.pop(_TWIN, None) is not None


class Twin:
    """A transformer's fast forward and its graphs, kept as long as the transformer lives.

    To measure without a part: `ops` with `linear_gelu=None` has the GELU in a kernel of its own; `lanes=ONE` has all on
    one CUDA stream; and `graphs = None` afterwards records nothing.
    """

    def __init__(
        self,
        transformer: Any,
        ops: Ops | None = None,
        graphs: Graphs | None = None,
        lanes: Lanes | None = None,
        fp8_from: int | None = None,
    ):
        device = next(transformer.parameters()).device
        self.forward = Forward(transformer, ops or choose(device), lanes or lanes_of(device), fp8_from)
        self.graphs = graphs or (Graphs(CudaRecorder(device)) if device.type == "cuda" else None)


class Stage:
    """The fast passes of one stage."""

    def __init__(self, twin: Twin):
        self.twin = twin
        self.streams: tuple[Stream, Stream] | None = None
        self.constant: Constant | None = None

    def __call__(self, video: Stream, audio: Stream, weak: Sequence[Perturbation] = ()) -> list[tuple[Tensor, Tensor]]:
        """As `Passes`. Raises ValueError when STG is asked of a transformer built without perturbed attention."""
        forward = self.twin.forward
        if any(one.video_blocks or one.audio_blocks for one in weak) and not forward.config.perturbed_attn:
            raise ValueError("the transformer was built with perturbed_attn=False: STG would be a no-op")
        device = video.latent.device
        with on(device), preferring(device):
            constant = self._constant(video, audio)
            now = given(video, audio)
            graphs = self.twin.graphs
            if graphs is None or video.latent.shape[0] * video.latent.shape[1] > GRAPH_TOKENS:
                return forward.evaluate(now, constant, weak)
            weak = tuple(weak)
            shapes = tuple(tensor.shape for pair in now for tensor in pair)
            key = (
                weak,
                shapes,
                video.context.shape,
                video.levels is None,
                audio.levels is None,
                constant.marks is None,
            )
            return graphs.run(key, lambda *inputs: forward.evaluate(inputs[0], inputs[1], weak), now, constant, self)

    def forget(self) -> None:
        """Compute what stays the same anew: its tensors were given to another stage."""
        self.streams = self.constant = None

    def _constant(self, video: Stream, audio: Stream) -> Constant:
        known = self.streams
        if known and self.constant and same_stage(known[0], video) and same_stage(known[1], audio):
            return self.constant
        self.streams, self.constant = (video, audio), self.twin.forward.constant(video, audio)
        return self.constant


def _twin(transformer: Any, fp8_from: int | None = None) -> Twin:
    """The transformer's twin, which lives on it and with it; made anew when its weights have moved, or for other attention."""
    twin: Twin | None = transformer.__dict__.get(_TWIN)
    if twin is None or twin.forward.stale() or twin.forward.fp8_from != fp8_from:
        # Dropped first, so that its graphs and joined weights are gone before new ones come.
        forget(transformer)
        del twin
        transformer.__dict__[_TWIN] = twin = Twin(transformer, fp8_from=fp8_from)
    return twin
