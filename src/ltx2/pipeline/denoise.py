"""One denoising stage: guidance passes, sampler, masks, step caching. Yields after every evaluation of the denoiser."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ltx2.models.fast import Passes
from ltx2.models.velocity import Perturbation, Stream
from ltx2.pipeline.caching import Velocities
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

    @cached_property
    def texts(self) -> tuple[Tensor, Tensor]:
        """Text of (video, audio), a row for each prompt: [1 or 2, S, D]. The same tensors for the whole stage."""
        if self.negative is None:
            return self.positive.video, self.positive.audio
        return (
            torch.cat([self.positive.video, self.negative.video]),
            torch.cat([self.positive.audio, self.negative.audio]),
        )


class Count(NamedTuple):
    """Evaluations that are done, and how many of them were skipped by step caching."""

    done: int
    skipped: int


def denoise(
    passes: Passes, stage: Stage, states: tuple[State, State], scene: Scene, noise: Noise
) -> Generator[Count, None, Latents]:
    """Run a stage's sampler; yields a Count after every evaluation and returns (video, audio) tokens. A GPU may still be
    at the evaluation that was just counted, never at an earlier one.

    `passes` are the transformer's guidance passes (`ltx2.models.fast`). The states are (video, audio); latents keep
    their dtype between steps.
    """

    def settle(latents: Latents) -> Latents:
        return tuple(state.settle(latent) for state, latent in zip(states, latents, strict=True))

    sampling = SAMPLERS[stage.sampler](tuple(state.latent for state in states), stage.sigmas, noise, settle)
    velocities, plain, guided, done = Velocities(stage.extras.cache), stage.unguided, True, 0
    pace = _Pace(states[0].latent.device)
    try:
        latents, sigma = next(sampling)
        while True:
            step, before = stage.step_of(done), guided
            guided = stage.extras.guides(step, stage.steps)
            if guided != before:
                velocities.forget()
            x0s = velocities.guess(latents, sigma) if stage.extras.may_skip(step, stage.steps) else None
            if x0s is None:
                now = stage if guided else plain
                x0s = settle(predict(passes, now, (latents[0], latents[1]), states, sigma, scene))
                if stage.extras.cache:
                    velocities.learn(latents, sigma, x0s)
            done += 1
            pace.wait()
            yield Count(done, velocities.skipped)
            latents, sigma = sampling.send(x0s)
    except StopIteration as finished:
        return finished.value


class _Pace:
    """Lets the host prepare the next evaluation while a GPU is at this one, but no more: what a GPU was given cannot be
    cancelled, and progress would be told long before there is any."""

    def __init__(self, device: torch.device):
        self.device = device
        self.last: Any = None

    def wait(self) -> None:
        """Return when all evaluations but this one are done."""
        if self.device.type != "cuda":
            return
        before, self.last = self.last, torch.cuda.current_stream(self.device).record_event()
        if before is not None:
            before.synchronize()


def predict(
    passes: Passes,
    stage: Stage,
    latents: tuple[Tensor, Tensor],
    states: tuple[State, State],
    sigma: float,
    scene: Scene,
) -> tuple[Tensor, Tensor]:
    """Guided x0 [1, T, C] float32 of both streams at `sigma`.

    The conditional and unconditional passes are two rows of one batch; the perturbed ones have a row each.
    """
    guidances = (stage.video, stage.audio)
    wants_negative = any(guidance.cfg != 1 for guidance in guidances)
    weak = _weak_passes(stage)
    if not wants_negative and scene.negative is not None:
        scene = replace(scene, negative=None)
    plain, *others = _x0s(passes, latents, states, sigma, scene, weak)
    results = []
    for side, guidance in enumerate(guidances):
        answers = {name: pair[side] for name, pair in zip(weak, others, strict=True)}
        if wants_negative:
            answers["uncond"] = plain[side][1:]
        results.append(combine(guidance, plain[side][:1], **answers))
    return results[0], results[1]


def _weak_passes(stage: Stage) -> dict[str, Perturbation]:
    video, audio = stage.video, stage.audio
    weak: dict[str, Perturbation] = {}
    if video.stg or audio.stg:
        weak["perturbed"] = Perturbation(video.stg_blocks, audio.stg_blocks)
    if video.modality != 1 or audio.modality != 1:
        weak["isolated"] = Perturbation(isolated=True)
    return weak


def _x0s(
    passes: Passes,
    latents: tuple[Tensor, Tensor],
    states: tuple[State, State],
    sigma: float,
    scene: Scene,
    weak: dict[str, Perturbation],
) -> list[tuple[Tensor, Tensor]]:
    """x0 = x - timestep * velocity in float32 of every pass: the plain one's rows, then one row for each weak one."""
    texts = scene.texts
    rows = len(texts[0])
    video = _stream(latents[0], states[0], sigma, scene.video_positions, texts[0])
    audio = _stream(latents[1], states[1], sigma, scene.audio_positions, texts[1])
    if scene.keyframes is not None:
        video = replace(video, keyframes=scene.keyframes.expand(rows, -1, -1))
    timesteps = [stream.per_token()[:1].unsqueeze(-1) for stream in (video, audio)]
    return [
        (latents[0].float() - timesteps[0] * moved.float(), latents[1].float() - timesteps[1] * sounded.float())
        for moved, sounded in passes(video, audio, list(weak.values()))
    ]


def _stream(latent: Tensor, state: State, sigma: float, positions: Tensor, text: Tensor) -> Stream:
    """A row for every text: the same latent and positions [1, ...] with different words."""
    rows, levels = len(text), state.levels
    values = state.mask[..., 0] if levels is None else levels.values
    timesteps = (values * sigma).expand(rows, -1)
    # The largest: a stream that is wholly given counts as clean for the other one.
    scalar = timesteps.amax(dim=1)
    return Stream(
        latent.to(text.dtype).expand(rows, -1, -1), timesteps, scalar, positions.expand(rows, -1, -1, -1), text,
        levels=None if levels is None else levels.index,
    )  # fmt: skip
