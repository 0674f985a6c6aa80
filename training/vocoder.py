"""Stage 3: the vocoder learns to turn log-mels of the toy sounds into waveforms.

A steady tone has a constant mel, and a convolution over a constant mel can only give a waveform that repeats with every
frame: 100 times a second. So the vocoder is taught to sound each pitch class at one multiple of 100 Hz, with the phase
tied to the frames; the waveform is then a function of the mel and can be learnt directly. (With spectral losses alone, on
tones of any pitch, it gave the right harmonics of 100 Hz at a fifth of the loudness.)

One ear is taught, at half the width, and the result laid out twice: left and right then differ as their mels do. A vocoder
that saw both ears at once gave both the same level, for the side of a sound is a small part of its waveform's error.
Where the audio VAE is there already, half of each batch is mels that went through it, as in generation.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from diffusers import AutoencoderKLLTX2Audio
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from torch import Tensor, nn
from torch.nn import functional

from training import networks
from training.loop import Clock, Log, Optimiser, Run, rate
from training.mel import HOP, log_mel
from training.world import sample_scenes, sound

SOUNDED = {"low": 200.0, "middle": 700.0, "high": 1800.0, "none": 0.0}  # Hz, multiples of the frame rate
BATCH = 48
CROP, MARGIN = 48, 6  # mel frames of an excerpt, and how many at its cut ends have too few neighbours to count
MEAN, SPREAD = -6.0, 3.0  # of the log-mels, roughly


def train(run: Run) -> None:
    """Train for `run.seconds`, measure the error of held-out waveforms, save `vocoder.safetensors`."""
    torch.manual_seed(run.seed)
    torch.backends.cudnn.benchmark = True
    path = run.out / "vocoder.safetensors"
    ear = one_ear(networks.load("vocoder", path) if path.exists() else None).to(run.device)
    vae_path = run.out / "audio_vae.safetensors"
    vae = networks.load("audio_vae", vae_path).to(run.device).eval() if vae_path.exists() else None
    log, optimiser = Log(run, "vocoder"), Optimiser(ear.parameters(), 1.5e-3)
    clock, step = Clock(run.seconds), 0
    while not clock.over:
        mel, waves, counted = excerpts(run, vae, run.seed + 7_000_000 + step)
        made = ear(mel.flatten(0, 1)[:, None])[:, 0, counted]
        loss = (made - waves.flatten(0, 1)[:, counted]).abs().mean()
        optimiser.step(loss, rate(step, clock.share))
        if log.due:
            log.write(step=step, share=clock.share, wave_l1=loss.detach())
        step += 1
    vocoder = both_ears(ear.eval()).to(run.device).eval()
    log.write(step=step, event="done", **measure(run, vocoder, vae))
    networks.save(vocoder, path)


class Levelled(nn.Conv1d):
    """A convolution over log-mels brought to mean 0 and spread 1; beyond the ends it sees what mels of 0 become."""

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mels [N, C, T] -> [N, D, T]."""
        levelled = functional.pad((mel - MEAN) / SPREAD, (self.padding[0],) * 2, value=-MEAN / SPREAD)
        return functional.conv1d(levelled, self.weight, self.bias)


def one_ear(vocoder: nn.Module | None) -> LTX2Vocoder:
    """A vocoder of one channel and half the width, fresh or the left half of `vocoder`, its first layer `Levelled`."""
    half = {
        "in_channels": networks.MEL_BINS,
        "out_channels": 1,
        "hidden_channels": networks.VOCODER["hidden_channels"] // 2,
    }
    ear = LTX2Vocoder(**networks.VOCODER | half)
    if vocoder is not None:
        whole = vocoder.state_dict()
        ear.load_state_dict({name: whole[name][_left(part)] for name, part in ear.state_dict().items()})
    first = ear.conv_in
    ear.conv_in = Levelled(first.in_channels, first.out_channels, first.kernel_size, padding=first.padding)
    with torch.no_grad():
        ear.conv_in.weight.copy_(first.weight if vocoder is None else first.weight * SPREAD)
        ear.conv_in.bias.copy_(first.bias if vocoder is None else first.bias + MEAN * first.weight.sum((1, 2)))
    return ear


@torch.no_grad()
def both_ears(ear: LTX2Vocoder) -> LTX2Vocoder:
    """The stereo vocoder whose left half turns the left mel into the left waveform as `ear` does, and the right likewise."""
    narrow = ear.state_dict()
    narrow["conv_in.bias"] = narrow["conv_in.bias"] - narrow["conv_in.weight"].sum((1, 2)) * MEAN / SPREAD
    narrow["conv_in.weight"] = narrow["conv_in.weight"] / SPREAD
    vocoder = LTX2Vocoder(**networks.VOCODER)
    wide = {name: torch.zeros_like(whole) for name, whole in vocoder.state_dict().items()}
    for name, part in narrow.items():
        wide[name][_left(part)] = part.to(wide[name])
        wide[name][tuple(slice(size, None) for size in part.shape[:2])] = part.to(wide[name])
    vocoder.load_state_dict(wide)
    return vocoder


def _left(part: Tensor) -> tuple[slice, ...]:
    # weights have both channel dimensions first, biases one
    return tuple(slice(size) for size in part.shape[:2])


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


@torch.no_grad()
def measure(run: Run, vocoder: nn.Module, vae: AutoencoderKLLTX2Audio | None) -> dict[str, Tensor]:
    """Mean absolute error of held-out waveforms, from true mels and from mels that went through the audio VAE."""
    mel, waves = clips(run, run.size(64), run.seed + 8_000_000, held_out=True)
    values = {"wave_l1": (vocoder(mel) - waves).abs().mean()}
    if vae is not None:
        values["wave_l1_vae"] = (vocoder(through(run, vae, mel)) - waves).abs().mean()
    return values
