"""Our loop against Diffusers' own pipeline: same weights, text, noise and sigmas, every knob set, in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ltx2.pipeline.denoise as denoise_module
import ltx2.pipeline.generate as generate_module
from ltx2.models import oracle
from ltx2.models.components import Models
from ltx2.models.oracle import Answer, Ask, Knobs
from ltx2.models.small import small
from ltx2.pipeline.generate import generate
from ltx2.pipeline.latents import tokens_from_audio, tokens_from_video
from ltx2.spec.plan import Guidance, Plan, resolve
from ltx2.spec.request import request
from tests.data_files import largest_difference

SIZE = {"width": 96, "height": 64, "frames": 17}
CASES = {
    "distilled": ("distilled", {}),
    "cfg only": ("classic", {"steps": 6}),
    "full guidance": ("dev", {"steps": 5}),
}


def _knobs(guidance: Guidance) -> Knobs:
    return Knobs(guidance.cfg, guidance.stg, guidance.modality, guidance.rescale)


def _ask(plan: Plan, noise: tuple[torch.Tensor, torch.Tensor] | tuple[None, None], number: int = 0) -> Ask:
    stage = plan.stages[number]
    return Ask(
        prompt=plan.prompt,
        negative_prompt=plan.negative_prompt,
        width=stage.width,
        height=stage.height,
        frames=plan.frames,
        fps=float(plan.fps),
        sigmas=stage.sigmas,
        video=_knobs(stage.video),
        audio=_knobs(stage.audio),
        stg_blocks=stage.video.stg_blocks,
        video_noise=noise[0],
        audio_noise=noise[1],
        # 2.3 scales the text by the other stream's sigma; for text to video both settings give the same numbers.
        cross_timestep=plan.version != "2.0",
    )


Latents = tuple[torch.Tensor, torch.Tensor]


def _ours(models: Models, plan: Plan, out: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Latents], Latents]:
    """What enters every evaluation of our loop, and the latents that it ends with, video [1, C, F, H, W] and audio tokens."""
    states: list[Latents] = []
    final: dict[str, torch.Tensor] = {}
    predict = denoise_module.predict

    def spy(transformer, stage, latents, *rest):
        states.append(latents)
        return predict(transformer, stage, latents, *rest)

    def keep_video(_models, latent, _tiled):
        final["video"] = latent
        yield torch.zeros(plan.frames, plan.height, plan.width, 3, dtype=torch.uint8)

    def keep_audio(_models, tokens):
        final["audio"] = tokens
        return torch.zeros(2, 1000)

    monkeypatch.setattr(denoise_module, "predict", spy)
    monkeypatch.setattr(generate_module, "decode_video", keep_video)
    monkeypatch.setattr(generate_module, "decode_audio", keep_audio)
    for _ in generate(models, plan, out):
        pass
    return states, (final["video"], final["audio"])


def _check(models: Models, answer: Answer, states: list[Latents], final: Latents) -> None:
    assert len(states) == len(answer.states)
    for number, (ours, theirs) in enumerate(zip(states, answer.states, strict=True)):
        for side in (0, 1):
            # the second state is one guided forward and one step away from the noise
            assert largest_difference(ours[side], theirs[side]) <= (1e-5 if number < 2 else 1e-4), (number, side)
    vae, audio_vae = models.networks["vae"], models.networks["audio_vae"]
    video = (answer.video - vae.latents_mean.view(1, -1, 1, 1, 1)) / vae.latents_std.view(1, -1, 1, 1, 1)
    audio = (tokens_from_audio(answer.audio) - audio_vae.latents_mean) / audio_vae.latents_std
    assert largest_difference(tokens_from_video(final[0]), tokens_from_video(video)) <= 1e-4
    assert largest_difference(final[1], audio) <= 1e-4


@pytest.mark.parametrize("version", ["2.0", "2.3"])
@pytest.mark.parametrize("case", CASES)
def test_trajectory_equals_diffusers(version: str, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset, extra = CASES[case]
    models = small(version)
    plan = resolve(
        request(prompt="a cat purrs", negative_prompt="dull", preset=preset, seed=3, fps="23.976", **SIZE, **extra),
        models.card,
    )
    plan = replace(plan, stages=tuple(replace(stage, lora=0.0) for stage in plan.stages))
    states, final = _ours(models, plan, tmp_path / "clip.mp4", monkeypatch)
    answer = oracle.run(models, _ask(plan, states[0]))
    assert answer.passes == plan.evaluations, "the same work on both sides"
    assert len(states) == plan.stages[0].steps
    _check(models, answer, states, final)


@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_two_stages_equal_diffusers(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = small(version)
    asked = request(prompt="a cat purrs", preset="distilled-two-stage", seed=3, width=128, height=64, frames=17)
    plan = resolve(asked, models.card)
    plan = replace(plan, stages=tuple(replace(stage, lora=0.0) for stage in plan.stages))
    states, final = _ours(models, plan, tmp_path / "clip.mp4", monkeypatch)
    # Its second stage draws noise of its own: here it gets ours, and shows what it would have added that noise to.
    clean: list[torch.Tensor] = []
    begun = list(states[plan.stages[0].steps])

    def noised(latents: torch.Tensor, scale: float, *_: object) -> torch.Tensor:
        assert scale == plan.stages[1].sigmas[0]
        clean.append(latents)
        return begun.pop(0)

    first, second = _ask(plan, states[0]), _ask(plan, (None, None), 1)
    run = oracle.run

    def with_our_noise(*given, before=None, **rest):
        if before is not None:
            monkeypatch.setattr(oracle.LTX2Pipeline, "_create_noised_state", staticmethod(noised))
        return run(*given, before=before, **rest)

    monkeypatch.setattr(oracle, "run", with_our_noise)
    answer = oracle.run_stages(models, [first, second])
    assert answer.passes == plan.evaluations and not begun
    _check(models, answer, states, final)
    # What we noised, sigma * noise + (1 - sigma) * clean, is at the same clean latents, or the noise would not be a unit's.
    sigma = plan.stages[1].sigmas[0]
    for ours, theirs in zip(states[plan.stages[0].steps], clean, strict=True):
        assert ((ours - (1 - sigma) * theirs) / sigma).std() == pytest.approx(1, abs=0.1)
