"""Stage 7: a low-rank update of the transformer that needs no guidance and eight (or three) steps.

The student walks down the published list of sigmas in its own footsteps; at every stop one Euler step of it is trained
to land where the guided teacher lands with several. Refinement starts from the student's own small clips, upsampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training import latents, networks, transformer
from training.flow import Clip, Contexts, first_frame, guided, noise_like, predict
from training.graph import Replay
from training.loop import Clock, Log, Optimiser, Run, rate
from training.upsampler import load_statistics, upsample

PRODUCT = "distilled_lora.safetensors"
RANK = 16
PEAK = 1e-3
FIRST_FRAME = 0.15
BATCH = {"small": 128, "large": 48}
GENERATION = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
REFINEMENT = (0.909375, 0.725, 0.421875, 0.0)
# steps of the teacher from one sigma of the list to the next
SUBSTEPS = {1.0: 1, 0.99375: 1, 0.9875: 1, 0.98125: 1, 0.975: 2, 0.909375: 3, 0.725: 4, 0.421875: 5}


class LowRank(nn.Module):
    """A frozen linear plus B A x, which can be switched off: [.., in] -> [.., out]."""

    def __init__(self, linear: nn.Linear, rank: int = RANK):
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(
            torch.randn(rank, linear.in_features, device=linear.weight.device) * linear.in_features**-0.5
        )
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank, device=linear.weight.device))
        self.active = True

    def forward(self, x: Tensor) -> Tensor:
        made = self.linear(x)
        return made + x.to(made.dtype) @ self.down.T.to(made.dtype) @ self.up.T.to(made.dtype) if self.active else made


def attach(network: nn.Module) -> dict[str, LowRank]:
    """Put a `LowRank` in the place of every linear of the blocks; returns them by the name of the linear."""
    added = {}
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Linear) and name.startswith("transformer_blocks."):
            parent, _, leaf = name.rpartition(".")
            added[name] = LowRank(module)
            setattr(network.get_submodule(parent), leaf, added[name])
    return added


def save(layers: dict[str, LowRank], path: Path) -> None:
    """Write the update in bfloat16 with the official keys; inside blocks they are Diffusers' own names."""
    tensors = {}
    for name, layer in layers.items():
        tensors[f"diffusion_model.{name}.lora_A.weight"] = layer.down.detach().cpu().bfloat16().contiguous()
        tensors[f"diffusion_model.{name}.lora_B.weight"] = layer.up.detach().cpu().bfloat16().contiguous()
    save_file(tensors, path)


def restore(layers: dict[str, LowRank], path: Path) -> None:
    """Fill attached layers from a saved update; raises KeyError when one is missing."""
    tensors = load_file(path)
    with torch.no_grad():
        for name, layer in layers.items():
            layer.down.copy_(tensors[f"diffusion_model.{name}.lora_A.weight"])
            layer.up.copy_(tensors[f"diffusion_model.{name}.lora_B.weight"])


@dataclass(frozen=True)
class Walk:
    """A batch on its way down: the clip at the first sigma of `sigmas`, its contexts (prompt, empty), and its size."""

    clip: Clip
    contexts: tuple[Contexts, Contexts]
    sigmas: tuple[float, ...]
    size: str


@dataclass(frozen=True)
class School:
    """Everything that a lesson needs: the model with its switchable update, the clips, and the way to a large start."""

    run: Run
    model: transformer.Model
    layers: dict[str, LowRank]
    data: latents.Latents
    upsampler: nn.Module | None
    statistics: tuple[Tensor, Tensor]
    optimiser: Optimiser

    def teacher(self, size: str) -> Callable[..., Sequence[Tensor]]:
        """(video, audio, known, levels, prompt's two contexts, empty prompt's two) -> guided velocities, update off."""

        @torch.no_grad()
        def work(video: Tensor, audio: Tensor, known: Tensor, levels: Tensor, *texts: Tensor) -> tuple[Tensor, Tensor]:
            self._switch(False)
            clip, contexts = Clip(video, audio, known), ((texts[0], texts[1]), (texts[2], texts[3]))
            with self.run.autocast():
                return guided(
                    self.model.transformer, clip, levels, contexts, self.run.geometry.grid(size), self.run.scale
                )

        return work

    def student(self, size: str) -> Callable[..., Sequence[Tensor]]:
        """(video, audio, known, levels, two contexts, wished velocities) -> loss and own velocities; moves the update."""

        def work(
            video: Tensor, audio: Tensor, known: Tensor, levels: Tensor, *rest: Tensor
        ) -> tuple[Tensor, Tensor, Tensor]:
            self._switch(True)
            with self.run.autocast():
                made = predict(
                    self.model.transformer, Clip(video, audio, known), levels, (rest[0], rest[1]),
                    self.run.geometry.grid(size),
                )  # fmt: skip
            wanted = ~known[..., None]
            seen = ((made[0] - rest[2]).square() * wanted).sum() / (wanted.sum() * made[0].shape[-1])
            loss = seen + (made[1] - rest[3]).square().mean()
            self.optimiser.move(loss)
            return loss.detach(), made[0].detach(), made[1].detach()

        return work

    def _switch(self, active: bool) -> None:
        for layer in self.layers.values():
            layer.active = active


Lessons = dict[str, tuple[Callable[..., Sequence[Tensor]], Callable[..., Sequence[Tensor]]]]


def train(run: Run) -> None:
    """Train for `run.seconds` and save `distilled_lora.safetensors`."""
    torch.manual_seed(run.seed)
    torch.set_float32_matmul_precision("high")
    clock = Clock(run.seconds)
    school = open_school(run)
    log, step, lesson = Log(run, "lora"), 0, 0
    school.optimiser.at(0.0)
    lessons = {size: _captured(school, size) for size in BATCH}
    log.write(event="ready", elapsed=clock.elapsed)
    small: Walk | None = None
    while not clock.over:
        walk = _walk(school, lesson % 3, small)
        for index in range(len(walk.sigmas) - 1):
            school.optimiser.at(rate(step, clock.share, warm_up=30, hold=0.3))
            loss, walk = _lesson(lessons, walk, index)
            step += 1
            if log.due:
                log.write(step=step, share=clock.share, size=walk.size, sigma=walk.sigmas[index], loss=loss)
            if clock.over:
                break
        else:
            small = walk if walk.size == "small" else small
        lesson += 1
    save(school.layers, run.out / PRODUCT)
    log.write(event="done", step=step, lessons=lesson)


def open_school(run: Run) -> School:
    """Load the trained networks, freeze them, and attach a fresh update; a lesson goes on from the one that there is."""
    model = transformer.load(run)
    for part in transformer.PARTS:
        getattr(model, part).requires_grad_(False)
    path = run.out / "latent_upsampler.safetensors"
    upsampler = networks.load("latent_upsampler", path).to(run.device).requires_grad_(False) if path.exists() else None
    layers = attach(model.transformer)
    if run.lesson:
        restore(layers, run.out / PRODUCT)
    optimiser = Optimiser((p for layer in layers.values() for p in (layer.down, layer.up)), PEAK * run.pace, decay=0.0)
    return School(run, model, layers, latents.load(run), upsampler, load_statistics(run), optimiser)


def _captured(school: School, size: str) -> tuple[Replay, Replay]:
    """Teacher and student of one size, ready to be replayed."""
    walk = _walk(school, ("small", "large").index(size), None)
    clip, levels = walk.clip, torch.ones(len(walk.clip.video), device=school.run.device)
    given = (clip.video, clip.audio, clip.known, levels, *walk.contexts[0])
    return (
        Replay(school.teacher(size), *given, *walk.contexts[1]),
        Replay(school.student(size), *given, clip.video, clip.audio),
    )


@torch.no_grad()
def _walk(school: School, kind: int, small: Walk | None) -> Walk:
    """Start a batch: 0 small from noise, 1 large from noise, 2 large refinement of the last small batch's end."""
    run, size = school.run, "small" if kind == 0 else "large"
    count = run.size(BATCH[size])
    clip, ids = transformer.draw(run, school.data, size, count)
    clip = Clip(clip.video, clip.audio, first_frame(clip.video, run.geometry.grid(size), FIRST_FRAME))
    empty = transformer.empty(run.device).expand(count, -1)
    with run.autocast():
        contexts = (school.model.contexts(ids), school.model.contexts(empty))
    noise = noise_like(clip)
    if kind < 2:
        return Walk(clip.noised(torch.ones(count, device=run.device), *noise), contexts, GENERATION, size)
    if small is not None and school.upsampler is not None:
        with run.autocast():
            video = upsample(run, school.upsampler, school.statistics, small.clip.video[:count]).float()
        clip = Clip(video, small.clip.audio[:count], torch.zeros_like(clip.known))
        contexts = tuple(tuple(part[:count] for part in context) for context in small.contexts)
    level = torch.full((count,), REFINEMENT[0], device=run.device)
    return Walk(clip.noised(level, *noise), contexts, REFINEMENT, size)


def _lesson(lessons: Lessons, walk: Walk, index: int) -> tuple[Tensor, Walk]:
    """The student's loss at one stop, and the walk moved on by the student's own step."""
    teacher, student = lessons[walk.size]
    clip, sigma, after = walk.clip, walk.sigmas[index], walk.sigmas[index + 1]
    target = _taught(teacher, walk, sigma, after)
    wish = [(end - begin) / (after - sigma) for end, begin in ((target.video, clip.video), (target.audio, clip.audio))]
    loss, video, audio = student(clip.video, clip.audio, clip.known, _levels(clip, sigma), *walk.contexts[0], *wish)
    return loss, Walk(clip.stepped(after - sigma, video, audio), walk.contexts, walk.sigmas, walk.size)


def _taught(teacher: Callable[..., Sequence[Tensor]], walk: Walk, sigma: float, after: float) -> Clip:
    """Where the guided teacher takes the clip between two sigmas of the list."""
    steps = SUBSTEPS[sigma]
    stops = [sigma + (after - sigma) * i / steps for i in range(steps + 1)]
    clip, texts = walk.clip, (*walk.contexts[0], *walk.contexts[1])
    for level, following in zip(stops, stops[1:], strict=False):
        video, audio = teacher(clip.video, clip.audio, clip.known, _levels(clip, level), *texts)
        clip = clip.stepped(following - level, video, audio)
    return clip


def _levels(clip: Clip, sigma: float) -> Tensor:
    return torch.full((len(clip.video),), sigma, device=clip.video.device)
