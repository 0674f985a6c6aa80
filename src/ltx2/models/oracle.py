"""The one place that runs Diffusers' own pipelines: as the truth in tests and as the other side in `bench`.

Every knob is passed, because its defaults differ between releases and switch guidance on for distilled models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTX2LatentUpsamplePipeline, LTX2Pipeline
from torch import Tensor, nn

from ltx2.models.components import Models


@dataclass(frozen=True)
class Knobs:
    """Guidance of one modality as `LTX2Pipeline` takes it. cfg 1, stg 0, modality 1, rescale 0 mean off.

    An audio scale of exactly 0 cannot be expressed there: it falls back to the video's value.
    """

    cfg: float = 1.0
    stg: float = 0.0
    modality: float = 1.0
    rescale: float = 0.0


@dataclass(frozen=True)
class Ask:
    """One run: sizes in pixels, sigmas with the final 0, guidance of both modalities, and the text.

    `video_noise` [1, T, C] and `audio_noise` [1, Ta, Ca] are the start tokens in float32; without them the pipeline
    draws its own with `seed`. `cross_timestep` is Diffusers' switch for the audio-video timesteps; both of its
    settings agree with the official rule for text to video only.
    """

    prompt: str
    width: int
    height: int
    frames: int
    sigmas: Sequence[float]
    fps: float = 24.0
    negative_prompt: str = ""
    video: Knobs = Knobs()
    audio: Knobs = Knobs()
    stg_blocks: tuple[int, ...] = ()
    video_noise: Tensor | None = None
    audio_noise: Tensor | None = None
    seed: int = 0
    cross_timestep: bool = False


@dataclass(frozen=True)
class Answer:
    """Latents or media of a run.

    As latents: video [1, C, F, H, W] un-normalised and audio [1, C, T, bins] un-normalised. As media: video
    [1, F, H, W, 3] in 0..1 (numpy) and the waveform [1, 2, samples]. `states` are the (video, audio) tokens that
    entered each step's first transformer call, `passes` the number of sample-forwards.
    """

    video: Any
    audio: Tensor
    states: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    passes: int = 0


def pipeline(models: Models) -> LTX2Pipeline:
    """Diffusers' pipeline around the very same networks, with a scheduler that leaves given sigmas alone."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=False, shift=1.0)
    network: dict[str, Any] = dict(models.networks)
    result = LTX2Pipeline(
        scheduler=scheduler,
        vae=network["vae"],
        audio_vae=network["audio_vae"],
        text_encoder=network["text_encoder"],
        tokenizer=models.tokenizer,
        connectors=network["connectors"],
        transformer=network["transformer"],
        vocoder=network["vocoder"],
    )
    result.set_progress_bar_config(disable=True)
    return result


@torch.inference_mode()
def run_stages(models: Models, asks: Sequence[Ask], *, decode: bool = False) -> Answer:
    """As `run`, one ask after the other: each has twice the width and height of the one before and begins with its latents,
    noised to its own first sigma. The text, that of the first, is embedded once."""
    answer, states, passes = None, list[tuple[Tensor, Tensor]](), 0
    text = _embedded(models, asks[0]) if len(asks) > 1 else {}
    for number, ask in enumerate(asks, 1):
        before = None if answer is None else replace(answer, video=_upsampled(models, answer.video))
        answer = run(models, ask, decode=decode and number == len(asks), text=text, before=before)
        states, passes = states + answer.states, passes + answer.passes
    assert answer is not None, "there is at least one ask"
    return replace(answer, states=states, passes=passes)


def _embedded(models: Models, ask: Ask) -> dict[str, Any]:
    """What `LTX2Pipeline` takes in place of the prompts."""
    found = pipeline(models).encode_prompt(
        ask.prompt,
        ask.negative_prompt,
        ask.video.cfg > 1 or ask.audio.cfg > 1,
        max_sequence_length=models.card.text_tokens,
    )
    names = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
    return {**dict(zip(names, found, strict=True)), "prompt": None, "negative_prompt": None}


def _upsampled(models: Models, video: Tensor) -> Tensor:
    network: dict[str, Any] = dict(models.networks)
    upsampler = LTX2LatentUpsamplePipeline(vae=network["vae"], latent_upsampler=network["upsampler"])
    # Its default size is that of frames, which latents are not.
    result: Any = upsampler(latents=video, output_type="latent", return_dict=False)
    return result[0]


@torch.inference_mode()
def run(
    models: Models, ask: Ask, *, decode: bool = False, text: dict[str, Any] | None = None, before: Answer | None = None
) -> Answer:
    """Run `LTX2Pipeline` once and return latents, or pictures and sound with `decode`. The networks must be resident.

    `text` are arguments in place of the prompts; of `before`, latents are noised to the first sigma.
    """
    transformer = models.networks["transformer"]
    states: list[tuple[Tensor, Tensor]] = []
    batches: list[int] = []
    times: list[Tensor] = []

    def record(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        video, audio, time = kwargs["hidden_states"], kwargs["audio_hidden_states"], kwargs["timestep"][:1]
        batches.append(video.shape[0])
        if not times or not torch.equal(times[-1], time):
            times.append(time)
            states.append((video[:1].clone(), audio[:1].clone()))

    def in_own_dtype(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].to(module.dtype), *args[1:])

    handles = [
        transformer.register_forward_pre_hook(record, with_kwargs=True),
        # Diffusers hands the vocoder a mel in the pipeline's dtype; that of 2.3+ runs in float32.
        models.networks["vocoder"].register_forward_pre_hook(in_own_dtype),
    ]
    try:
        given = _arguments(models, ask) | (text or {}) | ({} if before is None else _resumed(ask, before))
        video, audio = pipeline(models)(**given, output_type="np" if decode else "latent")
    finally:
        for handle in handles:
            handle.remove()
    return Answer(video, audio, states, sum(batches))


def _arguments(models: Models, ask: Ask) -> dict[str, Any]:
    v, a = ask.video, ask.audio
    return {
        "prompt": ask.prompt,
        "negative_prompt": ask.negative_prompt,
        "width": ask.width,
        "height": ask.height,
        "num_frames": ask.frames,
        "frame_rate": ask.fps,
        "motion_speed": 1.0,
        "sigmas": list(ask.sigmas[:-1]),
        "num_inference_steps": len(ask.sigmas) - 1,
        "guidance_scale": v.cfg,
        "stg_scale": v.stg,
        "modality_scale": v.modality,
        "guidance_rescale": v.rescale,
        "audio_guidance_scale": a.cfg,
        "audio_stg_scale": a.stg,
        "audio_modality_scale": a.modality,
        "audio_guidance_rescale": a.rescale,
        "spatio_temporal_guidance_blocks": list(ask.stg_blocks) or None,
        "noise_scale": 0.0,
        "num_videos_per_prompt": 1,
        "generator": torch.Generator(models.device).manual_seed(ask.seed),
        "latents": ask.video_noise,
        "audio_latents": None if ask.audio_noise is None else _undo_normalisation(models, ask.audio_noise),
        "use_cross_timestep": ask.cross_timestep,
        "max_sequence_length": models.card.text_tokens,
        "return_dict": False,
    }


def _resumed(ask: Ask, before: Answer) -> dict[str, Any]:
    return {"latents": before.video, "audio_latents": before.audio, "noise_scale": ask.sigmas[0]}


def _undo_normalisation(models: Models, noise: Tensor) -> Tensor:
    """The pipeline normalises audio latents that it is given (video tokens it takes as they are)."""
    vae: Any = models.networks["audio_vae"]
    return noise * vae.latents_std.to(noise) + vae.latents_mean.to(noise)
