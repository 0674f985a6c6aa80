"""What a client may ask of the API, and what it is told: the wire forms, with the names that other services use.

Sources: the OpenAI Videos API as its Python package 3.54 speaks it, and OpenRouter's dialect of it.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
)
from pydantic.json_schema import SkipJsonSchema, WithJsonSchema

from ltx2.doors.http.body import Body, clip
from ltx2.doors.http.refusals import FieldNotOffered
from ltx2.spec.errors import RefusedRequest
from ltx2.spec.geometry import parse_fps
from ltx2.spec.request import Change, Interval, Sampler, Schedule

MAX_PROMPT = 8_000
MAX_SECONDS = 3_600.0
MAX_STEPS = 100
MAX_GUIDANCE = 100.0
MAX_DEADLINE = 86_400.0
MAX_N = 4
MAX_URL = 2_048
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f]")

# Known elsewhere, impossible here: said by name, so that nobody looks for a typing error.
NOT_OFFERED = {
    "audio_reference": "sound as an input",
    "audio_url": "sound as an input",
    "end_image": "a last frame as an input",
    "end_image_url": "a last frame as an input",
    "enhance_prompt": "rewriting the prompt",
    "input_references": "reference pictures; a first frame is input_reference or frame_images",
    "last_frame": "a last frame as an input",
    "video": "a video as an input",
    "video_reference": "a video as an input",
    "video_url": "a video as an input",
}
# Accepted for the sake of clients that always send them.
IGNORED = ("user", "quality", "provider")

Missing = SkipJsonSchema[None]


def _seconds(value: Any, info: ValidationInfo) -> Any:
    """A number, or an integer as text, as OpenAI's clients send it; a form can send nothing but text."""
    if isinstance(value, str):
        pattern = r"\d{1,4}(\.\d{1,6})?" if info.context == "lenient" else r"\d{1,4}"
        if not re.fullmatch(pattern, value, re.ASCII):
            raise ValueError("a number as in 4, or as text in whole seconds as in '4'")
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a number as in 4, or as text in whole seconds as in '4'")
    return float(value)


def _fps(value: Any) -> Any:
    text = repr(value) if isinstance(value, float) else str(value)
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,6}(\.\d{1,15})?(/\d{1,6})?", text, re.ASCII):
        raise ValueError("1 to 120, as in 24, 23.976 or 24000/1001")
    try:
        return parse_fps(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError("1 to 120, as in 24, 23.976 or 24000/1001") from None


def _text(value: str) -> str:
    found = CONTROL.search(value)
    if found:
        raise ValueError(f"the control character U+{ord(found[0]):04X} stands in it")
    return value


Text = Annotated[str, AfterValidator(_text)]
Prompt = Annotated[Text, Field(min_length=1, max_length=MAX_PROMPT)]
Short = Annotated[Text, Field(max_length=256)]
Url = Annotated[Text, Field(max_length=MAX_URL)]
Seconds = Annotated[
    float,
    BeforeValidator(_seconds),
    Field(gt=0, le=MAX_SECONDS),
    WithJsonSchema(
        {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": "^[0-9]{1,4}$"}]}
    ),
]
Fps = Annotated[
    Fraction,
    BeforeValidator(_fps),
    PlainSerializer(str),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 1, "maximum": 120}, {"type": "string"}]}),
]
Pixels = Annotated[int, Field(le=100_000)]
Guidance = Annotated[float, Field(ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)]
Unit = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Share = Annotated[
    Interval,
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "array",
                    "items": {"type": "number", "minimum": 0, "maximum": 1},
                    "minItems": 2,
                    "maxItems": 2,
                },
                {"type": "string", "pattern": "^[01](\\.[0-9]{1,6})?:[01](\\.[0-9]{1,6})?$"},
            ]
        }
    ),
]


class Strictly(BaseModel):
    """No field that is not named here."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Link(Strictly):
    """A picture behind a URL, or in a data URL."""

    url: str


class Reference(Strictly):
    """A picture as OpenAI's clients name it."""

    image_url: str | Link | Missing = None
    file_id: Short | Missing = None


class FrameImage(Strictly):
    """A picture at a place in the video, as OpenRouter has it."""

    image_url: str | Link
    type: Literal["image_url"] = "image_url"
    frame_type: Literal["first_frame", "last_frame"] = "first_frame"


class Asked(Strictly):
    """One video. What is left out is decided by the preset and the model; `GET /v1/capabilities` says how.

    Fields of one line mean the same; both may be sent as long as they agree: seconds and duration, frames and
    num_frames, steps and num_inference_steps, audio and generate_audio, webhook and callback_url, and the ways to say a
    size (size, width and height, resolution with aspect_ratio).
    """

    prompt: Prompt
    model: Short | Missing = None
    negative_prompt: Annotated[Text, Field(max_length=MAX_PROMPT)] | Missing = None
    preset: Short | Missing = None
    seconds: Seconds | Missing = None
    duration: Seconds | Missing = None
    frames: int | Missing = None
    num_frames: int | Missing = None
    fps: Fps | Missing = None
    size: Short | Missing = None
    width: Pixels | Missing = None
    height: Pixels | Missing = None
    resolution: Short | Missing = None
    aspect_ratio: Short | Missing = None
    round: Literal["nearest"] | Missing = None
    seed: Annotated[int, Field(ge=-1, lt=2**63)] | Missing = None
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | Missing = None
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | Missing = None
    sampler: Sampler | Missing = None
    schedule: Schedule | Missing = None
    guidance_scale: Guidance | Missing = None
    video_cfg: Guidance | Missing = None
    video_stg: Guidance | Missing = None
    video_modality: Guidance | Missing = None
    video_rescale: Unit | Missing = None
    audio_cfg: Guidance | Missing = None
    audio_stg: Guidance | Missing = None
    audio_modality: Guidance | Missing = None
    audio_rescale: Unit | Missing = None
    stg_blocks: Annotated[list[Annotated[int, Field(ge=0, le=1000)]], Field(max_length=64)] | Missing = None
    guidance_interval: Share | Missing = None
    step_cache: Change | Missing = None
    lora_strength: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | Missing = None
    loras: Annotated[list[Any], Field(max_length=16)] | Missing = None
    audio: bool | Missing = None
    generate_audio: bool | Missing = None
    input_reference: str | Reference | Missing = None
    image: str | Missing = None
    frame_images: Annotated[list[FrameImage], Field(max_length=4)] | Missing = None
    image_strength: Unit | Missing = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | Missing = None
    strict: bool | Missing = None
    deadline_seconds: Annotated[float, Field(gt=0, le=MAX_DEADLINE, allow_inf_nan=False)] | Missing = None
    webhook: Url | Missing = None
    callback_url: Url | Missing = None
    priority: Annotated[int, Field(ge=-10, le=10)] | Missing = None
    cancel_on_disconnect: bool | Missing = None
    user: Annotated[Any, WithJsonSchema({"type": "string"})] = None
    quality: Annotated[Any, WithJsonSchema({"type": "string"})] = None
    provider: Annotated[Any, WithJsonSchema({"type": "object"})] = None


def read_asked(body: Body) -> Asked:
    """The fields of a body as they are meant. Raises RefusedRequest, which names the field, and FieldNotOffered."""
    _check_names(body.fields)
    try:
        return Asked.model_validate_json(
            json.dumps(body.fields), strict=not body.lenient, context="lenient" if body.lenient else None
        )
    except ValidationError as error:
        raise _refusal(error) from None


def _check_names(fields: dict[str, Any]) -> None:
    for name in fields.keys() & NOT_OFFERED.keys():
        raise FieldNotOffered(f"{name}: this engine does not offer {NOT_OFFERED[name]}", knob=name, hint="leave it out")
    unknown = [name for name in fields if name not in Asked.model_fields]
    if unknown:
        listed = ", ".join(clip(name) for name in unknown[:10])
        near = difflib.get_close_matches(unknown[0][:64], Asked.model_fields, 1)
        raise RefusedRequest(
            f"unknown field: {listed}", knob=clip(unknown[0]), hint=f"did you mean {near[0]}?" if near else None
        )
    for name, value in fields.items():
        if value is None:
            raise RefusedRequest(f"{name}: null is no value", knob=name, hint="leave it out")


def _refusal(error: ValidationError) -> RefusedRequest:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    knob = str(first["loc"][0]) if first["loc"] else "request"
    return RefusedRequest(f"{knob}: {first['msg'].removeprefix('Value error, ')}", knob=knob)


class Failure(BaseModel):
    """Why a job failed."""

    code: str
    message: str


class Usage(BaseModel):
    """What a finished video took. `gpu_seconds` is the engine's wall time, `cost` that time at the operator's price;
    `skipped_steps` were not computed (step_cache)."""

    gpu_seconds: float
    megapixel_frames: float
    peak_memory_mb: float
    skipped_steps: int = 0
    cost: float
    currency: Literal["USD"] = "USD"


class Video(BaseModel):
    """A job and its video: OpenAI's fields first, then what is said beyond them.

    `status` is one of the four that clients know; `state` the exact one. `seconds` repeats what was asked, `duration`,
    `frames` and `fps` are what is made. `progress` is a share of the work, 100 when `/content` answers.
    """

    id: str
    object: Literal["video"] = "video"
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    model: str
    prompt: str
    seconds: str
    size: str
    remixed_from_video_id: str | None = None
    error: Failure | None = None
    state: Literal["queued", "running", "done", "failed", "cancelled", "expired"]
    stage: str | None = None
    step: int | None = None
    steps: int | None = None
    eta_seconds: float | None = None
    queue_position: int | None = None
    attempt: int
    seed: int
    width: int
    height: int
    frames: int
    fps: float
    duration: float
    warnings: list[str]
    usage: Usage | None = None
    polling_url: str
    unsigned_urls: list[str]
    urls: dict[str, str]


class Page(BaseModel):
    """Some videos of a list; `last_id` is the `after` of the next page."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    """A video that is there no more."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


class Fault(BaseModel):
    """What is wrong with a request: `param` names the field."""

    message: str
    type: str
    param: str | None
    code: str


class FaultEnvelope(BaseModel):
    """Every answer that is not a success."""

    error: Fault


def faults(texts: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """The answers of a route that are errors, by status and what they mean, as FastAPI describes them."""
    return {status: {"model": FaultEnvelope, "description": text} for status, text in texts.items()}
