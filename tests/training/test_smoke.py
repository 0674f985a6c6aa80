"""Every stage of the training runs on the CPU with tiny clips and hands on what it made; its parts do what they say."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training import export, flow, latents, lora, mel, networks, text, tokenizer, transformer
from training.__main__ import STAGES, main
from training.loop import Average, Clock, Run, rate

SECONDS = "0.3"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose every stage was trained for a moment."""
    out = tmp_path_factory.mktemp("run")
    for stage in STAGES:
        assert main([stage, "--out", str(out), "--smoke", "--seconds", SECONDS]) == 0
    return Run(out, 0.3, smoke=True)


def test_every_stage_leaves_finite_weights_and_a_log(run: Run):
    for name in (*networks.BUILDERS, "text_encoder", "distilled_lora"):
        tensors = load_file(run.out / f"{name}.safetensors")
        assert tensors and all(torch.isfinite(tensor.float()).all() for tensor in tensors.values()), name
    for stage in STAGES.keys() - {"captions"}:
        lines = [json.loads(line) for line in (run.out / f"log_{stage}.jsonl").read_text().splitlines()]
        assert lines[-1]["event"] == "done"


def test_latents_are_normalised_tokens_of_both_sizes(run: Run):
    data = latents.load(run)
    frames, rows, columns = run.geometry.grid("large")
    assert data.large.shape[1:] == (frames * rows * columns, networks.LATENT_CHANNELS)
    assert data.small.shape[1] == data.large.shape[1] // 4
    assert data.audio.shape[1:] == (run.geometry.audio_latents, networks.AUDIO_TOKEN_DIM)
    assert data.ids.shape == (len(data.large), latents.CAPTIONS, text.WINDOW)
    assert abs(data.large.float().mean()) < 0.5 and 0.5 < data.large.float().std() < 2


def test_a_finished_stage_is_skipped_and_the_transformer_goes_on(run: Run, capsys: pytest.CaptureFixture[str]):
    before = (run.out / "vae.safetensors").stat().st_mtime_ns
    steps = json.loads((run.out / "transformer.json").read_text())["step"]
    for stage in ("video_vae", "transformer"):
        main([stage, "--out", str(run.out), "--smoke", "--seconds", SECONDS])
    assert (run.out / "vae.safetensors").stat().st_mtime_ns == before
    assert json.loads((run.out / "transformer.json").read_text())["step"] > steps
    assert "already finished" in capsys.readouterr().out


def test_a_lesson_shows_its_motion_in_half_of_the_clips_and_goes_on_from_what_is_there(run: Run):
    lesson = replace(run, lesson="spin")
    scenes = latents._scenes(replace(lesson, smoke=False), 100, held_out=False)
    assert [scene.motion == "spin" for scene in scenes] == [True, False] * 50
    school = lora.open_school(lesson)
    saved = load_file(run.out / lora.PRODUCT)
    for name, layer in school.layers.items():
        assert torch.equal(layer.down.bfloat16(), saved[f"diffusion_model.{name}.lora_A.weight"])
    model = transformer.load(lesson)
    taught = {name for name in transformer.PARTS for p in getattr(model, name).parameters() if p.requires_grad}
    assert taught == {"transformer"}


def test_export_loads_as_a_diffusers_folder_within_its_budget(run: Run, tmp_path: Path):
    assert export.export(run.out, tmp_path / "tiny") <= 40 * 2**20
    counts = export.check(tmp_path / "tiny")
    assert counts["transformer"] > 8_000_000 and counts["lora"] > 1_000_000
    export.reopen(tmp_path / "tiny", tmp_path / "again")
    for path in run.out.glob("*.safetensors"):
        tensors, again = load_file(path), load_file(tmp_path / "again" / path.name)
        assert all(torch.equal(again[name], tensors[name]) for name in again | tensors), path.name


def test_packed_pieces_become_the_same_run_again(run: Run, tmp_path: Path):
    pieces = export.pack(run.out, tmp_path / "pieces")
    assert all(piece.stat().st_size <= 16 * 2**20 for piece in pieces)
    export.unpack(tmp_path / "pieces", tmp_path / "again")
    for path in run.out.glob("*.safetensors"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_contexts_equal_those_of_the_full_text_encoder():
    words = tokenizer.load()
    encoder, connectors = networks.build("text_encoder", len(words)).eval(), networks.build("connectors").eval()
    captions = ["A red ball bounces on a dark background with a high beep at every bounce.", "", "Blue star"]
    full = words(captions, padding="max_length", max_length=networks.TEXT_POSITIONS, return_tensors="pt")
    with torch.no_grad():
        ours = text.contexts(encoder, connectors, text.tokenise(words, captions))
        hidden = encoder(**full, output_hidden_states=True).hidden_states
        theirs = connectors(torch.stack(hidden, -1), full["attention_mask"], padding_side="left", scale_factor=8)
    for mine, its in zip(ours, theirs, strict=False):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-5)


def test_empty_caption_is_one_token():
    assert torch.equal(transformer.empty(torch.device("cpu")), text.tokenise(tokenizer.load(), [""])[0])


def test_euler_steps_with_the_true_velocity_end_at_the_clean_clip():
    clip = flow.Clip(torch.randn(2, 8, 3), torch.randn(2, 5, 4), torch.arange(8).expand(2, 8) < 2)
    video, audio = flow.noise_like(clip)
    moving = clip.noised(torch.ones(2), video, audio)
    assert torch.equal(moving.video[:, :2], clip.video[:, :2]) and torch.equal(moving.audio, audio)
    for level, following in zip(lora.GENERATION, lora.GENERATION[1:], strict=False):
        moving = moving.stepped(following - level, video - clip.video, audio - clip.audio)
    torch.testing.assert_close(moving.video, clip.video, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moving.audio, clip.audio, atol=1e-5, rtol=1e-5)


def test_a_fresh_low_rank_update_changes_nothing_until_it_is_trained():
    linear = torch.nn.Linear(6, 5)
    layer, x = lora.LowRank(linear, rank=2), torch.randn(3, 6)
    assert torch.equal(layer(x), linear(x))
    with torch.no_grad():
        layer.up.normal_()
    torch.testing.assert_close(layer(x), x @ (linear.weight + layer.up @ layer.down).T + linear.bias)
    layer.active = False
    assert torch.equal(layer(x), linear(x))


def test_mel_filters_have_unit_area_and_a_tone_lands_in_its_bin():
    bank = mel.filters(networks.MEL_BINS)
    width = networks.MEL_RATE / mel.WINDOW
    torch.testing.assert_close(bank.sum(0) * width, torch.ones(networks.MEL_BINS), atol=0.05, rtol=0)
    times = torch.arange(8000) / networks.MEL_RATE
    wave = torch.sin(2 * math.pi * 1760 * times).expand(1, 2, -1)
    heard = mel.log_mel(wave)[0, 0, 20].argmax()
    assert heard == bank[round(1760 / width)].argmax()


def test_rate_warms_up_holds_and_falls():
    assert rate(0, 0.0, warm_up=10) == pytest.approx(0.1)
    assert rate(100, 0.3, warm_up=10, hold=0.4) == 1.0
    assert rate(100, 1.0, warm_up=10, floor=0.02) == pytest.approx(0.02)
    clock = Clock(10.0, before=30.0, total=40.0)
    assert 0.74 < clock.share < 0.8 and not clock.over


def test_average_follows_and_swaps():
    weight = torch.nn.Parameter(torch.zeros(3))
    average = Average([weight])
    with torch.no_grad():
        weight.fill_(1.0)
    average.update()
    value = average.shadow[0].clone()
    assert (value > 0).all() and (value < 1).all()
    average.swap()
    assert torch.equal(weight.detach(), value) and (average.shadow[0] == 1).all()
