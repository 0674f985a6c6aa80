"""Stage 2: the audio VAE learns to put the log-mels of the toy sounds through 25 latents of 24 numbers a second."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLLTX2Audio
from torch import Tensor

from ltx2.pipeline.latents import tokens_from_audio
from training import networks
from training.loop import Clock, Log, Optimiser, Run, rate
from training.mel import log_mel
from training.world import sample_scenes, sound

NOISE = 0.05


def train(run: Run) -> None:
    """Train for `run.seconds`, measure the mel error and latent statistics, save `audio_vae.safetensors`."""
    torch.manual_seed(run.seed)
    vae, _ = networks.start("audio_vae", run.out / "audio_vae.safetensors")
    vae.to(run.device)
    log, optimiser = Log(run, "audio_vae"), Optimiser(vae.parameters(), 1e-3)
    clock, step = Clock(run.seconds), 0
    while not clock.over:
        target = mels(run, run.size(64), run.seed + 4_000_000 + step)
        with run.autocast():
            latent = vae.encode(target).latent_dist.mode()
            decoded = vae.decode(latent + NOISE * torch.randn_like(latent), return_dict=False)[0].float()
        difference = decoded - target
        spread = latent.float().square().mean()
        loss = difference.abs().mean() + 0.1 * difference.square().mean() + 1e-3 * spread
        optimiser.step(loss, rate(step, clock.share))
        if log.due:
            log.write(step=step, share=clock.share, loss=loss.detach(), z2=spread.detach())
        step += 1
    vae.eval()
    error = measure(run, vae)
    log.write(step=step, event="done", mel_l1=error)
    networks.save(vae, run.out / "audio_vae.safetensors")


def mels(run: Run, count: int, seed: int, held_out: bool = False) -> Tensor:
    """Log-mels [N, 2, T, bins] of fresh toy sounds, T as the latents of a clip need it."""
    waves = sound(sample_scenes(count, seed, held_out), run.geometry.seconds, networks.MEL_RATE, run.device)
    return log_mel(waves)[:, :, : run.geometry.mel_frames]


@torch.no_grad()
def measure(run: Run, vae: AutoencoderKLLTX2Audio) -> Tensor:
    """Store the latent statistics per token channel in the VAE's buffers; return the mean absolute log-mel error."""
    target = mels(run, run.size(512), run.seed + 5_000_000)
    with run.autocast():
        tokens = tokens_from_audio(vae.encode(target).latent_dist.mode().float()).flatten(0, 1)
    vae.latents_mean.copy_(tokens.mean(0))
    vae.latents_std.copy_(tokens.std(0).clamp(min=NOISE))
    held_out = mels(run, run.size(64), run.seed + 6_000_000, held_out=True)
    with run.autocast():
        decoded = vae.decode(vae.encode(held_out).latent_dist.mode(), return_dict=False)[0].float()
    return (decoded - held_out).abs().mean()
