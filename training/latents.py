"""Stage 4: encodes a dataset of clips at both sizes, their sound and their tokenised captions, for the stages after it.

Latents are normalised per channel and cut into tokens as the transformer sees them; `local/latents.pt` holds them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video
from torch import Tensor

from ltx2.pipeline.latents import tokens_from_audio, tokens_from_video
from training import networks, text, tokenizer
from training.loop import FPS, Clock, Log, Run
from training.mel import log_mel
from training.world import HARD, MOTIONS, Scene, caption, render, sample_scenes, sound

CAPTIONS = 4
CHUNK = 48
CLIPS = 96_000
HELD_OUT = 192
OMIT_SIZE = 0.1


@dataclass(frozen=True)
class Latents:
    """Encoded clips: `large` [N, T, C], `small` [N, t, C], `audio` [N, Ta, D] bfloat16; `ids` [N, CAPTIONS, WINDOW]."""

    large: Tensor
    small: Tensor
    audio: Tensor
    ids: Tensor

    def to(self, device: torch.device) -> Latents:
        return Latents(*(tensor.to(device) for tensor in (self.large, self.small, self.audio, self.ids)))


def load(run: Run, held_out: bool = False) -> Latents:
    """The training set, or the held-out one, on the run's device."""
    tables = torch.load(run.local / "latents.pt", map_location="cpu")
    return Latents(**tables["held_out" if held_out else "training"]).to(run.device)


def train(run: Run) -> None:
    """Encode clips until `CLIPS` (by the run's factor) are done or `run.seconds` are over."""
    torch.backends.cudnn.benchmark = True
    vae = networks.load("vae", run.out / "vae.safetensors").to(run.device).eval()
    log, clock = Log(run, "latents"), Clock(run.seconds)
    audio_vae = networks.load("audio_vae", run.out / "audio_vae.safetensors").to(run.device).eval()
    tables = {"held_out": _encode(run, vae, audio_vae, _scenes(run, HELD_OUT, held_out=True), None, log)}
    tables["training"] = _encode(run, vae, audio_vae, _scenes(run, run.size(CLIPS), held_out=False), clock, log)
    captions = torch.load(run.local / "captions.pt")
    for name, table in tables.items():
        table["ids"] = captions[name][: len(table["large"])]
    _store(tables, run.local / "latents.pt")
    large = tables["training"]["large"]
    log.write(event="done", clips=len(large), seconds=clock.elapsed, mean=large.float().mean(), std=large.float().std())


def write_captions(run: Run) -> None:
    """Stage on the CPU, beside the VAEs: draws and tokenises the captions of all clips into `local/captions.pt`."""
    tables = {}
    for name, count in (("held_out", HELD_OUT), ("training", run.size(CLIPS))):
        rng, scenes = random.Random(run.seed), _scenes(run, count, held_out=name == "held_out")
        written = [caption(scene, rng, OMIT_SIZE) for scene in scenes for _ in range(CAPTIONS)]
        tables[name] = text.tokenise(tokenizer.load(), written).unflatten(0, (len(scenes), CAPTIONS))
    _store(tables, run.local / "captions.pt")


def _store(tables: dict, path: Path) -> None:
    part = path.with_suffix(".part")
    torch.save(tables, part)
    part.replace(path)


def _scenes(run: Run, count: int, held_out: bool) -> list[Scene]:
    """The scenes of a table; in training the hard motions come twice as often, or every second clip is of the lesson."""
    count = 6 if run.smoke else count
    seed = run.seed + 9_000_000 + held_out
    if held_out:
        return sample_scenes(count, seed, held_out)
    if run.lesson:
        pool = sample_scenes(len(MOTIONS) * count, seed)
        others = (scene for scene in pool if scene.motion != run.lesson)
        pairs = zip((scene for scene in pool if scene.motion == run.lesson), others, strict=False)
        return [scene for pair in pairs for scene in pair][:count]
    pool = sample_scenes(2 * count, seed)
    return [scene for index, scene in enumerate(pool) if index % 2 or scene.motion in HARD][:count]


@torch.no_grad()
def _encode(
    run: Run,
    vae: AutoencoderKLLTX2Video,
    audio_vae: AutoencoderKLLTX2Audio,
    scenes: list[Scene],
    clock: Clock | None,
    log: Log,
) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {"large": [], "small": [], "audio": []}
    done = 0
    while done < len(scenes) and not (clock and clock.over and done):
        chunk = scenes[done : done + CHUNK]
        for size in ("large", "small"):
            parts[size].append(encode_video(run, vae, chunk, size))
        parts["audio"].append(encode_audio(run, audio_vae, chunk))
        done += len(chunk)
        if log.due:
            log.write(clips=done)
    return {name: torch.cat(pieces).cpu() for name, pieces in parts.items()}


def encode_video(run: Run, vae: AutoencoderKLLTX2Video, scenes: list[Scene], size: str) -> Tensor:
    """Normalised video tokens [N, T, C] bfloat16 of rendered scenes."""
    video, _ = render(scenes, run.geometry.frames, *getattr(run.geometry, size), FPS, run.device)
    with run.autocast():
        latent = vae.encode(video).latent_dist.mode().float()
    return ((tokens_from_video(latent) - vae.latents_mean) / vae.latents_std).bfloat16()


def encode_audio(run: Run, vae: AutoencoderKLLTX2Audio, scenes: list[Scene]) -> Tensor:
    """Normalised audio tokens [N, T, D] bfloat16 of the scenes' sound."""
    waves = sound(scenes, run.geometry.seconds, networks.MEL_RATE, run.device)
    with run.autocast():
        latent = vae.encode(log_mel(waves)[:, :, : run.geometry.mel_frames]).latent_dist.mode().float()
    return ((tokens_from_audio(latent) - vae.latents_mean) / vae.latents_std).bfloat16()
