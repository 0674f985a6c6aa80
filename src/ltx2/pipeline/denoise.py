"""One denoising stage: guidance passes, sampler, masks. Yields after every evaluation of the denoiser."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ltx2.models.velocity import NONE, Perturbation, Stream, velocity
from ltx2.pipeline.guidance import combine
from ltx2.pipeline.latents import State
from ltx2.pipeline.sampling import SAMPLERS, Latents, Noise
from ltx2.spec.plan import Stage

if TYPE_CHECKING:
    from ltx2.pipeline.text import Context


@dataclass(frozen=True)
class Scene:
    """What stays the same over a stage: positions of both streams and the text of both prompts.

    video_positions [1, 3, Tv, 2], audio_positions [1, 1, Ta, 2]; `negative` is None when no pass needs it;
    `keyframes` [1, Tv, 1] marks single-frame tokens for 2.5.
    """

    video_positions: Tensor
    audio_positions: Tensor
    positive: Context
    negative: Context | None = None
    keyframes: Tensor | None = None


def denoise(
    transformer: nn.Module, stage: Stage, states: tuple[State, State], scene: Scene, noise: Noise
) -> Generator[int, None, Latents]:
    """Run a stage's sampler; yields the number of evaluations done and returns (video, audio) tokens.

    The states are (video, audio); latents keep their dtype between steps.
    """

    def settle(latents: Latents) -> Latents:
        return tuple(state.settle(latent) for state, latent in zip(states, latents, strict=True))

    sampling = SAMPLERS[stage.sampler](tuple(state.latent for state in states), stage.sigmas, noise, settle)
    done = 0
    try:
        latents, sigma = next(sampling)
        while True:
            x0s = predict(transformer, stage, (latents[0], latents[1]), states, sigma, scene)
            done += 1
            yield done
            latents, sigma = sampling.send(settle(x0s))
    except StopIteration as finished:
        return finished.value


def predict(
    transformer: nn.Module,
    stage: Stage,
    latents: tuple[Tensor, Tensor],
    states: tuple[State, State],
    sigma: float,
    scene: Scene,
) -> tuple[Tensor, Tensor]:
    """Guided x0 [1, T, C] float32 of both streams at `sigma`.

    The conditional and unconditional passes are two rows of one batch; each perturbed pass is a forward of its own.
    """
    video, audio = stage.video, stage.audio
    wants_negative = video.cfg != 1 or audio.cfg != 1
    contexts = [scene.positive, scene.negative] if wants_negative and scene.negative is not None else [scene.positive]
    plain = _x0(transformer, latents, states, sigma, scene, contexts, NONE)
    weak: dict[str, tuple[Tensor, Tensor]] = {}
    if video.stg or audio.stg:
        perturbation = Perturbation(video.stg_blocks, audio.stg_blocks)
        weak["perturbed"] = _x0(transformer, latents, states, sigma, scene, [scene.positive], perturbation)
    if video.modality != 1 or audio.modality != 1:
        weak["isolated"] = _x0(
            transformer, latents, states, sigma, scene, [scene.positive], Perturbation(isolated=True)
        )
    results = []
    for side, guidance in enumerate((video, audio)):
        others = {name: pair[side] for name, pair in weak.items()}
        if wants_negative:
            others["uncond"] = plain[side][1:]
        results.append(combine(guidance, plain[side][:1], **others))
    return results[0], results[1]


def _x0(
    transformer: nn.Module,
    latents: tuple[Tensor, Tensor],
    states: tuple[State, State],
    sigma: float,
    scene: Scene,
    contexts: list[Context],
    perturbation: Perturbation,
) -> tuple[Tensor, Tensor]:
    """One forward with a row for every context; x0 = x - timestep * velocity in float32."""
    dtype: torch.dtype = transformer.dtype  # pyright: ignore[reportAssignmentType] - a property of Diffusers' models
    video = _stream(latents[0], states[0], sigma, scene.video_positions, [text.video for text in contexts], dtype)
    audio = _stream(latents[1], states[1], sigma, scene.audio_positions, [text.audio for text in contexts], dtype)
    if scene.keyframes is not None:
        video = replace(video, keyframes=scene.keyframes.expand(len(contexts), -1, -1))
    moved, sounded = velocity(transformer, video, audio, perturbation)
    return (
        latents[0].float() - video.timesteps.unsqueeze(-1) * moved.float(),
        latents[1].float() - audio.timesteps.unsqueeze(-1) * sounded.float(),
    )


def _stream(
    latent: Tensor, state: State, sigma: float, positions: Tensor, texts: list[Tensor], dtype: torch.dtype
) -> Stream:
    """A row for every text: the same latent and positions [1, ...] with different words."""
    rows = len(texts)
    timesteps = (state.mask[..., 0] * sigma).expand(rows, -1)
    # The largest: a stream that is wholly given counts as clean for the other one.
    scalar = timesteps.amax(dim=1)
    return Stream(
        latent.to(dtype).expand(rows, -1, -1), timesteps, scalar, positions.expand(rows, -1, -1, -1), torch.cat(texts)
    )
