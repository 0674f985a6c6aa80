"""One forward of the transformer with the official rules that Diffusers' own forward does not have.

Three rules are added to `LTX2VideoTransformer3DModel` from outside, for one call at a time:

* the gates of the audio-video cross-attention come from the other stream's sigma, while their scale and shift come
  from the stream's own per-token timesteps (official code since 2026-05-28; Diffusers offers only all-own or all-other);
* spatio-temporal guidance perturbs video and audio self-attention each on its own;
* no text mask: padding was replaced by registers, so every text token is valid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Stream:
    """One modality as the transformer sees it.

    latent [B, T, C]; timesteps [B, T] in 0..1 (0 = clean token), or [B, 1] for all tokens alike; sigma [B] in 0..1;
    positions [B, 3 or 1, T, 2] as [start, end) in seconds and pixels; context [B, S, D], the connectors' text tokens.
    keyframes [B, T, 1] marks tokens that stand for a single pixel frame (2.5 only; None elsewhere). With `levels` [T]
    int32, timesteps are [B, U] distinct ones and token t has number levels[t], so that modulations are made once each.
    """

    latent: Tensor
    timesteps: Tensor
    sigma: Tensor
    positions: Tensor
    context: Tensor
    keyframes: Tensor | None = None
    levels: Tensor | None = None

    def per_token(self) -> Tensor:
        """Timesteps [B, T], or [B, 1] for all tokens alike."""
        return self.timesteps if self.levels is None else self.timesteps[:, self.levels.long()]

    def first_row(self) -> Stream:
        """The same for the first row of the batch alone."""
        return Stream(
            self.latent[:1], self.timesteps[:1], self.sigma[:1], self.positions[:1], self.context[:1],
            None if self.keyframes is None else self.keyframes[:1], self.levels,
        )  # fmt: skip


@dataclass(frozen=True)
class Perturbation:
    """What a guidance pass switches off: self-attention in some blocks (STG), or the exchange between the streams."""

    video_blocks: tuple[int, ...] = ()
    audio_blocks: tuple[int, ...] = ()
    isolated: bool = False


NONE = Perturbation()


def velocity(
    transformer: nn.Module, video: Stream, audio: Stream, perturbation: Perturbation = NONE
) -> tuple[Tensor, Tensor]:
    """Predict the velocities (noise - x0) of both streams: [B, Tv, Cv] and [B, Ta, Ca].

    Differentiable, so training uses it as well. Raises ValueError when STG is asked of a transformer that was built
    without perturbed attention (there it would silently do nothing).
    """
    config: Any = transformer.config
    scale = float(config.timestep_scale_multiplier)
    if (perturbation.video_blocks or perturbation.audio_blocks) and not config.perturbed_attn:
        raise ValueError("the transformer was built with perturbed_attn=False: STG would be a no-op")
    blocks = sorted({*perturbation.video_blocks, *perturbation.audio_blocks})
    gate_scale = float(config.cross_attn_timestep_scale_multiplier)
    with (
        _gates(transformer, audio.sigma * gate_scale, video.sigma * gate_scale),
        _unperturbed(transformer, perturbation),
    ):
        return transformer(
            hidden_states=video.latent,
            audio_hidden_states=audio.latent,
            encoder_hidden_states=video.context,
            audio_encoder_hidden_states=audio.context,
            timestep=video.per_token() * scale,
            audio_timestep=audio.per_token() * scale,
            sigma=video.sigma * scale,
            audio_sigma=audio.sigma * scale,
            video_coords=video.positions,
            audio_coords=audio.positions,
            isolate_modalities=perturbation.isolated,
            spatio_temporal_guidance_blocks=blocks or None,
            use_cross_timestep=False,
            video_keyframes_mask=video.keyframes,
            return_dict=False,
        )


def velocities(
    transformer: nn.Module, video: Stream, audio: Stream, weak: Sequence[Perturbation] = ()
) -> list[tuple[Tensor, Tensor]]:
    """The plain pass over all rows, then each weak pass over the first row, every one a forward of its own.

    The slow twin of `fast.passes`. Raises ValueError as `velocity` does.
    """
    first = (video.first_row(), audio.first_row())
    return [velocity(transformer, video, audio), *(velocity(transformer, *first, one) for one in weak)]


@contextmanager
def _gates(transformer: Any, audio_sigma: Tensor, video_sigma: Tensor) -> Iterator[None]:
    """Feed the other stream's scaled sigma [B] to the two gate modules for the duration of one forward."""

    def replace(sigma: Tensor):
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]):
            return (sigma, *args[1:]), kwargs

        return hook

    handles = [
        transformer.av_cross_attn_video_a2v_gate.register_forward_pre_hook(replace(audio_sigma), with_kwargs=True),
        transformer.av_cross_attn_audio_v2a_gate.register_forward_pre_hook(replace(video_sigma), with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _unperturbed(transformer: Any, perturbation: Perturbation) -> Iterator[None]:
    """Diffusers perturbs both streams in the listed blocks; give the stream that is not asked for its attention back."""

    def restore(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]):
        return args, {**kwargs, "perturbation_mask": None, "all_perturbed": False}

    handles = []
    for index in {*perturbation.video_blocks} ^ {*perturbation.audio_blocks}:
        block = transformer.transformer_blocks[index]
        spared = block.audio_attn1 if index in perturbation.video_blocks else block.attn1
        handles.append(spared.register_forward_pre_hook(restore, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
