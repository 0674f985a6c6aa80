"""The oracle passes everything on: the noise as it is, every guidance switch, every sigma."""

from __future__ import annotations

import torch

from ltx2.models import oracle
from ltx2.models.oracle import Ask, Knobs
from ltx2.models.small import small
from tests.data_files import largest_difference

SIGMAS = (1.0, 0.9, 0.4, 0.0)


def _ask(**changes: object) -> Ask:
    generator = torch.Generator().manual_seed(0)
    noise = {
        "video_noise": torch.randn(1, 24, 8, generator=generator),
        "audio_noise": torch.randn(1, 9, 16, generator=generator),
    }
    return Ask("a cat", 128, 96, 9, SIGMAS, **(noise | changes))  # pyright: ignore[reportArgumentType]


def test_noise_enters_unchanged_even_when_the_audio_statistics_are_not_neutral() -> None:
    models = small("2.0")
    models.networks["audio_vae"].get_buffer("latents_mean").fill_(3.0)
    models.networks["audio_vae"].get_buffer("latents_std").fill_(0.5)
    ask = _ask()
    answer = oracle.run(models, ask)
    assert len(answer.states) == answer.passes == 3
    assert ask.video_noise is not None
    assert ask.audio_noise is not None
    assert largest_difference(answer.states[0][0], ask.video_noise) == 0
    assert largest_difference(answer.states[0][1], ask.audio_noise) <= 1e-6


def test_guidance_costs_and_changes() -> None:
    models = small("2.3")
    knobs = Knobs(3.0, 1.0, 3.0, 0.7)
    plain, guided = oracle.run(models, _ask()), oracle.run(models, _ask(video=knobs, audio=knobs, stg_blocks=(2,)))
    assert (plain.passes, guided.passes) == (3, 12)
    assert largest_difference(plain.video, guided.video) > 0.01
    cfg = oracle.run(models, _ask(video=Knobs(4.0), audio=Knobs(4.0)))
    assert cfg.passes == 6


def test_a_decoded_run_gives_pixels_and_sound_of_the_right_sizes() -> None:
    answer = oracle.run(small("2.3", dtype=torch.bfloat16), _ask(), decode=True)
    assert answer.video.shape == (1, 9, 96, 128, 3)
    assert 0 <= answer.video.min() <= answer.video.max() <= 1
    assert answer.audio.shape == (1, 2, 15840)
