"""A video from top to bottom: text, stages, picture, sound, file."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ltx2.models.fast import lossy_paths, passes
from ltx2.models.fast.lanes import lanes_of
from ltx2.pipeline.colour import yuv420
from ltx2.pipeline.condition import first_frame
from ltx2.pipeline.decode import audible, decode_audio, decode_video
from ltx2.pipeline.denoise import Scene, denoise
from ltx2.pipeline.latents import (
    audio_positions,
    start,
    tokens_from_video,
    video_from_tokens,
    video_positions,
)
from ltx2.pipeline.mux import writing
from ltx2.pipeline.sampling import Latents, Noise, normalised
from ltx2.pipeline.text import Context, embed
from ltx2.pipeline.transfer import to_host
from ltx2.pipeline.upsample import upsample
from ltx2.spec.events import Progress
from ltx2.spec.plan import Plan, Stage

if TYPE_CHECKING:
    from ltx2.models.components import Models


Retouch = Callable[[Tensor], Tensor]
"""From the next decoded frames, uint8 [f, H, W, 3] on the device, to those that are encoded."""


def unchanged(frames: Tensor) -> Tensor:
    """The Retouch that leaves frames as they are."""
    return frames


@torch.inference_mode()
def generate(
    models: Models, plan: Plan, out: Path, tiled: bool = False, retouch: Retouch = unchanged
) -> Generator[Progress, None, None]:
    """Make the Plan's video at `out`, yielding a Progress after every piece of work.

    Closing the generator cancels within one evaluation and leaves no file. `tiled` decodes the picture in pieces;
    `retouch` has the last word about every frame.
    """
    positive, negative = prompts(models, plan)
    yield Progress("text", 1, 1)
    draw = torch.Generator().manual_seed(plan.seed)
    video, audio, sound, skipped = None, None, None, 0
    for number in range(len(plan.stages)):
        if video is not None:
            video = upsample(models, video)
            yield Progress("upsample", 1, 1)
        video, audio, left_out = yield from _stage(models, plan, number, (video, audio), (positive, negative), draw)
        skipped += left_out
        if number == plan.audio_stage:
            sound = audio
    assert video is not None and sound is not None, "a plan has at least one stage, and one that gives the sound"
    # Closed here: an error keeps the frames that it went through, and a decoder among them would stay at work.
    with closing(decode_video(models, video, tiled)) as pictures:
        yield from _write(models, plan, out, (map(retouch, pictures), sound), skipped)


def prompts(models: Models, plan: Plan) -> tuple[Context, Context | None]:
    """Text tokens of the prompt, and of the negative prompt when a stage uses it."""
    guided = any(stage.video.cfg != 1 or stage.audio.cfg != 1 for stage in plan.stages)
    both = embed(models, [plan.prompt, plan.negative_prompt] if guided else [plan.prompt])
    rows = [Context(both.video[row : row + 1], both.audio[row : row + 1]) for row in range(len(both.video))]
    return rows[0], rows[1] if guided else None


def _stage(
    models: Models,
    plan: Plan,
    number: int,
    earlier: tuple[Tensor | None, Tensor | None],
    text: tuple[Context, Context | None],
    draw: torch.Generator,
) -> Generator[Progress, None, tuple[Tensor, Tensor, int]]:
    """One stage: from the upsampled video [1, C, F, H, W] and audio tokens of the stage before, or from pure noise.

    Returns the same of this stage, and how many of its steps were skipped.
    """
    stage, grid, card = plan.stages[number], plan.grid(plan.stages[number]), models.card
    given = None
    if plan.image:
        given = first_frame(models, plan.image, (stage.width, stage.height), card.image_crf)
    shapes = ((1, grid.video_tokens, card.shape.latent_channels), (1, grid.audio_tokens, card.audio_width))
    video, audio = earlier
    cleans = [
        torch.zeros(shapes[0], device=models.device, dtype=models.dtype) if video is None else tokens_from_video(video),
        torch.zeros(shapes[1], device=models.device, dtype=models.dtype) if audio is None else audio,
    ]
    draws = [_noise(shape, draw, models) for shape in shapes]
    states = (
        start(cleans[0], stage.sigmas[0], draws[0], given, plan.image_strength),
        start(cleans[1], stage.sigmas[0], draws[1]),
    )
    scene = Scene(
        video_positions(grid.video, plan.fps, models.device),
        audio_positions(grid.audio, models.device),
        *text,
        keyframes=_single_frames(grid.video_tokens, grid.rows * grid.columns, models)
        if card.version == "2.5"
        else None,
    )
    with models.use("transformer") as transformer, models.lora(stage.lora):
        run = denoise(
            passes(transformer, models.fast_passes, models.attention == "fp8"),
            stage,
            states,
            scene,
            _sampler_noise(stage, shapes, plan, models),
        )
        skipped = 0
        try:
            while True:
                done, skipped = next(run)
                yield Progress(f"stage {number + 1}", done, stage.evaluations, skipped)
        except StopIteration as finished:
            latents: Latents = finished.value
    return video_from_tokens(latents[0], grid.video), latents[1], skipped


def _noise(shape: tuple[int, ...], generator: torch.Generator, models: Models) -> Tensor:
    """Drawn on the CPU in float32, so that a seed means the same noise on every device."""
    return torch.randn(shape, generator=generator).to(models.device, models.dtype)


def _sampler_noise(stage: Stage, shapes: tuple[tuple[int, ...], ...], plan: Plan, models: Models) -> Noise:
    """Fresh noise for stochastic samplers: video first, then audio.

    res_2s draws normalised float64 noise from two generators, its midpoint's seeded 10000 above the step's.
    """
    offsets = {"step": 0, "substep": 10_000}
    generators = {kind: torch.Generator().manual_seed(plan.noise_seed + offset) for kind, offset in offsets.items()}
    double = stage.sampler == "res_2s"

    def noise(kind: str) -> Latents:
        dtype = torch.float64 if double else torch.float32
        draws = (torch.randn(shape, generator=generators[kind], dtype=dtype) for shape in shapes)
        return tuple((normalised(draw) if double else draw).to(models.device) for draw in draws)

    return noise


def _single_frames(tokens: int, first: int, models: Models) -> Tensor:
    """2.5 marks the tokens of the first latent frame, which stands for one pixel frame: [1, T, 1]."""
    marks = torch.zeros(1, tokens, 1, device=models.device)
    marks[:, :first] = 1
    return marks


def _write(
    models: Models, plan: Plan, out: Path, parts: tuple[Iterator[Tensor], Tensor], skipped: int
) -> Generator[Progress, None, None]:
    """Write chunks of frames as they come, and the sound of audio tokens, which is made beside them.

    Nothing here waits for a GPU: the encoders' threads wait for what they encode, and the GPU has all its work at once.
    """
    pictures, sound = parts
    lanes = lanes_of(models.device)
    # Before the picture: the sound needs nothing of it.
    lanes.meet(sound)
    lossy = lossy_paths(models.networks["transformer"], plan, models.fast_passes and models.attention == "fp8")
    with writing(plan, out, models.card.output_sampling_rate if plan.audio else None, skipped, lossy) as muxer:
        for planes in map(yuv420, pictures):
            first = muxer.count == 0
            muxer.frames(to_host(planes))
            if first:
                yield Progress("decode", 1, 1)
            if first and plan.audio:
                # Launched while the GPU is at those frames: its small kernels take longer to launch than to run.
                with lanes.aside():
                    muxer.sound(to_host(decode_audio(models, sound), audible))
                yield Progress("sound", 1, 1)
            if muxer.count < plan.frames:
                yield Progress("write", muxer.count, plan.frames)
        lanes.meet()
    yield Progress("write", plan.frames, plan.frames)
