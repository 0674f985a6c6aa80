"""From what a client asked to what the queue takes: one Request, its Plan, and what the client should be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ltx2.doors.http.body import clip
from ltx2.doors.http.formats import Size, recipe_of, rounded, size_of
from ltx2.doors.http.refusals import Conflicting, FieldNotOffered, ModelNotFound
from ltx2.doors.http.schemas import IGNORED, Asked
from ltx2.doors.http.service import Service
from ltx2.jobs.job import Ask
from ltx2.spec import geometry
from ltx2.spec.card import Card
from ltx2.spec.errors import RefusedRequest
from ltx2.spec.plan import Plan, resolve
from ltx2.spec.request import request

MIN_FRAMES, MAX_FRAMES = 9, 481
# Pictures are recorded by their checksum, and what is ignored not at all.
UNRECORDED = {"input_reference", "image", "frame_images", *IGNORED}
# Fields of guided stages, which have no effect where every stage has fixed sigmas.
GUIDED = (
    "guidance_scale", "video_cfg", "video_stg", "video_modality", "video_rescale",
    "audio_cfg", "audio_stg", "audio_modality", "audio_rescale", "stg_blocks",
)  # fmt: skip
PLAIN = (
    "negative_prompt", "preset", "sampler", "schedule", "stg_blocks", "lora_strength", "image_strength",
    "guidance_interval", "step_cache",
)  # fmt: skip
SCALES = tuple(name for name in GUIDED if name not in ("guidance_scale", "stg_blocks"))


@dataclass(frozen=True)
class Order:
    """A request that can be done: by which served model, with which Plan, and with which warnings."""

    model: str
    plan: Plan
    record: dict[str, Any]
    warnings: tuple[str, ...]


def order(asked: Asked, service: Service, image: str | None = None, check: bool = True) -> Order:
    """Decide a request. `image` is the path of the first frame, if one came; without `check` it need not fit.

    `record` is what the queue keeps of it: equal for equal requests, in whatever way they were said.
    Raises RefusedRequest naming the client's own field, ModelNotFound, and DoesNotFit when no worker could hold it.
    """
    name, card = model_of(asked, service)
    _check_offered(asked)
    plan, notes = plan_of(asked, card, image)
    unheeded = ignored_fields(asked, plan, recipe_of(asked, card).guided)
    warnings = (*notes, *(_warning(field, plan) for field in unheeded))
    if asked.strict and unheeded:
        raise RefusedRequest(
            _warning(unheeded[0], plan), knob=unheeded[0], hint=f"leave {unheeded[0]} out, or leave strict out"
        )
    if check:
        service.capacity(plan)
    record = asked.model_dump(mode="json", exclude_unset=True, exclude=UNRECORDED)
    return Order(name, plan, record, warnings)


class Asking(Ask):
    """A job to be, whose request is the same one whatever the client was warned about."""

    @property
    def digest(self) -> str:
        """SHA-256 of the request without its warnings, which a newer version may word otherwise."""
        return Ask(self.token, self.plan, {k: v for k, v in self.request.items() if k != "warnings"}).digest


def model_of(asked: Asked, service: Service) -> tuple[str, Card]:
    """The served model that a request means. Raises ModelNotFound, listing them."""
    served = dict(service.models)
    name = asked.model if asked.model is not None else next(iter(served))
    if name not in served:
        raise ModelNotFound(f"model: there is no {clip(name)!r} here", knob="model", hint="one of " + ", ".join(served))
    return name, served[name]


def plan_of(asked: Asked, card: Card, image: str | None) -> tuple[Plan, list[str]]:
    """The Plan of a request on a model, and what was rounded. Raises RefusedRequest naming the client's field."""
    recipe = recipe_of(asked, card)
    size = size_of(asked, card)
    fps = asked.fps if asked.fps is not None else recipe.fps
    length, named, notes = _length(asked, geometry.parse_fps(fps))
    steps, steps_name = agreed(asked, "steps", "num_inference_steps")
    sound, _ = agreed(asked, "audio", "generate_audio")
    fields: dict[str, Any] = {name: getattr(asked, name) for name in PLAIN} | _scales(asked) | length
    fields |= {"prompt": asked.prompt, "width": size.width, "height": size.height, "fps": asked.fps, "steps": steps}
    fields |= {"seed": None if asked.seed == -1 else asked.seed, "audio": sound, "image": image}
    fields = {name: value for name, value in fields.items() if value is not None}
    names = {"frames": named, "seconds": named, "steps": steps_name, "width": size.knob, "height": size.knob}
    if size.knob in ("width", "height"):
        del names["width"], names["height"]
    try:
        plan = resolve(request(**fields), card)
    except RefusedRequest as error:
        raise _renamed(error, names, rounded(size, recipe, card)) from None
    return plan, [*notes, *([size.note] if size.note else [])]


def _renamed(error: RefusedRequest, names: dict[str, str], nearest: Size) -> RefusedRequest:
    """The same refusal under the name that the client used; a refused size comes with both sides of one that works."""
    knob = names.get(error.knob or "", error.knob)
    if error.knob in ("width", "height") and nearest.width and nearest.height:
        error.hint = f"{nearest.width}x{nearest.height} works, or send round=nearest"
    if knob != error.knob and knob is not None:
        error.message = error.message.replace(f"{error.knob}:", f"{knob}: {error.knob}", 1)
        error.knob = knob
    return error


def _length(asked: Asked, fps: Any) -> tuple[dict[str, Any], str, list[str]]:
    """Frames or seconds, the field that they come from, and what was rounded."""
    seconds, seconds_name = agreed(asked, "seconds", "duration")
    frames, frames_name = agreed(asked, "frames", "num_frames")
    if frames is None:
        return ({} if seconds is None else {"seconds": seconds}), seconds_name, []
    notes: list[str] = []
    nearest = min(max(geometry.nearest_frames(min(frames, MAX_FRAMES)), MIN_FRAMES), MAX_FRAMES)
    if frames != nearest:
        if not asked.round:
            raise RefusedRequest(
                f"{frames_name}: {frames} is not of the form 8k+1 from {MIN_FRAMES} to {MAX_FRAMES}",
                knob=frames_name, hint=f"{nearest} works, or send round=nearest",
            )  # fmt: skip
        notes.append(f"{frames_name}: rounded to {nearest}")
    if seconds is not None and geometry.frames_for(seconds, fps) != nearest:
        raise Conflicting(
            f"{frames_name} says {nearest} frames, {seconds_name} says {geometry.frames_for(seconds, fps)}",
            knob=frames_name, hint="send one of them",
        )  # fmt: skip
    return {"frames": nearest}, frames_name, notes


def agreed(asked: Asked, *names: str) -> tuple[Any, str]:
    """The value of a field that has several names, and the name that was used. Raises Conflicting."""
    given = [(getattr(asked, name), name) for name in names if getattr(asked, name) is not None]
    if not given:
        return None, names[0]
    for value, name in given[1:]:
        if value != given[0][0]:
            raise Conflicting(f"{given[0][1]} and {name} say different things", knob=name, hint="send one of them")
    return given[0]


def _scales(asked: Asked) -> dict[str, Any]:
    """Guidance of both modalities; guidance_scale is prompt guidance of both."""
    scales = {name: getattr(asked, name) for name in SCALES}
    if asked.guidance_scale is not None:
        for side in ("video_cfg", "audio_cfg"):
            if scales[side] is not None and scales[side] != asked.guidance_scale:
                raise Conflicting(f"guidance_scale and {side} say different things", knob=side, hint="send one of them")
            scales[side] = asked.guidance_scale
    return scales


def _check_offered(asked: Asked) -> None:
    if asked.n is not None and asked.n > 1:
        raise FieldNotOffered(
            "n: one request makes one video", knob="n", hint="send several requests, with seeds s, s+1 and so on"
        )
    if asked.loras:
        raise FieldNotOffered(
            "loras: a request cannot name LoRAs", knob="loras", hint="a service has its model's distilled LoRA only"
        )


def ignored_fields(asked: Asked, plan: Plan, guided: bool) -> list[str]:
    """Fields that were sent and have no effect on this Plan; `guided` when its preset has a stage with a schedule."""
    sent = asked.model_fields_set
    fields = [name for name in IGNORED if name in sent]
    if asked.negative_prompt and all(stage.video.cfg == stage.audio.cfg == 1 for stage in plan.stages):
        fields.append("negative_prompt")
    if not guided:
        fields += [name for name in GUIDED if name in sent]
    elif "stg_blocks" in sent and not any(stage.video.stg or stage.audio.stg for stage in plan.stages):
        fields.append("stg_blocks")
    if "lora_strength" in sent and not any(stage.lora for stage in plan.stages):
        fields.append("lora_strength")
    if "image_strength" in sent and not plan.image:
        fields.append("image_strength")
    return fields


def _warning(name: str, plan: Plan) -> str:
    if name in IGNORED:
        return f"{name}: accepted and ignored"
    if name == "image_strength":
        return "image_strength: it has no effect without a picture"
    return f"{name}: it has no effect, the preset {plan.preset} does not use it on this model"
