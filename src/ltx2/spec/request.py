"""What the caller asked. `None` means: let the preset decide."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ltx2.spec.errors import RefusedRequest
from ltx2.spec.geometry import parse_fps

Sampler = Literal["euler", "euler-ancestral", "res_2s", "gradient-estimation"]
Schedule = Literal["official", "diffusers"]
Precision = Literal["bf16", "fp32"]


def _fps(value: Any) -> Any:
    if value is None or isinstance(value, Fraction):
        return value
    try:
        return parse_fps(value)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{value!r} is neither a decimal nor a fraction; write 24, 23.976 or 24000/1001") from None


def _interval(value: Any) -> Any:
    """A pair, or text as in 0:0.5."""
    if not isinstance(value, str):
        # After a validator of Python's, strict JSON takes no list for a tuple.
        return tuple(cast("list[Any]", value)) if isinstance(value, list) else value
    begin, _, end = value.partition(":")
    try:
        return float(begin), float(end)
    except ValueError:
        raise ValueError(f"{value!r} is no interval of the steps; write 0:0.5 for the first half of them") from None


Fps = Annotated[Fraction, BeforeValidator(_fps)]
Scale = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Unit = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Interval = Annotated[tuple[Unit, Unit], BeforeValidator(_interval)]
Change = Annotated[float, Field(ge=0, le=0.5, allow_inf_nan=False)]


class Lora(BaseModel):
    """A LoRA file to merge into the transformer of every stage, and its strength."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str
    strength: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)] = 1.0


class Request(BaseModel):
    """One video, as asked.

    Sizes in pixels, `seconds` snaps to the nearest 8k+1 frames (the only value that is changed silently, and the
    Plan shows it), `fps` is kept exactly as written. Guidance scales: `cfg` 1 is off, `stg` 0 is off, `modality` 1 is
    off, `rescale` 0 is off; the `audio_` ones belong to the sound. Lossy, and off if left out: `guidance_interval`, the
    share of the steps (from, to) in which guidance runs, and `step_cache`, see `ltx2.spec.lossy`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    negative_prompt: str | None = None
    preset: str | None = None
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    fps: Fps | None = None
    steps: Annotated[int, Field(ge=1, le=200)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    sampler: Sampler | None = None
    schedule: Schedule | None = None
    video_cfg: Scale | None = None
    video_stg: Scale | None = None
    video_modality: Scale | None = None
    video_rescale: Unit | None = None
    audio_cfg: Scale | None = None
    audio_stg: Scale | None = None
    audio_modality: Scale | None = None
    audio_rescale: Unit | None = None
    stg_blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    guidance_interval: Interval | None = None
    step_cache: Change | None = None
    lora_strength: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    image: str | None = None
    image_strength: Unit = 1.0
    audio: bool = True
    loras: tuple[Lora, ...] = ()


def request(**fields: Any) -> Request:
    """Build a Request; every fault becomes a RefusedRequest that names its field."""
    try:
        return Request(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        knob = ".".join(str(part) for part in first["loc"]) or "request"
        raise RefusedRequest(f"{knob}: {first['msg'].removeprefix('Value error, ')}", knob=knob) from None
