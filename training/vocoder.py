"""Stage 3: the vocoder learns to turn log-mels of the toy sounds into waveforms.

The loss compares spectra only (log-mel and magnitudes at three resolutions): a mel does not say which phase to draw.
Where the audio VAE is there already, half of each batch is mels that went through it, as in generation.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLLTX2Audio
from torch import Tensor, nn

from training import networks
from training.loop import Clock, Log, Optimiser, Run, rate
from training.mel import HOP, log_mel
from training.world import sample_scenes, sound

RESOLUTIONS = (256, 512, 1024)
CROP = 80  # mel frames of a training excerpt


def train(run: Run) -> None:
    """Train for `run.seconds`, measure the error of the mel of the waveform, save `vocoder.safetensors`."""
    torch.manual_seed(run.seed)
    torch.backends.cudnn.benchmark = True
    vocoder, _ = networks.start("vocoder", run.out / "vocoder.safetensors")
    vocoder.to(run.device)
    path = run.out / "audio_vae.safetensors"
    vae = networks.load("audio_vae", path).to(run.device).eval() if path.exists() else None
    log, optimiser = Log(run, "vocoder"), Optimiser(vocoder.parameters(), 1e-3)
    clock, step = Clock(run.seconds), 0
    while not clock.over:
        mel, waves = excerpts(run, vae, run.seed + 7_000_000 + step)
        made = vocoder(mel)
        loss, parts = spectral_loss(made, waves)
        optimiser.step(loss, rate(step, clock.share))
        if log.due:
            log.write(step=step, share=clock.share, loss=loss.detach(), **parts)
        step += 1
    log.write(step=step, event="done", **measure(run, vocoder.eval(), vae))
    networks.save(vocoder, run.out / "vocoder.safetensors")


def clips(run: Run, count: int, seed: int, held_out: bool = False) -> tuple[Tensor, Tensor]:
    """Whole toy sounds: log-mels [N, 2, T, bins] and the waveforms [N, 2, 160 T] that begin where their frames do."""
    frames = run.geometry.mel_frames
    waves = sound(sample_scenes(count, seed, held_out), run.geometry.seconds, networks.MEL_RATE, run.device)
    return log_mel(waves)[:, :, :frames], waves[..., : frames * HOP]


def excerpts(run: Run, vae: AutoencoderKLLTX2Audio | None, seed: int) -> tuple[Tensor, Tensor]:
    """Log-mels and waveforms of a training batch, cut to `CROP` frames at one random place."""
    mel, waves = clips(run, run.size(64), seed)
    if vae is not None:
        mel = torch.cat([mel[::2], through(run, vae, mel[1::2])])
        waves = torch.cat([waves[::2], waves[1::2]])
    length = min(CROP, mel.shape[2])
    start = int(torch.randint(mel.shape[2] - length + 1, ()))
    return mel[:, :, start : start + length], waves[..., start * HOP : (start + length) * HOP]


@torch.no_grad()
def through(run: Run, vae: AutoencoderKLLTX2Audio, mel: Tensor) -> Tensor:
    """Log-mels as the audio VAE gives them back, latents slightly noisy as generated ones are."""
    with run.autocast():
        latent = vae.encode(mel).latent_dist.mode()
        return vae.decode(latent + 0.05 * torch.randn_like(latent), return_dict=False)[0].float()


def spectral_loss(made: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-mel L1 plus, at each resolution, spectral convergence and L1 of log magnitudes; waveforms [N, 2, S]."""
    mel = (log_mel(made) - log_mel(target)).abs().mean()
    spectra = made.new_zeros(())
    for size in RESOLUTIONS:
        ours, theirs = _magnitudes(made, size), _magnitudes(target, size)
        convergence = (ours - theirs).norm() / theirs.norm().clamp(min=1e-3)
        spectra = spectra + convergence + (ours.clamp(min=1e-3).log() - theirs.clamp(min=1e-3).log()).abs().mean()
    return mel + spectra, {"mel_l1": mel.detach(), "stft": spectra.detach()}


def _magnitudes(waves: Tensor, size: int) -> Tensor:
    window = torch.hann_window(size, device=waves.device)
    spectrum = torch.stft(waves.flatten(0, 1), size, size // 4, window=window, return_complex=True)
    # the square root's slope is unbounded at exactly zero, where silence lies
    return (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()


@torch.no_grad()
def measure(run: Run, vocoder: nn.Module, vae: AutoencoderKLLTX2Audio | None) -> dict[str, Tensor]:
    """Mean absolute log-mel error of held-out sounds, from true mels and from mels that went through the audio VAE."""
    mel, _ = clips(run, run.size(64), run.seed + 8_000_000, held_out=True)
    frames = mel.shape[2]
    values = {"mel_l1": (log_mel(vocoder(mel))[:, :, :frames] - mel).abs().mean()}
    if vae is not None:
        values["mel_l1_vae"] = (log_mel(vocoder(through(run, vae, mel)))[:, :, :frames] - mel).abs().mean()
    return values
