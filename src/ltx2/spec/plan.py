"""What will be done: every size, sigma and scale final, the seed drawn. `resolve` is the only place with defaults."""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from typing import Any

from ltx2.spec import geometry
from ltx2.spec.card import Card
from ltx2.spec.errors import RefusedRequest
from ltx2.spec.lossy import NO_EXTRAS, Extras, check_offered, extras
from ltx2.spec.presets import OFF, Preset, Scales, StageRecipe, preset
from ltx2.spec.request import Request
from ltx2.spec.schedule import shifted_sigmas

MAX_PROMPT_CHARACTERS = 10_000
DEFAULT_PRESET = {"tiny": "distilled-two-stage"}


@dataclass(frozen=True)
class Guidance:
    """Guidance of one modality in one stage; see `Scales`. `stg_blocks` are the perturbed transformer blocks."""

    cfg: float
    stg: float
    modality: float
    rescale: float
    stg_blocks: tuple[int, ...]

    @property
    def passes(self) -> int:
        """Transformer passes a step: the conditional one and each active kind of guidance."""
        return 1 + (self.cfg != 1) + (self.stg != 0) + (self.modality != 1)


UNGUIDED = Guidance(OFF.cfg, OFF.stg, OFF.modality, OFF.rescale, ())


@dataclass(frozen=True)
class Stage:
    """One denoising stage of a Plan. `sigmas` end in 0; a stage after the first starts from the upsampled latent.

    `extras` say what of it is left out.
    """

    width: int
    height: int
    sigmas: tuple[float, ...]
    sampler: str
    video: Guidance
    audio: Guidance
    lora: float
    extras: Extras = NO_EXTRAS

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def unguided(self) -> Stage:
        """The stage as it is where guidance does not run."""
        return replace(self, video=UNGUIDED, audio=UNGUIDED)

    @property
    def passes_per_step(self) -> int:
        """Transformer passes a guided evaluation: a pass serves both modalities."""
        kinds = [(g.cfg != 1, g.stg != 0, g.modality != 1) for g in (self.video, self.audio)]
        return 1 + sum(any(pair) for pair in zip(*kinds, strict=True))

    @property
    def evaluations(self) -> int:
        """Calls of the denoiser: one a step, two for res_2s (with one more for its last interval to zero)."""
        return 2 * self.steps + 1 if self.sampler == "res_2s" else self.steps

    def step_of(self, evaluation: int) -> int:
        """The step that an evaluation, counted from 0, belongs to."""
        return min(evaluation // 2, self.steps - 1) if self.sampler == "res_2s" else evaluation

    @property
    def guided_evaluations(self) -> int:
        """Evaluations in which guidance runs."""
        return sum(self.extras.guides(self.step_of(number), self.steps) for number in range(self.evaluations))

    @property
    def passes(self) -> int:
        """Transformer passes of the stage, at most: step caching leaves some out."""
        guided = self.guided_evaluations
        return guided * self.passes_per_step + self.evaluations - guided


@dataclass(frozen=True)
class Plan:
    """Everything that decides a video. It is stored in the file's metadata; the same Plan makes the same video."""

    model: str
    version: str
    preset: str
    prompt: str
    negative_prompt: str
    seed: int
    noise_seed: int
    width: int
    height: int
    frames: int
    fps: Fraction
    stages: tuple[Stage, ...]
    audio_stage: int
    audio: bool
    schedule: str
    image: str
    image_strength: float
    loras: tuple[tuple[str, float], ...]

    @property
    def megapixel_frames(self) -> float:
        """Millions of pixels of all frames: what is counted, priced and limited."""
        return self.width * self.height * self.frames / 1e6

    @property
    def seconds(self) -> float:
        return float(self.frames / self.fps)

    def grid(self, stage: Stage) -> geometry.Grid:
        """Latent grid of a stage."""
        return geometry.grid(stage.width, stage.height, self.frames, self.fps)

    @property
    def evaluations(self) -> int:
        """Transformer passes of the whole plan, at most: step caching leaves some out."""
        return sum(stage.passes for stage in self.stages)

    @property
    def skips(self) -> bool:
        """Whether steps may be left out, so that counts are upper bounds."""
        return any(stage.extras.cache for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form; `from_dict` reads it back."""
        return asdict(self) | {"fps": str(self.fps)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Plan:
        """Rebuild a Plan from `as_dict`. Raises RefusedRequest on anything that is not one."""
        try:
            values: dict[str, Any] = {field.name: data[field.name] for field in fields(cls)}
            values["fps"] = Fraction(values["fps"])
            values["stages"] = tuple(_stage_from(stage) for stage in values["stages"])
            values["loras"] = tuple((str(path), float(strength)) for path, strength in values["loras"])
            return cls(**values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RefusedRequest(f"from: the metadata holds no plan of this version ({error})", knob="from") from None


def _stage_from(data: dict[str, Any]) -> Stage:
    values: dict[str, Any] = dict(data)
    for side in ("video", "audio"):
        guidance: dict[str, Any] = dict(data[side])
        guidance["stg_blocks"] = tuple(guidance["stg_blocks"])
        values[side] = Guidance(**guidance)
    values["sigmas"] = tuple(data["sigmas"])
    # Plans of the first versions have no extras.
    left_out = data.get("extras", asdict(NO_EXTRAS))
    begin, end = left_out["guided"]
    values["extras"] = Extras((float(begin), float(end)), float(left_out["cache"]))
    return Stage(**values)


def default_preset(card: Card) -> str:
    """The preset of a request that names none."""
    if card.preset is not None:
        return card.preset
    if card.family in DEFAULT_PRESET:
        return DEFAULT_PRESET[card.family]
    if card.kind == "distilled":
        return "distilled-two-stage" if card.upsampler else "distilled"
    return "dev"


def resolve(request: Request, card: Card) -> Plan:
    """Turn a Request into a Plan for a checkpoint.

    Raises RefusedRequest, naming the knob and the nearest value that works.
    """
    name = request.preset or default_preset(card)
    recipe = preset(card.family, name)
    _check_suits(name, recipe, card)
    _check_text(request)
    width, height = _size(request, recipe, card)
    fps = _fps(request, recipe)
    frames = _frames(request, recipe, fps, card)
    _check_steps(request, name, recipe)
    check_offered(request, name, recipe.guided)
    seed = random.SystemRandom().randrange(2**31) if request.seed is None else request.seed
    stages = tuple(_stage(request, recipe, row, card, (width, height, frames, fps)) for row in recipe.stages)
    return Plan(
        model=card.name,
        version=card.version,
        preset=name,
        prompt=request.prompt.strip(),
        negative_prompt=recipe.negative_prompt if request.negative_prompt is None else request.negative_prompt.strip(),
        seed=seed,
        noise_seed=seed + 10_000 if recipe.noise_seed is None else recipe.noise_seed,
        width=width,
        height=height,
        frames=frames,
        fps=fps,
        stages=stages,
        audio_stage=recipe.audio_stage,
        audio=request.audio,
        schedule=request.schedule or "official",
        image=request.image or "",
        image_strength=request.image_strength,
        loras=tuple((lora.path, lora.strength) for lora in request.loras),
    )


def _check_suits(name: str, recipe: Preset, card: Card) -> None:
    if recipe.guided and card.kind == "distilled":
        raise RefusedRequest(
            f"preset: {name!r} guides, but {card.name} is a distilled checkpoint",
            knob="preset", hint="use distilled or distilled-two-stage",
        )  # fmt: skip
    if card.kind == "dev" and recipe.needs_lora and not card.distilled_lora:
        raise RefusedRequest(
            f"preset: {name!r} needs the distilled LoRA, which did not come with {card.name}",
            knob="preset", hint="name it with --distilled-lora, or use dev or classic",
        )  # fmt: skip
    if recipe.two_stage and not card.upsampler:
        raise RefusedRequest(
            f"preset: {name!r} needs the x2 latent upsampler, which did not come with {card.name}",
            knob="preset", hint="name it with --upsampler, or use " + ("distilled" if card.kind == "distilled" else "dev"),
        )  # fmt: skip


def _check_text(request: Request) -> None:
    if not request.prompt.strip():
        raise RefusedRequest("prompt: it is empty", knob="prompt", hint="say what the video should show and sound like")
    for knob, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt or "")):
        if len(text) > MAX_PROMPT_CHARACTERS:
            raise RefusedRequest(
                f"{knob}: {len(text)} characters are too many", knob=knob, hint=f"at most {MAX_PROMPT_CHARACTERS}"
            )


def _size(request: Request, recipe: Preset, card: Card) -> tuple[int, int]:
    step = geometry.SPATIAL * (2 if recipe.two_stage else 1)
    size = (request.width or recipe.width, request.height or recipe.height)
    for knob, value, asked in zip(("width", "height"), size, (request.width, request.height), strict=True):
        if asked == 0 or value < step or value % step or value > card.max_side:
            works = min(
                geometry.nearest_multiple(max(value, 0) if asked != 0 else 0, step), card.max_side // step * step
            )
            raise RefusedRequest(
                f"{knob}: {asked if asked is not None else value} is not a multiple of {step} from {step} to {card.max_side}",
                knob=knob, hint=f"{works} works",
            )  # fmt: skip
    return size


def _fps(request: Request, recipe: Preset) -> Fraction:
    fps = Fraction(recipe.fps) if request.fps is None else request.fps
    if not 1 <= fps <= 120:
        raise RefusedRequest(f"fps: {fps} is out of range", knob="fps", hint="1 to 120; the models know 24 to 60 best")
    return fps


def _frames(request: Request, recipe: Preset, fps: Fraction, card: Card) -> int:
    if request.frames is not None and request.seconds is not None:
        raise RefusedRequest("frames: give either frames or seconds, not both", knob="frames")
    longest = (math.floor(card.max_seconds * fps) - 1) // geometry.TEMPORAL * geometry.TEMPORAL + 1
    if request.seconds is not None:
        knob, frames = "seconds", geometry.frames_for(request.seconds, fps)
    else:
        knob, frames = "frames", request.frames if request.frames is not None else recipe.frames
    if knob == "frames" and (frames < 1 or (frames - 1) % geometry.TEMPORAL):
        nearest = min(geometry.nearest_frames(frames), longest)
        raise RefusedRequest(f"frames: {frames} is not of the form 8k+1", knob="frames", hint=f"{nearest} works")
    if frames > longest:
        works = f"{longest} frames" if knob == "frames" else f"{card.max_seconds:g} seconds"
        raise RefusedRequest(f"{knob}: the clip is longer than the model knows", knob=knob, hint=f"{works} works")
    return frames


def _check_steps(request: Request, name: str, recipe: Preset) -> None:
    if request.steps is not None and not recipe.guided:
        raise RefusedRequest(
            f"steps: {name!r} has fixed sigmas",
            knob="steps",
            hint="leave steps out, or use classic, dev, two-stage or hq",
        )
    if request.schedule is not None and not recipe.guided:
        raise RefusedRequest(f"schedule: {name!r} has fixed sigmas", knob="schedule", hint="leave schedule out")


def _stage(
    request: Request, recipe: Preset, row: StageRecipe, card: Card, clip: tuple[int, int, int, Fraction]
) -> Stage:
    width, height = round(clip[0] * row.scale), round(clip[1] * row.scale)
    if row.sigmas is None:
        tokens = geometry.grid(width, height, clip[2], clip[3]).video_tokens
        counted = row.tokens_shift or request.schedule == "diffusers"
        steps = request.steps or recipe.steps or 1
        sigmas = shifted_sigmas(steps, tokens) if counted else shifted_sigmas(steps)
    else:
        sigmas = row.sigmas
    # Only guided stages and the first one take the caller's sampler: refinement has its own list and stepper.
    sampler = request.sampler if request.sampler and row is recipe.stages[0] else row.sampler
    lora = row.lora if card.kind == "dev" else 0.0
    if request.lora_strength is not None and lora > 0:
        lora = request.lora_strength
    video, audio = (
        _guidance(request, row, side, card, name) for side, name in ((row.video, "video"), (row.audio, "audio"))
    )
    left_out = NO_EXTRAS
    if row.sigmas is None:
        left_out = extras(request, sampler, len(sigmas) - 1, (video.passes, audio.passes))
    return Stage(width, height, sigmas, sampler, video, audio, lora, left_out)


def _guidance(request: Request, row: StageRecipe, scales: Scales, card: Card, side: str) -> Guidance:
    if row.sigmas is not None:
        return UNGUIDED
    asked = {knob: getattr(request, f"{side}_{knob}") for knob in ("cfg", "stg", "modality", "rescale")}
    chosen = {knob: getattr(scales, knob) if value is None else value for knob, value in asked.items()}
    blocks = (card.stg_blocks if request.stg_blocks is None else request.stg_blocks) if chosen["stg"] else ()
    if chosen["stg"] and not blocks:
        raise RefusedRequest(
            "stg_blocks: STG needs at least one block", knob="stg_blocks", hint=f"{card.stg_blocks[0]} works"
        )
    if any(block >= card.shape.layers for block in blocks):
        raise RefusedRequest(f"stg_blocks: the transformer has blocks 0 to {card.shape.layers - 1}", knob="stg_blocks")
    return Guidance(**chosen, stg_blocks=tuple(blocks))
