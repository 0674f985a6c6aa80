"""Stage 1: the video VAE learns to put clips through 32 channels at 1/32 of the size and 1/8 of the frames.

Images come before clips (1, 9, 25, 49 frames), half of which have a motion that stays blurred longest; both sizes take
turns. The posterior's mode plus a little noise is decoded instead of a sample: its variance starts at one and would
drown the signal.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKLLTX2Video
from torch import Tensor
from torch.nn.functional import max_pool3d

from training import networks
from training.loop import FPS, Clock, Log, Optimiser, Run, rate, uncompile
from training.world import HARD, Scene, render, sample_scenes

NOISE = 0.05
# share of the time until which a row holds, frames, clips per batch at the large size (four times as many at the small)
CURRICULUM = ((0.06, 1, 160), (0.25, 9, 40), (0.85, 25, 16), (1.01, 49, 8))
CLIPS_FROM = 0.25
SMALL_EVERY = 3
PEAK, PEAK_AGAIN = 1e-3, 6e-4
NEAR = 9  # pixels around the shape where its outline is, and what is left behind it in a blurred clip


class Lesson(NamedTuple):
    """What a batch is cut from."""

    size: str
    frames: int
    clips: int


def train(run: Run) -> None:
    """Train for `run.seconds`, measure PSNR and latent statistics, save `vae.safetensors`."""
    torch.manual_seed(run.seed)
    torch.backends.cudnn.benchmark = True
    vae, goes_on = networks.start("vae", run.out / "vae.safetensors")
    vae.to(run.device)
    log, optimiser = Log(run, "video_vae"), Optimiser(vae.parameters(), PEAK_AGAIN if goes_on else PEAK)
    before = psnr(run, vae) if goes_on else {}
    log.write(goes_on=goes_on, parameters=sum(p.numel() for p in vae.parameters()), **before)
    clock, step = Clock(run.seconds), 0
    _compile(run, vae, log)
    while not clock.over:
        # a VAE that has learnt images already begins with clips
        share = max(clock.share, CLIPS_FROM) if goes_on else clock.share
        loss, parts = _loss(run, vae, batch(run, step, lesson(run, step, share)))
        optimiser.step(loss, rate(step, clock.share, hold=0.5))
        if log.due:
            log.write(step=step, share=clock.share, **parts)
        step += 1
    uncompile((vae.encoder, vae.decoder))
    vae.eval()
    measure_latents(run, vae)
    log.write(step=step, event="done", elapsed=clock.elapsed, **psnr(run, vae))
    networks.save(vae, run.out / "vae.safetensors")


def lesson(run: Run, step: int, share: float) -> Lesson:
    """The lesson of a step at a share of the time."""
    _, frames, clips = next(row for row in CURRICULUM if share < row[0])
    small = step % SMALL_EVERY == SMALL_EVERY - 1
    return Lesson(
        "small" if small else "large", min(frames, run.geometry.frames), run.size(clips * (4 if small else 1))
    )


def batch(run: Run, step: int, drawn: Lesson) -> tuple[Tensor, Tensor]:
    """A fresh batch: video [N, 3, F, H, W] and its mask, cut out of whole clips at a random moment.

    Of clips, half are of the hard motions; a single picture shows no motion.
    """
    moments = min(8, drawn.clips) if drawn.frames == 1 else 1
    scenes = draw_scenes(drawn.clips // moments, run.seed + 1_000_000 + step, hard=drawn.frames > 1)
    parts = render(scenes, run.geometry.frames, *getattr(run.geometry, drawn.size), FPS, run.device)
    if drawn.frames == 1:
        chosen = torch.randperm(run.geometry.frames)[:moments].tolist()
        video, mask = (part[:, :, chosen].transpose(1, 2).flatten(0, 1).unsqueeze(2) for part in parts)
    else:
        start = int(torch.randint(run.geometry.frames - drawn.frames + 1, ()))
        video, mask = (part[:, :, start : start + drawn.frames] for part in parts)
    return video.contiguous(), mask


def draw_scenes(count: int, seed: int, hard: bool) -> list[Scene]:
    """Training scenes, the first half of them with a hard motion if `hard`."""
    if not hard:
        return sample_scenes(count, seed)
    pool = sample_scenes(4 * count, seed)
    chosen = [scene for scene in pool if scene.motion in HARD][: count // 2]
    return chosen + pool[: count - len(chosen)]


def _loss(run: Run, vae: AutoencoderKLLTX2Video, clips: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    video, mask = clips
    with run.autocast(), _as_compiled(run, video):
        latent = vae.encode(video).latent_dist.mode()
        decoded = vae.decode(latent + NOISE * torch.randn_like(latent), return_dict=False)[0].float()
    difference = decoded - video
    near = max_pool3d(mask, (1, NEAR, NEAR), stride=1, padding=(0, NEAR // 2, NEAR // 2))
    error = (difference.square() * (1 + 4 * near)).mean()
    spread = latent.float().square().mean()
    loss = error + 0.1 * (difference.abs() * (1 + 4 * near)).mean() + 1e-4 * spread
    return loss, {"loss": loss.detach(), "mse": difference.detach().square().mean(), "z2": spread.detach()}


def _compile(run: Run, vae: AutoencoderKLLTX2Video, log: Log) -> None:
    """Compile both halves in place for the lesson that takes longest; go on eagerly, and say so, when that fails."""
    if run.device.type == "cpu":
        return
    halves = (vae.encoder, vae.decoder)
    try:
        for half in halves:
            half.compile(dynamic=False)
        _loss(run, vae, batch(run, 0, lesson(run, 0, CLIPS_FROM)))[0].backward()
        log.write(event="compiled")
    except Exception as error:
        uncompile(halves)
        log.write(event="COMPILE FAILED, training goes on eagerly", error=f"{type(error).__name__}: {error}"[:500])
    vae.zero_grad(set_to_none=True)


def _as_compiled(run: Run, video: Tensor) -> AbstractContextManager[Any]:
    """Other shapes than the compiled one run eagerly: compiling each would take longer than it saves."""
    compiled = lesson(run, 0, CLIPS_FROM)
    same = (len(video), *video.shape[2:]) == (compiled.clips, compiled.frames, *run.geometry.large)
    return nullcontext() if same else torch.compiler.set_stance("force_eager")


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
