"""Stage 1: the video VAE learns to put clips through 32 channels at 1/32 of the size and 1/8 of the frames.

Images come before clips (1, 9, 25, 49 frames); both sizes alternate. The posterior's mode plus a little noise is
decoded instead of a sample: its variance starts at one and would drown the signal.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLLTX2Video
from torch import Tensor

from training import networks
from training.loop import FPS, Clock, Log, Optimiser, Run, rate
from training.world import render, sample_scenes

NOISE = 0.05
# share of the time until which a row holds, frames, clips per batch at the large size (four times as many at the small)
CURRICULUM = ((0.06, 1, 160), (0.25, 9, 40), (0.85, 25, 16), (1.01, 49, 8))
CLIPS_FROM = 0.25


def train(run: Run) -> None:
    """Train for `run.seconds`, measure PSNR and latent statistics, save `vae.safetensors`."""
    torch.manual_seed(run.seed)
    torch.backends.cudnn.benchmark = True
    vae, goes_on = networks.start("vae", run.out / "vae.safetensors")
    vae.to(run.device)
    log, optimiser = Log(run, "video_vae"), Optimiser(vae.parameters(), 1e-3)
    log.write(goes_on=goes_on, parameters=sum(p.numel() for p in vae.parameters()))
    clock, step = Clock(run.seconds), 0
    while not clock.over:
        # a VAE that has learnt images already begins with clips
        lesson = max(clock.share, CLIPS_FROM) if goes_on else clock.share
        loss, parts = _loss(run, vae, batch(run, step, lesson))
        optimiser.step(loss, rate(step, clock.share, hold=0.5))
        if log.due:
            log.write(step=step, share=clock.share, **parts)
        step += 1
    vae.eval()
    measure_latents(run, vae)
    log.write(step=step, event="done", **psnr(run, vae))
    networks.save(vae, run.out / "vae.safetensors")


def batch(run: Run, step: int, share: float) -> tuple[Tensor, Tensor]:
    """A fresh batch: video [N, 3, F, H, W] and its mask, cut out of whole clips at a random moment; sizes alternate."""
    _, frames, clips = next(row for row in CURRICULUM if share < row[0])
    whole = run.geometry.frames
    height, width = run.geometry.small if step % 2 else run.geometry.large
    clips, frames = run.size(clips * (4 if step % 2 else 1)), min(frames, whole)
    moments = min(8, clips) if frames == 1 else 1
    scenes = sample_scenes(clips // moments, seed=run.seed + 1_000_000 + step)
    parts = render(scenes, whole, height, width, FPS, run.device)
    if frames == 1:
        chosen = torch.randperm(whole)[:moments].tolist()
        video, mask = (part[:, :, chosen].transpose(1, 2).flatten(0, 1).unsqueeze(2) for part in parts)
    else:
        start = int(torch.randint(whole - frames + 1, ()))
        video, mask = (part[:, :, start : start + frames] for part in parts)
    return video.contiguous(), mask


def _loss(run: Run, vae: AutoencoderKLLTX2Video, clips: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    video, mask = clips
    with run.autocast():
        latent = vae.encode(video).latent_dist.mode()
        decoded = vae.decode(latent + NOISE * torch.randn_like(latent), return_dict=False)[0].float()
    difference = decoded - video
    error = (difference.square() * (1 + 4 * mask)).mean()
    spread = latent.float().square().mean()
    loss = error + 0.1 * difference.abs().mean() + 1e-4 * spread
    return loss, {"loss": loss.detach(), "mse": difference.detach().square().mean(), "z2": spread.detach()}


@torch.no_grad()
def measure_latents(run: Run, vae: AutoencoderKLLTX2Video, batches: int = 16) -> None:
    """Store mean and deviation of every latent channel over fresh large clips in the VAE's buffers."""
    latents = []
    for index in range(2 if run.smoke else batches):
        scenes = sample_scenes(run.size(16), seed=run.seed + 2_000_000 + index)
        video, _ = render(scenes, run.geometry.frames, *run.geometry.large, FPS, run.device)
        with run.autocast():
            latents.append(vae.encode(video).latent_dist.mode().float().transpose(0, 1).flatten(1))
    flat = torch.cat(latents, dim=1)
    vae.latents_mean.copy_(flat.mean(1))
    # a channel quieter than the noise says nothing; scaling it up would make the transformer learn it
    vae.latents_std.copy_(flat.std(1).clamp(min=NOISE))


@torch.no_grad()
def psnr(run: Run, vae: AutoencoderKLLTX2Video) -> dict[str, float]:
    """Mean and worst peak signal-to-noise ratio (dB, range -1..1) over fresh held-out clips, for both sizes."""
    values = {}
    for size in ("large", "small"):
        errors = []
        for index in range(1 if run.smoke else 4):
            scenes = sample_scenes(run.size(8), seed=run.seed + 3_000_000 + index, held_out=True)
            video, _ = render(scenes, run.geometry.frames, *getattr(run.geometry, size), FPS, run.device)
            with run.autocast():
                decoded = vae.decode(vae.encode(video).latent_dist.mode(), return_dict=False)[0].float()
            errors.append((decoded.clamp(-1, 1) - video).square().flatten(1).mean(1))
        decibels = 10 * torch.log10(4 / torch.cat(errors))
        values |= {f"psnr_{size}": decibels.mean().item(), f"psnr_{size}_worst": decibels.min().item()}
    return values
