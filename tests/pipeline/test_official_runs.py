"""Whole runs against the official pipelines: every latent of every step, the picture and the sound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ltx2.pipeline.denoise as denoise_module
import ltx2.pipeline.generate as generate_module
from ltx2.models.components import Models
from ltx2.models.lora import load_lora
from ltx2.models.residency import Residency
from ltx2.models.singlefile import load_component, open_singlefile
from ltx2.pipeline.decode import decode_audio, decode_video
from ltx2.pipeline.generate import generate
from ltx2.pipeline.text import Context
from ltx2.spec.card import Card, Shape
from ltx2.spec.plan import Plan, resolve
from ltx2.spec.request import request
from tests.data_files import DATA, largest_difference, metadata, tensors

CPU = torch.device("cpu")
RUNS = {"distilled": "distilled-two-stage", "onestage": "dev", "twostage": "two-stage"}
SIDES = ("video", "audio")


def _models() -> Models:
    """The official miniature parts, with their text encoder left out (the runs store the text tokens)."""
    parts = {
        "transformer": ("transformer_2.3", ()),
        "vae": ("e2e_video_vae", ("encoder",)),
        "audio_vae": ("e2e_audio_vae", ("encoder",)),
        "vocoder": ("audio_vae_vocoder_48k", ()),
        "upsampler": ("e2e_upsampler_x2", ()),
    }
    networks = {
        name: load_component(
            open_singlefile(DATA / f"{file}.safetensors"), name, dtype=torch.float32, device=CPU, without=gone
        )
        for name, (file, gone) in parts.items()
    }
    card = Card(
        "miniature", "2.3", family="2.3", distilled_lora=True, upsampler=True, output_sampling_rate=48_000, stg_blocks=(1,),
        shape=Shape(layers=2),
    )  # fmt: skip
    lora = load_lora(DATA / "lora_mixed_rank.safetensors", CPU)
    return Models(card, None, networks, CPU, torch.float32, Residency("resident", CPU), distilled_lora=lora)


def _plan(name: str, card: Card) -> Plan:
    run = metadata(f"e2e_{name}_2.3", "run")
    kind = "distilled" if name == "distilled" else "dev"
    return resolve(
        request(
            prompt="stored", preset=RUNS[name], width=run["width"], height=run["height"], frames=run["frames"],
            seed=run["seed"], steps=run.get("num_inference_steps"), lora_strength=run.get("stage_2_lora_strength"),
        ),
        replace(card, kind=kind),
    )  # fmt: skip


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch):
    """Run a stored case and collect what the denoiser, the decoder and the sound were given."""

    def run(name: str, out: Path):
        models = _models()
        plan = _plan(name, models.card)
        values = tensors(f"e2e_{name}_2.3")
        texts = {
            role: Context(values[f"context.video.{role}"], values[f"context.audio.{role}"])
            for role in ("positive", "negative")
        }
        guided = name != "distilled"
        monkeypatch.setattr(
            generate_module, "prompts", lambda *_: (texts["positive"], texts["negative"] if guided else None)
        )
        calls: list[tuple] = []
        predict = denoise_module.predict

        def spy(transformer, stage, latents, states, sigma, scene):
            result = predict(transformer, stage, latents, states, sigma, scene)
            calls.append((latents, sigma, scene, result))
            return result

        monkeypatch.setattr(denoise_module, "predict", spy)
        delivered: dict[str, torch.Tensor] = {}

        def audio(models, tokens):
            delivered["waveform"] = decode_audio(models, tokens)
            delivered["tokens"] = tokens
            return delivered["waveform"]

        def video(models, latent, tiled):
            delivered["latent"] = latent
            with models.use("vae") as vae:
                mean, std = (getattr(vae, f"latents_{part}").view(1, -1, 1, 1, 1) for part in ("mean", "std"))
                delivered["pixels"] = vae.decode(latent * std + mean, return_dict=False)[0]
            yield from decode_video(models, latent, tiled)

        monkeypatch.setattr(generate_module, "decode_audio", audio)
        monkeypatch.setattr(generate_module, "decode_video", video)
        events = list(generate(models, plan, out))
        return values, calls, delivered, events

    return run


@pytest.mark.parametrize("name", RUNS)
def test_run_equals_the_official_pipeline(name: str, recorded, tmp_path: Path) -> None:
    values, calls, delivered, events = recorded(name, tmp_path / "run.mp4")
    stages = metadata(f"e2e_{name}_2.3", "run")["stages"]
    todo = iter(calls)
    for stage in stages:
        for index, expected_sigma in enumerate(values[f"{stage}.call_sigmas"].tolist()):
            latents, sigma, scene, _ = next(todo)
            # The stored sigmas went through float32, ours are float64.
            assert sigma == pytest.approx(expected_sigma, abs=1e-6)
            for side, latent in zip(SIDES, latents, strict=True):
                assert largest_difference(latent, values[f"{stage}.{side}.steps"][index][None]) <= 1e-4, (stage, index)
            assert torch.equal(scene.video_positions, values[f"{stage}.video.positions"])
            assert torch.equal(scene.audio_positions, values[f"{stage}.audio.positions"])
    assert next(todo, None) is None, "no evaluation beyond the official ones"

    run = metadata(f"e2e_{name}_2.3", "run")
    video_from, audio_from = run["delivered_video_from"][0], run["delivered_audio_from"][0]
    assert largest_difference(delivered["latent"], values[f"{video_from}.video.final"]) <= 1e-4
    tokens = values[f"{audio_from}.audio.final"].transpose(1, 2).flatten(2)
    assert largest_difference(delivered["tokens"], tokens) <= 1e-4

    frames = (delivered["pixels"][0].permute(1, 2, 3, 0) + 1).div(2).clamp(0, 1)
    picked = frames[[0, len(frames) // 2, -1]]
    assert largest_difference(picked[:, ::4, ::4], values["video.frames_stride4"]) <= 1e-3
    assert largest_difference(picked[:, 0], values["video.row0"]) <= 1e-3
    assert largest_difference(frames.mean((1, 2, 3)), values["video.frame_mean"]) <= 1e-3
    waveform = delivered["waveform"]
    assert list(waveform.shape) == run["waveform_shape"]
    assert largest_difference(waveform[:, :2048], values["audio.waveform_head"]) <= 5e-3
    assert largest_difference(waveform[:, ::8], values["audio.waveform_stride8"]) <= 5e-3
    assert (events[-1].phase, events[-1].step) == ("write", run["frames"])


@pytest.mark.parametrize("name", ["onestage", "twostage"])
def test_first_step_of_every_pass(name: str, recorded, tmp_path: Path) -> None:
    """The passes themselves, not only their guided sum."""
    values, calls, _, _ = recorded(name, tmp_path / "run.mp4")
    guided = calls[0][-1]
    weights = metadata(f"e2e_{name}_2.3", "run")
    for side, index in zip(SIDES, (0, 1), strict=True):
        guider = weights[f"{side}_guider"]
        parts = {role: values[f"stage1.{side}.first_step.{role}"] for role in ("cond", "uncond", "ptb", "mod")}
        expected = (
            parts["cond"]
            + (guider["cfg_scale"] - 1) * (parts["cond"] - parts["uncond"])
            + guider["stg_scale"] * (parts["cond"] - parts["ptb"])
            + (guider["modality_scale"] - 1) * (parts["cond"] - parts["mod"])
        )
        share = guider["rescale_scale"]
        expected = expected * (share * parts["cond"].std() / expected.std() + 1 - share)
        assert largest_difference(guided[index], expected) <= 1e-4
