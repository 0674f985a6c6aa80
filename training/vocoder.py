"""Stage 3: the vocoder learns to turn log-mels of the toy sounds into waveforms.

A steady tone has a constant mel, and a convolution over a constant mel can only give a waveform that repeats with every
frame: 100 times a second. So the vocoder is taught to sound each pitch class at one multiple of 100 Hz, with the phase
tied to the frames; the waveform is then a function of the mel and can be learnt directly. (With spectral losses alone, on
tones of any pitch, it gave the right harmonics of 100 Hz at a fifth of the loudness.)
Where the audio VAE is there already, half of each batch is mels that went through it, as in generation.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from diffusers import AutoencoderKLLTX2Audio
from torch import Tensor, nn

from training import networks
from training.loop import Clock, Log, Optimiser, Run, rate
from training.mel import HOP, log_mel
from training.world import sample_scenes, sound

RESOLUTIONS = (256, 512, 1024)
SIDE_WEIGHT = 1.0
SOUNDED = {"low": 200.0, "middle": 700.0, "high": 1800.0, "none": 0.0}  # Hz, multiples of the frame rate
BATCH = 48
CROP, MARGIN = 48, 6  # mel frames of an excerpt, and how many at its cut ends have too few neighbours to count
SPECTRAL_WEIGHT = 0.005  # the logarithms of quiet bins would drown the waveform in the clipped gradient


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
        mel, waves, counted = excerpts(run, vae, run.seed + 7_000_000 + step)
        made, waves = vocoder(mel)[..., counted], waves[..., counted]
        loss, parts = spectral_loss(made, waves)
        difference = waveform_loss(made, waves)
        optimiser.step(difference + SPECTRAL_WEIGHT * loss, rate(step, clock.share))
        if log.due:
            log.write(step=step, share=clock.share, wave_l1=difference.detach(), **parts)
        step += 1
    log.write(step=step, event="done", **measure(run, vocoder.eval(), vae))
    networks.save(vocoder, run.out / "vocoder.safetensors")


def clips(run: Run, count: int, seed: int, held_out: bool = False) -> tuple[Tensor, Tensor]:
    """Whole toy sounds: log-mels [N, 2, T, bins], and what the vocoder should make of them, waveforms [N, 2, 160 T]."""
    frames, scenes = run.geometry.mel_frames, sample_scenes(count, seed, held_out)
    seconds, device = run.geometry.seconds, run.device
    sounded = [replace(scene, hertz=SOUNDED[scene.pitch], phase=0.0) for scene in scenes]
    waves = sound(sounded, seconds, networks.MEL_RATE, device)[..., : frames * HOP]
    waves = torch.nn.functional.pad(waves, (0, frames * HOP - waves.shape[-1]))
    return log_mel(sound(scenes, seconds, networks.MEL_RATE, device))[:, :, :frames], waves


def excerpts(run: Run, vae: AutoencoderKLLTX2Audio | None, seed: int) -> tuple[Tensor, Tensor, slice]:
    """Log-mels and waveforms of a training batch, cut at one random place, and the samples of the cut that count."""
    mel, waves = clips(run, run.size(BATCH), seed)
    if vae is not None:
        mel = torch.cat([mel[::2], through(run, vae, mel[1::2])])
        waves = torch.cat([waves[::2], waves[1::2]])
    frames, length = mel.shape[2], min(CROP, mel.shape[2])
    # the true beginning and end of a clip come up often, since every clip has them
    start = min(max(int(torch.randint(-MARGIN, frames - length + 1 + MARGIN, ())), 0), frames - length)
    end = start + length
    counted = slice(MARGIN * HOP if start else 0, (length - MARGIN if end < frames else length) * HOP)
    return mel[:, :, start:end], waves[..., start * HOP : end * HOP], counted


@torch.no_grad()
def through(run: Run, vae: AutoencoderKLLTX2Audio, mel: Tensor) -> Tensor:
    """Log-mels as the audio VAE gives them back, latents slightly noisy as generated ones are."""
    with run.autocast():
        latent = vae.encode(mel).latent_dist.mode()
        return vae.decode(latent + 0.05 * torch.randn_like(latent), return_dict=False)[0].float()


def waveform_loss(made: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of waveforms [N, 2, S], and of their sides (left minus right).

    Without the second term the vocoder first learns a loud middle and takes long to hear the side of a sound.
    """
    sides = [wave[:, 0] - wave[:, 1] for wave in (made, target)]
    return (made - target).abs().mean() + SIDE_WEIGHT * (sides[0] - sides[1]).abs().mean()


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
    """Mean absolute error of held-out waveforms, from true mels and from mels that went through the audio VAE."""
    mel, waves = clips(run, run.size(64), run.seed + 8_000_000, held_out=True)
    values = {"wave_l1": (vocoder(mel) - waves).abs().mean()}
    if vae is not None:
        values["wave_l1_vae"] = (vocoder(through(run, vae, mel)) - waves).abs().mean()
    return values
