"""The engine on the small random model: a whole file from a plan, cancelling, failures that leave nothing behind."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import ltx2.engine.memory as memory
from ltx2.engine.engine import Engine
from ltx2.models.fast.lanes import OneLane
from ltx2.models.small import small
from ltx2.pipeline import generate as pipeline
from ltx2.pipeline.mux import read_plan
from ltx2.spec.errors import DoesNotFit, GenerationFailed, InvalidOutput, RefusedRequest
from ltx2.spec.events import Finished, Progress
from ltx2.spec.plan import Plan, resolve
from ltx2.spec.precision import Held
from ltx2.spec.request import request

SIZE = {"width": 128, "height": 64, "frames": 17}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(small("2.0"))


def _plan(engine: Engine, **asked) -> Plan:
    wish = {"prompt": "a cat", "negative_prompt": "dull", "seed": 1, "preset": "distilled-two-stage"}
    return resolve(request(**(wish | SIZE | asked)), engine.models.card)


def _run(engine: Engine, plan: Plan, out: Path) -> list:
    return list(engine.generate(plan, out))


@pytest.mark.parametrize("preset", ["classic", "dev", "two-stage", "hq", "distilled", "distilled-two-stage"])
def test_every_preset_makes_a_whole_file(engine: Engine, preset: str, tmp_path: Path) -> None:
    guided = preset in ("classic", "dev", "two-stage", "hq")
    plan = _plan(engine, preset=preset, fps="24000/1001", **({"steps": 2} if guided else {}))
    out = tmp_path / "clip.mp4"
    events = _run(engine, plan, out)
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.path == out and finished.seed == 1 and finished.peak_bytes > 0
    phases = {event.phase for event in events[:-1] if isinstance(event, Progress)}
    assert {"text", "stage 1", "sound", "decode", "write"} <= phases
    assert ("upsample" in phases) == (len(plan.stages) == 2)
    assert set(finished.timings) == phases
    assert all(seconds > 0 for seconds in finished.timings.values())
    assert sum(finished.timings.values()) <= finished.seconds
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    _assert_playable(out, plan, engine.models.card.output_sampling_rate)


def test_the_sound_is_made_aside_and_needs_nothing_of_the_picture(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Lanes(OneLane):
        @contextmanager
        def aside(self) -> Iterator[None]:
            told.append("aside")
            yield
            told.append("back")

        def meet(self, *crossing: object) -> None:
            told.append(f"meet with {len(crossing)}")

    def noted(name: str) -> None:
        work = getattr(pipeline, name)
        monkeypatch.setattr(pipeline, name, lambda *given: (told.append(name), work(*given))[1])

    monkeypatch.setattr(pipeline, "lanes_of", lambda device: Lanes())
    noted("yuv420")
    noted("decode_audio")
    _run(engine, _plan(engine), tmp_path / "clip.mp4")
    picture = ["yuv420"] * told.count("yuv420")
    assert told == ["meet with 1", "yuv420", "aside", "decode_audio", "back", *picture[1:], "meet with 0"]


def _assert_playable(path: Path, plan: Plan, rate: int) -> None:
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.codec_context.pix_fmt, video.codec_context.colorspace) == ("yuv420p", 1)
        assert (video.codec_context.color_primaries, video.codec_context.color_trc) == (1, 1)
        assert (video.width, video.height) == (plan.width, plan.height)
        assert video.average_rate == plan.fps and video.frames == plan.frames
        assert audio.codec_context.sample_rate == rate and audio.codec_context.channels == 2
        exact = plan.frames / plan.fps
        assert abs(video.duration * video.time_base - exact) < Fraction(1, 1000)
        assert abs(audio.duration * audio.time_base - exact) < 1 / plan.fps, "equal in length to a frame"
        comment = json.loads(container.metadata["comment"])
        assert comment["plan"]["seed"] == plan.seed
        decoded = sum(1 for _ in container.decode(video=0))
        assert decoded == plan.frames
    head = path.read_bytes()
    assert 0 < head.index(b"moov") < head.index(b"mdat"), "the index stands in front of the data"
    assert read_plan(path) == plan


def test_b9_the_same_plan_makes_the_same_bytes(engine: Engine, tmp_path: Path) -> None:
    plan = _plan(engine)
    for name in ("a.mp4", "b.mp4"):
        _run(engine, plan, tmp_path / name)
    _run(engine, replace(plan, seed=2), tmp_path / "c.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert (tmp_path / "a.mp4").read_bytes() != (tmp_path / "c.mp4").read_bytes()


def test_no_audio_leaves_the_sound_out_and_the_picture_alone(engine: Engine, tmp_path: Path) -> None:
    _run(engine, _plan(engine), tmp_path / "with.mp4")
    _run(engine, _plan(engine, audio=False), tmp_path / "without.mp4")
    pictures = []
    for name in ("with.mp4", "without.mp4"):
        with av.open(str(tmp_path / name)) as container:
            assert len(container.streams.audio) == (name == "with.mp4")
            pictures.append(np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]))
    assert np.array_equal(*pictures)


@pytest.mark.parametrize("phase", ["text", "stage 1", "upsample", "stage 2", "sound", "decode", "write"])
def test_cancelling_in_any_phase_leaves_nothing_and_the_next_run_works(
    engine: Engine, phase: str, tmp_path: Path
) -> None:
    plan, out = _plan(engine), tmp_path / "clip.mp4"
    weights = {name: value.clone() for name, value in engine.models.networks["transformer"].state_dict().items()}
    with closing(engine.generate(plan, out)) as events:
        for event in events:
            if isinstance(event, Progress) and event.phase == phase:
                break
    assert not list(tmp_path.iterdir())
    after = engine.models.networks["transformer"].state_dict()
    assert all(torch.equal(value, after[name]) for name, value in weights.items()), "LoRAs are taken out again"
    _run(engine, plan, out)
    assert out.exists()


def test_a_failing_run_keeps_the_file_that_was_there(engine: Engine, tmp_path: Path) -> None:
    out = tmp_path / "clip.mp4"
    out.write_bytes(b"older")
    with closing(engine.generate(_plan(engine), out)) as events:
        next(events)
    assert out.read_bytes() == b"older"


def test_values_that_are_not_finite_are_never_published(tmp_path: Path) -> None:
    engine = Engine(small("2.0"))
    engine.models.networks["transformer"].proj_out.bias.data.fill_(math.nan)
    with pytest.raises(InvalidOutput, match="not finite"):
        _run(engine, _plan(engine), tmp_path / "clip.mp4")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
    try:
        with pytest.raises(GenerationFailed, match="could not be written"):
            _run(engine, _plan(engine), tmp_path / "clip.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert not list(tmp_path.iterdir())


def test_a_first_frame_is_kept(engine: Engine, tmp_path: Path) -> None:
    image = tmp_path / "first.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 160, 3), np.uint8)).save(image)
    out = tmp_path / "clip.mp4"
    plan = _plan(engine, preset="dev", steps=2, image=str(image))
    _run(engine, plan, out)
    assert out.exists() and read_plan(out).image == "first.png"


def test_an_overlong_prompt_is_refused_not_cut(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(RefusedRequest, match="tokens") as caught:
        _run(engine, _plan(engine, prompt="cat " * 500), tmp_path / "clip.mp4")
    assert caught.value.knob == "prompt"


def test_a_plan_that_does_not_fit_names_what_would(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _plan(engine, frames=473)
    need = memory.wanted(plan, engine.models.card, Held("fp32", fast=False), loaded=True, tiled=True)
    monkeypatch.setattr(memory, "available", lambda _device: need - 1)
    with pytest.raises(DoesNotFit) as caught:
        engine.check_fits(plan)
    fitting = int(caught.value.hint.split()[0])
    assert engine.check_fits(replace(plan, frames=fitting))
    with pytest.raises(DoesNotFit):
        engine.check_fits(replace(plan, frames=fitting + 8))
    monkeypatch.setattr(memory, "available", lambda _device: 0)
    with pytest.raises(DoesNotFit, match="needs"):
        engine.check_fits(plan)


def test_nothing_carries_a_gradient(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ltx2.pipeline.denoise as denoise_module

    seen: list[torch.Tensor] = []
    predict = denoise_module.predict

    def spy(*args):
        result = predict(*args)
        seen.extend(result)
        return result

    monkeypatch.setattr(denoise_module, "predict", spy)
    with torch.enable_grad():
        _run(engine, _plan(engine), tmp_path / "clip.mp4")
    assert seen and all(value.grad_fn is None and not value.requires_grad for value in seen)
    assert not any(p.requires_grad for network in engine.models.networks.values() for p in network.parameters())


def test_tiled_decoding_is_close_to_the_whole_one() -> None:
    """On the embedded model's trained VAE: a disc that drifts over a gradient for 129 frames."""
    from ltx2.models.components import load
    from ltx2.pipeline.decode import TILE, decode_video

    models = load("tiny", dtype=torch.float32)
    frames, height, width = 129, 64, 96
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centre = torch.linspace(16, width - 16, frames)[:, None, None]
    disc = torch.sigmoid(12 - ((rows[None] - 32.0) ** 2 + (columns[None] - centre) ** 2).sqrt())
    clip = torch.stack([disc, 0.2 + 0 * disc, 1 - disc]).mul(2).sub(1)[None]
    with torch.inference_mode(), models.use("vae") as vae:
        raw = vae.encode(clip).latent_dist.mode()
        latent = (raw - vae.latents_mean.view(1, -1, 1, 1, 1)) / vae.latents_std.view(1, -1, 1, 1, 1)
    assert latent.shape[2] > TILE, "several tiles"
    whole = torch.cat(list(decode_video(models, latent))).float()
    tiled = torch.cat(list(decode_video(models, latent, tiled=True))).float()
    assert tiled.shape == whole.shape == (frames, height, width, 3)
    decibels = 10 * torch.log10(255**2 / (whole - tiled).square().mean((1, 2, 3)).clamp(min=1e-6))
    print(f"tiled against whole: mean {decibels.mean():.1f} dB, worst frame {decibels.min():.1f} dB")
    assert decibels.min() > 30 and decibels.mean() > 38
