"""Recipes as data: for every model family, a table from preset name to sizes, sigmas, guidance and stages.

Sources: the parameter tables of the official pipelines (2.0, 2.3, 2.5), and for `classic` the deployment that this
project descends from (768x512, 97 frames at 24 fps, 10 steps, guidance 4.0).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ltx2.spec.errors import RefusedRequest

DISTILLED_SIGMAS = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
REFINE_SIGMAS = (0.909375, 0.725, 0.421875, 0.0)

CLASSIC_NEGATIVE = "worst quality, inconsistent motion, blurry, jittery, distorted"
# The negative prompt that the published recipes condition on (as distributed with Diffusers, Apache-2.0).
OFFICIAL_NEGATIVE = (
    "blurry, out of focus, overexposed, underexposed, low contrast, washed out colors, excessive noise, "
    "grainy texture, poor lighting, flickering, motion blur, distorted proportions, unnatural skin tones, "
    "deformed facial features, asymmetrical face, missing facial features, extra limbs, disfigured hands, "
    "wrong hand count, artifacts around text, inconsistent perspective, camera shake, incorrect depth of "
    "field, background too sharp, background clutter, distracting reflections, harsh shadows, inconsistent "
    "lighting direction, color banding, cartoonish rendering, 3D CGI look, unrealistic materials, uncanny "
    "valley effect, incorrect ethnicity, wrong gender, exaggerated expressions, wrong gaze direction, "
    "mismatched lip sync, silent or muted audio, distorted voice, robotic voice, echo, background noise, "
    "off-sync audio, incorrect dialogue, added dialogue, repetitive speech, jittery movement, awkward "
    "pauses, incorrect timing, unnatural transitions, inconsistent framing, tilted camera, flat lighting, "
    "inconsistent tone, cinematic oversaturation, stylized filters, or AI artifacts."
)
OFFICIAL_NEGATIVE_25 = (
    "has_subtitles, has_blurbox, transition from black, transition to black, speech_ending_short, " + OFFICIAL_NEGATIVE
)


@dataclass(frozen=True)
class Scales:
    """Guidance of one modality. cfg 1, stg 0, modality 1 and rescale 0 mean off."""

    cfg: float = 1.0
    stg: float = 0.0
    modality: float = 1.0
    rescale: float = 0.0


OFF = Scales()


@dataclass(frozen=True)
class StageRecipe:
    """One denoising stage. `sigmas` is a fixed list, or None for a schedule with a number of steps.

    `scale` is the share of the final width and height; `lora` the strength of the distilled LoRA on a dev checkpoint;
    `tokens_shift` takes the schedule's shift from the real token count instead of the official constant.
    """

    sigmas: tuple[float, ...] | None = None
    scale: float = 1.0
    sampler: str = "euler"
    video: Scales = OFF
    audio: Scales = OFF
    lora: float = 0.0
    tokens_shift: bool = False


@dataclass(frozen=True)
class Preset:
    """A whole recipe. `steps` is the default number of steps of stages without a fixed sigma list (None: all fixed).

    `audio_stage` is the stage whose sound is delivered; `kind` the checkpoint that it is made for;
    `noise_seed` overrides the seed of a stochastic sampler's noise, as the official `hq` pipeline does.
    """

    width: int
    height: int
    frames: int
    stages: tuple[StageRecipe, ...]
    about: str
    fps: int = 24
    steps: int | None = None
    recommended_steps: int | None = None
    negative_prompt: str = ""
    audio_stage: int = 0
    kind: str = "dev"
    noise_seed: int | None = None

    @property
    def guided(self) -> bool:
        return any(stage.sigmas is None for stage in self.stages)

    @property
    def two_stage(self) -> bool:
        return len(self.stages) > 1

    @property
    def needs_lora(self) -> bool:
        """Whether a dev checkpoint needs its distilled LoRA for this recipe."""
        return any(stage.lora > 0 for stage in self.stages)


def _refine(lora: float = 1.0, sampler: str = "euler") -> StageRecipe:
    return StageRecipe(sigmas=REFINE_SIGMAS, lora=lora, sampler=sampler)


def _published(steps: int, negative: str, distilled_sampler: str = "euler") -> dict[str, Preset]:
    video, audio = Scales(3.0, 1.0, 3.0, 0.7), Scales(7.0, 1.0, 3.0, 0.7)
    guided = StageRecipe(video=video, audio=audio)
    classic = StageRecipe(video=Scales(cfg=4.0), audio=Scales(cfg=4.0))
    hq = StageRecipe(
        scale=0.5, sampler="res_2s", lora=0.25, tokens_shift=True,
        video=Scales(3.0, 0.0, 3.0, 0.45), audio=Scales(7.0, 0.0, 3.0, 1.0),
    )  # fmt: skip
    distilled = StageRecipe(sigmas=DISTILLED_SIGMAS, lora=1.0, sampler=distilled_sampler)
    return {
        "classic": Preset(
            768, 512, 97, (classic,), "the original service: two passes, guidance 4.0",
            steps=10, recommended_steps=40, negative_prompt=CLASSIC_NEGATIVE,
        ),
        "dev": Preset(
            768, 512, 121, (guided,), "official guided one-stage: four passes",
            steps=steps, recommended_steps=steps, negative_prompt=negative,
        ),
        "two-stage": Preset(
            1536, 1024, 121, (replace(guided, scale=0.5), _refine()),
            "guided at half size, x2 upsampler, 3 refinement steps with the distilled LoRA",
            steps=steps, recommended_steps=steps, negative_prompt=negative,
        ),
        "hq": Preset(
            1920, 1088, 121, (hq, _refine(lora=0.5, sampler="res_2s")), "best quality: res_2s, 15 + 3 steps",
            steps=15, recommended_steps=15, negative_prompt=negative, noise_seed=-1,
        ),
        "distilled": Preset(
            768, 512, 121, (distilled,), "8 steps without guidance", kind="distilled",
        ),
        "distilled-two-stage": Preset(
            1536, 1024, 121, (replace(distilled, scale=0.5), _refine()),
            "8 steps at half size, x2 upsampler, 3 refinement steps", kind="distilled", audio_stage=1,
        ),
    }  # fmt: skip


def _tiny() -> dict[str, Preset]:
    """The embedded model's rows: the same recipes at its own size, guided by CFG alone."""
    scales = Scales(cfg=3.0)
    own: dict[str, Preset] = {}
    for name, preset in _published(steps=30, negative="").items():
        stages = tuple(
            replace(stage, video=scales, audio=scales) if stage.sigmas is None else stage for stage in preset.stages
        )
        own[name] = replace(preset, width=256, height=192, frames=49, stages=stages, negative_prompt="")
    own["classic"] = replace(own["classic"], stages=(StageRecipe(video=Scales(cfg=4.0), audio=Scales(cfg=4.0)),))
    return own


PRESETS: dict[str, dict[str, Preset]] = {
    "2.0": _published(steps=40, negative=OFFICIAL_NEGATIVE),
    "2.3": _published(steps=30, negative=OFFICIAL_NEGATIVE),
    "2.5": _published(steps=30, negative=OFFICIAL_NEGATIVE_25, distilled_sampler="euler-ancestral"),
    "tiny": _tiny(),
}


def preset(family: str, name: str) -> Preset:
    """The row of a family's table. Raises RefusedRequest for an unknown name, listing the known ones."""
    table = PRESETS[family]
    if name not in table:
        raise RefusedRequest(f"preset: there is no {name!r}", knob="preset", hint="one of " + ", ".join(table))
    return table[name]
