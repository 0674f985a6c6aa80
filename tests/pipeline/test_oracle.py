"""Our loop against Diffusers' own pipeline: same weights, text, noise and sigmas, every knob set, in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ltx2.pipeline.denoise as denoise_module
import ltx2.pipeline.generate as generate_module
from ltx2.models import oracle
from ltx2.models.oracle import Ask, Knobs
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


def _ask(plan: Plan, noise: tuple[torch.Tensor, torch.Tensor]) -> Ask:
    stage = plan.stages[0]
    return Ask(
        prompt=plan.prompt,
        negative_prompt=plan.negative_prompt,
        width=plan.width,
        height=plan.height,
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
    states: list[tuple[torch.Tensor, torch.Tensor]] = []
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
    for _ in generate(models, plan, tmp_path / "clip.mp4"):
        pass
    answer = oracle.run(models, _ask(plan, states[0]))

    stage = plan.stages[0]
    assert answer.passes == plan.evaluations, "the same work on both sides"
    assert len(states) == len(answer.states) == stage.steps
    for number, (ours, theirs) in enumerate(zip(states, answer.states, strict=True)):
        for side in (0, 1):
            # the second state is one guided forward and one step away from the noise
            assert largest_difference(ours[side], theirs[side]) <= (1e-5 if number < 2 else 1e-4), (number, side)
    vae, audio_vae = models.networks["vae"], models.networks["audio_vae"]
    video = (answer.video - vae.latents_mean.view(1, -1, 1, 1, 1)) / vae.latents_std.view(1, -1, 1, 1, 1)
    audio = (tokens_from_audio(answer.audio) - audio_vae.latents_mean) / audio_vae.latents_std
    assert largest_difference(tokens_from_video(final["video"]), tokens_from_video(video)) <= 1e-4
    assert largest_difference(final["audio"], audio) <= 1e-4
