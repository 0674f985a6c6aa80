"""Looks at what the networks have learnt: makes held-out clips in every way of sampling, frames laid on sheets."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ltx2.pipeline.latents import video_from_tokens
from training import lora, networks, text, tokenizer, transformer
from training.flow import Clip, Contexts, guided, noise_like, predict
from training.loop import Log, Run
from training.upsampler import load_statistics, upsample
from training.world import caption, sample_scenes

ROWS = 10
COLUMNS = 6
DEV_STEPS = 30


@torch.no_grad()
def draw(run: Run) -> None:
    """Write `sheet_dev.png` (guided, one stage) and, with a LoRA, `sheet_distilled.png` and `sheet_two_stage.png`."""
    torch.manual_seed(run.seed + 1)
    model, statistics, log = transformer.load(run), load_statistics(run), Log(run, "sheet")
    vae = networks.load("vae", run.out / "vae.safetensors").to(run.device).eval()
    scenes = sample_scenes(2 if run.smoke else ROWS, seed=run.seed + 31, held_out=True)
    captions = [caption(scene, random.Random(run.seed + index)) for index, scene in enumerate(scenes)]
    ids = text.tokenise(tokenizer.load(), captions).to(run.device)
    with run.autocast():
        contexts = (model.contexts(ids), model.contexts(transformer.empty(run.device).expand(len(ids), -1)))
    steps = 4 if run.smoke else DEV_STEPS
    dev = _generate(run, model.transformer, contexts, shifted(steps), "large", run.scale)
    _write(run, vae, statistics, dev.video, "sheet_dev.png")
    path = run.out / "distilled_lora.safetensors"
    if path.exists():
        lora.restore(lora.attach(model.transformer), path)
        once = _generate(run, model.transformer, contexts, lora.GENERATION, "large", 1.0)
        _write(run, vae, statistics, once.video, "sheet_distilled.png")
        first = _generate(run, model.transformer, contexts, lora.GENERATION, "small", 1.0)
        upsampler = networks.load("latent_upsampler", run.out / "latent_upsampler.safetensors").to(run.device)
        video = upsample(run, upsampler, statistics, first.video)
        large = Clip(video, first.audio, torch.zeros(video.shape[:2], dtype=torch.bool, device=run.device))
        second = _generate(run, model.transformer, contexts, lora.REFINEMENT, "large", 1.0, large)
        _write(run, vae, statistics, second.video, "sheet_two_stage.png")
    log.write(event="done", captions=captions)


def shifted(steps: int, mu: float = 2.05, last: float = 0.1) -> tuple[float, ...]:
    """The dev schedule: linear sigmas, exponentially shifted by `mu`, stretched to end at `last`, then 0."""
    linear = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
    sigmas = np.e**mu / (np.e**mu + 1 / linear - 1)
    stretched = 1 - (1 - sigmas) * (1 - last) / (1 - sigmas[-1])
    return (*stretched.tolist(), 0.0)


def _generate(
    run: Run,
    network: nn.Module,
    contexts: tuple[Contexts, Contexts],
    sigmas: tuple[float, ...],
    size: str,
    scale: float,
    start: Clip | None = None,
) -> Clip:
    grid, count, device = run.geometry.grid(size), len(contexts[0][0]), run.device
    if start is None:
        video = torch.zeros(count, grid[0] * grid[1] * grid[2], networks.LATENT_CHANNELS, device=device)
        audio = torch.zeros(count, run.geometry.audio_latents, networks.AUDIO_TOKEN_DIM, device=device)
        start = Clip(video, audio, torch.zeros(video.shape[:2], dtype=torch.bool, device=device))
    clip = start.noised(torch.full((count,), sigmas[0], device=device), *noise_like(start))
    for level, following in zip(sigmas, sigmas[1:], strict=False):
        with run.autocast():
            levels = torch.full((count,), level, device=device)
            if scale == 1.0:
                made = predict(network, clip, levels, contexts[0], grid)
            else:
                made = guided(network, clip, levels, contexts, grid, scale)
        clip = clip.stepped(following - level, *made)
    return clip


def _write(run: Run, vae: nn.Module, statistics: tuple[Tensor, Tensor], tokens: Tensor, name: str) -> None:
    mean, std = statistics
    with run.autocast():
        video = vae.decode(video_from_tokens(tokens * std + mean, run.geometry.grid("large")), return_dict=False)[0]
    chosen = np.linspace(0, video.shape[2] - 1, COLUMNS).round().astype(int).tolist()
    frames = video[:, :, chosen].float().clamp(-1, 1).add(1).mul(127.5).round().byte().cpu()
    rows, colours, columns, height, width = frames.shape
    sheet = frames.permute(0, 3, 2, 4, 1).reshape(rows * height, columns * width, colours).numpy()
    Image.fromarray(sheet).save(Path(run.out / name))
