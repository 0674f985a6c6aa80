"""Stage 5: text encoder, connectors and transformer learn together to denoise clips and their sound (flow matching).

Captions are dropped now and then (for classifier-free guidance), the first latent frame is given now and then (for
image conditioning), and both sizes alternate. What is saved is the moving average of the weights.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training import latents, networks, text, tokenizer
from training.flow import Clip, Contexts, first_frame, noise_like, predict
from training.graph import Replay
from training.loop import Average, Clock, Log, Optimiser, Run, rate, uncompile

PARTS = ("transformer", "connectors", "text_encoder")
BATCH = {"large": 128, "small": 320}
PEAK = 1e-3
CAPTION_DROPOUT = 0.12
AVERAGE_EVERY = 4
FIRST_FRAME = 0.25
UNIFORM = 0.25
TOP, TOP_FROM = 0.15, 0.93
SHIFT = 1.4  # of the logit-normal's mean: the sampler spends most of its steps near sigma 1
CHECK_SIGMAS = (0.99, 0.9, 0.7, 0.4, 0.1)


@dataclass(frozen=True)
class Model:
    """The three networks that turn a caption and a noisy clip into velocities."""

    transformer: nn.Module
    connectors: nn.Module
    text_encoder: nn.Module

    def contexts(self, ids: Tensor) -> Contexts:
        return text.contexts(self.text_encoder, self.connectors, ids)

    def parameters(self) -> list[nn.Parameter]:
        return [p for part in PARTS for p in getattr(self, part).parameters() if p.requires_grad]


def load(run: Run) -> Model:
    """The networks of `run.out` on its device, or fresh ones where there are none yet."""
    vocabulary = len(tokenizer.load())
    made = {}
    for name in PARTS:
        path = run.out / f"{name}.safetensors"
        network = networks.load(name, path, vocabulary) if path.exists() else networks.build(name, vocabulary)
        made[name] = network.to(run.device)
    model = Model(**made)
    if run.lesson:
        model.connectors.requires_grad_(False)
        model.text_encoder.requires_grad_(False)
    # no picture is ever shown to the text encoder
    model.text_encoder.model.vision_tower.requires_grad_(False)
    model.text_encoder.model.multi_modal_projector.requires_grad_(False)
    return model


def train(run: Run) -> None:
    """Train for `run.seconds` of `run.total` (all calls together), going on from the last call's state."""
    torch.manual_seed(run.seed)
    torch.set_float32_matmul_precision("high")
    model, data = load(run), latents.load(run)
    optimiser = Optimiser(model.parameters(), PEAK * run.pace)
    average = Average(optimiser.parameters)
    before, step, warm = _resume(run, optimiser, average)
    torch.manual_seed(run.seed + step)
    log = Log(run, "transformer")
    log.write(event="start", before=before, step=step, parameters=sum(p.numel() for p in optimiser.parameters))
    clock = Clock(run.seconds, before, max(run.total, before + run.seconds))
    _compile(run, model, data, log)
    optimiser.at(0.0)
    steps = {size: _step(run, model, data, optimiser, size) for size in BATCH}
    log.write(event="ready", elapsed=clock.elapsed)
    saved = clock.elapsed
    while not clock.over:
        size = "small" if step % 5 in (1, 3) else "large"
        optimiser.at(rate(warm, clock.share, warm_up=300))
        seen, heard = steps[size]()
        step, warm = step + 1, warm + 1
        if step % AVERAGE_EVERY == 0:
            average.update(AVERAGE_EVERY)
        if log.due:
            log.write(step=step, share=clock.share, size=size, video=seen, audio=heard)
        if clock.elapsed - saved > 100:
            saved = clock.elapsed
            _save(run, model, optimiser, average, {"elapsed": clock.elapsed, "step": step})
    _save(run, model, optimiser, average, {"elapsed": clock.elapsed, "step": step})
    average.swap()
    log.write(event="done", step=step, elapsed=clock.elapsed, **_check(run, model))


def _step(run: Run, model: Model, data: latents.Latents, optimiser: Optimiser, size: str) -> Replay:
    """A whole step of one size (draw, forward, backward, move) that returns the losses of video and audio."""

    def work() -> tuple[Tensor, Tensor]:
        loss, parts = _loss(run, model, data, size)
        optimiser.move(loss)
        return parts["video"], parts["audio"]

    return Replay(work)


def _loss(run: Run, model: Model, data: latents.Latents, size: str) -> tuple[Tensor, dict[str, Tensor]]:
    clip, ids = draw(run, data, size, run.size(BATCH[size]))
    sigma = sample_sigmas(len(ids), run.device)
    video, audio = noise_like(clip)
    with run.autocast():
        made = predict(
            model.transformer, clip.noised(sigma, video, audio), sigma, model.contexts(ids), run.geometry.grid(size)
        )
    wanted = ~clip.known[..., None]
    errors = (made[0] - (video - clip.video)).square() * wanted
    seen = errors.sum() / (wanted.sum() * errors.shape[-1])
    heard = (made[1] - (audio - clip.audio)).square().mean()
    return seen + heard, {"video": seen.detach(), "audio": heard.detach()}


def draw(run: Run, data: latents.Latents, size: str, count: int) -> tuple[Clip, Tensor]:
    """A random batch of clean clips in float32 and the token ids of one of their captions, some of them emptied."""
    rows = torch.randint(len(data.audio), (count,), device=run.device)
    ids = data.ids[rows, torch.randint(latents.CAPTIONS, (count,), device=run.device)]
    dropped = torch.rand(count, 1, device=run.device) < CAPTION_DROPOUT
    ids = torch.where(dropped, empty(run.device).to(ids.dtype), ids)
    video = getattr(data, size)[rows].float()
    return Clip(video, data.audio[rows].float(), first_frame(video, run.geometry.grid(size), FIRST_FRAME)), ids


def empty(device: torch.device) -> Tensor:
    """Token ids [WINDOW] of the empty caption: padding and the one token that begins every text."""
    ids = torch.zeros(text.WINDOW, dtype=torch.int16, device=device)
    ids[-1:] = 2
    return ids


def sample_sigmas(count: int, device: torch.device) -> Tensor:
    """Noise levels [count]: a logit-normal shifted towards 1, mixed with uniform laws over all levels and over the top.

    Five of the eight distilled steps, and every first step, lie between 0.97 and 1, where a logit-normal seldom goes.
    """
    normal = torch.sigmoid(torch.randn(count, device=device) * 1.2 + SHIFT)
    flat = torch.rand(count, device=device)
    law = torch.rand(count, device=device)
    mixed = torch.where(law < UNIFORM, flat, normal)
    return torch.where(law > 1 - TOP, TOP_FROM + (1 - TOP_FROM) * flat, mixed).clamp(1e-3, 1.0)


def _compile(run: Run, model: Model, data: latents.Latents, log: Log) -> None:
    """Compile the blocks in place and run one step of both sizes; go on eagerly, and say so, when that fails."""
    if run.smoke:
        return
    blocks = model.transformer.transformer_blocks
    try:
        # the blocks hand on float32, so the first one must get it too: otherwise every size is compiled twice
        for entrance in (model.transformer.proj_in, model.transformer.audio_proj_in):
            entrance.register_forward_hook(lambda _module, _inputs, output: output.float())
        for block in blocks:
            block.compile(dynamic=False)
        for size in BATCH:
            _loss(run, model, data, size)[0].backward()
        log.write(event="compiled")
    except Exception as error:
        uncompile(blocks)
        log.write(event="COMPILE FAILED, training goes on eagerly", error=f"{type(error).__name__}: {error}"[:500])
    for parameter in model.parameters():
        parameter.grad = None


def _resume(run: Run, optimiser: Optimiser, average: Average) -> tuple[float, int, int]:
    """Seconds and steps so far, and the step that the warm-up counts from (0 with a fresh optimiser)."""
    progress = run.out / "transformer.json"
    if not progress.exists():
        return 0.0, 0, 0
    values = json.loads(progress.read_text())
    state = run.local / "transformer.pt"
    if not state.exists():
        return values["elapsed"], values["step"], 0
    kept = torch.load(state, map_location=run.device)
    optimiser.adam.load_state_dict(kept["adam"])
    with torch.no_grad():
        for parameter, live, shadow, mean in zip(
            optimiser.parameters, kept["live"], average.shadow, kept["average"], strict=True
        ):
            parameter.copy_(live)
            shadow.copy_(mean)
    average.steps = kept["step"]
    return kept["elapsed"], kept["step"], kept["step"]


def _save(run: Run, model: Model, optimiser: Optimiser, average: Average, progress: dict[str, float]) -> None:
    state = {"adam": optimiser.adam.state_dict(), "live": optimiser.parameters, "average": average.shadow, **progress}
    part = run.local / "transformer.part"
    torch.save(state, part)
    part.replace(run.local / "transformer.pt")
    average.swap()
    for name in PARTS:
        networks.save(getattr(model, name), run.out / f"{name}.safetensors")
    average.swap()
    (run.out / "transformer.json").write_text(json.dumps(progress))


@torch.no_grad()
def _check(run: Run, model: Model) -> dict[str, float]:
    """Velocity errors on held-out clips of the large size at fixed noise levels, with the weights that are loaded."""
    uncompile(model.transformer.transformer_blocks)
    data = latents.load(run, held_out=True)
    known = torch.zeros(data.large.shape[:2], dtype=torch.bool, device=run.device)
    clip = Clip(data.large.float(), data.audio.float(), known)
    values = {}
    for level in CHECK_SIGMAS:
        sigma = torch.full((len(clip.video),), level, device=run.device)
        video, audio = noise_like(clip)
        with run.autocast():
            contexts = model.contexts(data.ids[:, 0])
            made = predict(
                model.transformer, clip.noised(sigma, video, audio), sigma, contexts, run.geometry.grid("large")
            )
        values[f"video_{level}"] = (made[0] - (video - clip.video)).square().mean().item()
        values[f"audio_{level}"] = (made[1] - (audio - clip.audio)).square().mean().item()
    if not all(map(math.isfinite, values.values())):
        raise ValueError(f"the velocities are not finite: {values}")
    return values
