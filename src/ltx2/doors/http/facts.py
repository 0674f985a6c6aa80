"""What this server can do: its models, what a form for them needs, and what a request would cost."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from ltx2.doors.http import formats
from ltx2.doors.http.asking import GUIDED, MAX_FRAMES, MIN_FRAMES, model_of, order
from ltx2.doors.http.body import Body, read_body
from ltx2.doors.http.caller import Caller, allowed
from ltx2.doors.http.inputs import MAX_IMAGE
from ltx2.doors.http.parts import Parts, TheParts
from ltx2.doors.http.refusals import ModelNotFound
from ltx2.doors.http.schemas import MAX_DEADLINE, MAX_GUIDANCE, MAX_PROMPT, MAX_STEPS, NOT_OFFERED, Asked, read_asked
from ltx2.doors.http.submit import TO_COME
from ltx2.doors.http.variants import FORMATS, VARIANTS
from ltx2.doors.http.videos import ASKED, CREATED, FAULTS
from ltx2.spec.card import Card
from ltx2.spec.cost import need
from ltx2.spec.errors import DoesNotFit, RefusedRequest
from ltx2.spec.geometry import TEMPORAL
from ltx2.spec.plan import Plan, default_preset, resolve
from ltx2.spec.presets import PRESETS, Preset
from ltx2.spec.request import request as asked_for

router = APIRouter(tags=["facts"])
Read = Annotated[Caller, Depends(allowed("read"))]


class Model(BaseModel):
    """A model that is served, in the words of OpenAI's model list."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "ltx2"


class Models(BaseModel):
    """All models that are served; the first is the default."""

    object: Literal["list"] = "list"
    data: list[Model]


class PresetFacts(BaseModel):
    """A preset of a model: what it makes when nothing else is said, and which fields have an effect."""

    about: str
    width: int
    height: int
    frames: int
    fps: int
    steps: int | None
    step_of_sides: int
    fields: list[str]


class ModelFacts(BaseModel):
    """What a form for one model needs."""

    version: str
    kind: str
    note: str
    default_preset: str
    presets: dict[str, PresetFacts]
    max_side: int
    max_seconds: float
    frames: dict[str, int]
    inputs: list[str]


class Capabilities(BaseModel):
    """Everything that a form for this server needs: models and their presets, bounds, formats, what is refused."""

    models: dict[str, ModelFacts]
    bounds: dict[str, dict[str, float]]
    sizes: dict[str, list[str]]
    variants: list[str]
    formats: list[str]
    not_offered: dict[str, str]


class Estimate(BaseModel):
    """What a request would take. `basis`: `jobs` (learned from finished jobs here), `h200` (counted for one warm H200),
    or `none` (no job of the embedded model has been seen yet). Cost is in dollars at the operator's price. With `at_most`
    (step_cache) passes, teraflops, seconds and cost are upper bounds."""

    model: str
    plan: dict[str, Any]
    warnings: list[str]
    passes: int
    teraflops: float
    seconds: float | None
    basis: Literal["jobs", "h200", "none"]
    at_most: bool
    cost: float | None
    currency: Literal["USD"] = "USD"
    fits: bool
    hint: str | None


@router.get("/v1/models", responses=FAULTS)
def models(parts: TheParts, caller: Read) -> Models:
    """The models that are served."""
    return Models(data=[Model(id=name) for name in parts.service.models])


@router.get("/v1/models/{name:path}", responses=FAULTS)
def model(name: str, parts: TheParts, caller: Read) -> Model:
    """One model, if it is served."""
    if name not in parts.service.models:
        raise ModelNotFound("there is no such model here", hint="one of " + ", ".join(parts.service.models))
    return Model(id=name)


@router.get("/v1/capabilities", responses=FAULTS)
def capabilities(parts: TheParts, caller: Read) -> Capabilities:
    """What can be asked for, so that no form offers the impossible."""
    sources = ["input_reference", "image", "frame_images"]
    return Capabilities(
        models={name: _facts(card, sources) for name, card in parts.service.models.items()},
        bounds={
            "prompt": {"characters": MAX_PROMPT},
            "steps": {"least": 1, "most": MAX_STEPS},
            "guidance_scale": {"least": 0, "most": MAX_GUIDANCE},
            "fps": {"least": 1, "most": 120},
            "seed": {"least": 0, "most": 2**63 - 1},
            "deadline_seconds": {"most": MAX_DEADLINE},
            "image": {"bytes": MAX_IMAGE},
        },
        sizes={
            "size": list(formats.OPENAI_SIZES),
            "resolution": [*formats.RESOLUTIONS],
            "aspect_ratio": [*formats.RATIOS],
        },
        variants=[*VARIANTS, "metadata"],
        formats=[*FORMATS],
        not_offered=NOT_OFFERED,
    )


def _facts(card: Card, sources: list[str]) -> ModelFacts:
    presets: dict[str, PresetFacts] = {}
    for name, recipe in PRESETS[card.family].items():
        try:
            plan = resolve(asked_for(prompt="x", preset=name), card)
        except RefusedRequest:
            continue
        presets[name] = PresetFacts(
            about=recipe.about,
            width=recipe.width,
            height=recipe.height,
            frames=recipe.frames,
            fps=recipe.fps,
            steps=recipe.steps,
            step_of_sides=formats.step_of(recipe),
            fields=_fields(recipe, plan),
        )
    return ModelFacts(
        version=card.version,
        kind=card.kind,
        note=card.note,
        default_preset=default_preset(card),
        presets=presets,
        max_side=card.max_side,
        max_seconds=card.max_seconds,
        frames={"least": MIN_FRAMES, "most": MAX_FRAMES, "every": TEMPORAL},
        inputs=sources,
    )


def _fields(recipe: Preset, plan: Plan) -> list[str]:
    """The fields beyond prompt, size, length and seed that have an effect on a preset, as it is."""
    fields = ["sampler"]
    if recipe.guided:
        # Which blocks are left out matters while there is guidance by leaving them out.
        stg = any(stage.video.stg or stage.audio.stg for stage in plan.stages)
        fields += ["negative_prompt", "steps", "schedule", "guidance_interval"]
        fields += [name for name in GUIDED if stg or name != "stg_blocks"]
        fields += ["step_cache"] if recipe.stages[0].sampler == "euler" else []
    return fields + (["lora_strength"] if any(stage.lora for stage in plan.stages) else [])


@router.post("/v1/estimate", responses=CREATED, response_model=Estimate, openapi_extra=ASKED)
async def estimate(request: Request, parts: TheParts, caller: Read) -> Estimate:
    """What the same body would become as a job, without making one; pictures are neither fetched nor read."""
    body = await read_body(request)
    return await run_in_threadpool(_estimate, body, parts)


def _estimate(body: Body, parts: Parts) -> Estimate:
    asked: Asked = read_asked(body)
    brings = body.file is not None or any((asked.input_reference, asked.image, asked.frame_images))
    decided = order(asked, parts.service, TO_COME if brings else None, check=False)
    _, card = model_of(asked, parts.service)
    hint = _hint(parts, decided.plan)
    counted = need(decided.plan, card)
    seconds = parts.estimates.seconds(decided.plan, card)
    measured = parts.estimates.measured(card)
    price = parts.service.settings.price_per_hour
    return Estimate(
        model=decided.model,
        plan=decided.plan.as_dict(),
        warnings=list(decided.warnings),
        passes=counted.passes,
        teraflops=round(counted.flops / 1e12, 3),
        seconds=None if seconds is None else round(seconds, 2),
        basis="none" if seconds is None else "jobs" if measured else "h200",
        at_most=counted.at_most,
        cost=None if seconds is None else round(seconds / 3600 * price, 6),
        fits=hint is None,
        hint=hint or None,
    )


def _hint(parts: Parts, plan: Any) -> str | None:
    """None when the plan fits; else what would."""
    try:
        parts.service.capacity(plan)
    except DoesNotFit as error:
        return error.hint or error.message
    return None
