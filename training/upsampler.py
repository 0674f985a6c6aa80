"""Stage 6: the latent upsampler learns to turn latents of a small clip into those of the same clip at twice the size.

In and out are latents as the video VAE gives them; the error is measured on normalised ones. Noise on the input makes
it forgive what generation gets slightly wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltx2.pipeline.latents import tokens_from_video, video_from_tokens
from training import latents, networks
from training.loop import Clock, Log, Optimiser, Run, rate

BATCH = 256
NOISE = 0.1


def train(run: Run) -> None:
    """Train for `run.seconds`, measure the held-out error, save `latent_upsampler.safetensors`."""
    torch.manual_seed(run.seed)
    torch.backends.cudnn.benchmark = True
    upsampler = networks.build("latent_upsampler").to(run.device)
    statistics = load_statistics(run)
    data = latents.load(run)
    log, optimiser = Log(run, "upsampler"), Optimiser(upsampler.parameters(), 1e-3)
    clock, step = Clock(run.seconds), 0
    while not clock.over:
        rows = torch.randint(len(data.small), (run.size(BATCH),), device=run.device)
        small = data.small[rows].float()
        small = small + NOISE * torch.rand(len(rows), 1, 1, device=run.device) * torch.randn_like(small)
        with run.autocast():
            made = upsample(run, upsampler, statistics, small)
        difference = made.float() - data.large[rows].float()
        loss = difference.square().mean() + 0.1 * difference.abs().mean()
        optimiser.step(loss, rate(step, clock.share))
        if log.due:
            log.write(step=step, share=clock.share, loss=loss.detach(), mse=difference.detach().square().mean())
        step += 1
    held_out = latents.load(run, held_out=True)
    with torch.no_grad(), run.autocast():
        made = upsample(run, upsampler.eval(), statistics, held_out.small.float())
    log.write(step=step, event="done", mse=(made.float() - held_out.large.float()).square().mean())
    networks.save(upsampler, run.out / "latent_upsampler.safetensors")


def load_statistics(run: Run) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [C] of the video VAE's latents, on the run's device."""
    vae = networks.load("vae", run.out / "vae.safetensors")
    return vae.latents_mean.to(run.device), vae.latents_std.to(run.device)


def upsample(run: Run, upsampler: nn.Module, statistics: tuple[Tensor, Tensor], small: Tensor) -> Tensor:
    """Normalised tokens of the small size [N, t, C] -> normalised tokens of the large size [N, T, C]."""
    mean, std = statistics
    latent = video_from_tokens(small * std + mean, run.geometry.grid("small"))
    return (tokens_from_video(upsampler(latent)) - mean) / std
