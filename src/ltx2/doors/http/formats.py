"""The ways in which clients say a size: pixels, OpenAI's four sizes, or a resolution with an aspect ratio."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ltx2.doors.http.refusals import Conflicting
from ltx2.doors.http.schemas import Asked
from ltx2.spec import geometry
from ltx2.spec.card import Card
from ltx2.spec.errors import RefusedRequest
from ltx2.spec.plan import default_preset
from ltx2.spec.presets import Preset, preset

# Names of formats rather than counts of pixels: 720 lines are no size of these models, 704 are.
OPENAI_SIZES = ("720x1280", "1280x720", "1024x1792", "1792x1024")
RESOLUTIONS = {"480p": 480, "540p": 540, "720p": 720, "1080p": 1080}
RATIOS = ("16:9", "9:16", "1:1", "4:3", "3:4", "3:2", "2:3", "21:9", "9:21")


@dataclass(frozen=True)
class Size:
    """Pixels to ask for (None: the preset's), the field that they come from, and what the client should know."""

    width: int | None
    height: int | None
    knob: str
    note: str | None = None


def recipe_of(asked: Asked, card: Card) -> Preset:
    """The preset that a request means on a model. Raises RefusedRequest for an unknown one."""
    return preset(card.family, asked.preset or default_preset(card))


def step_of(recipe: Preset) -> int:
    """What both sides must be multiples of."""
    return geometry.SPATIAL * (2 if recipe.two_stage else 1)


def size_of(asked: Asked, card: Card) -> Size:
    """The size that a request means. Raises RefusedRequest, or Conflicting when two ways to say it disagree."""
    recipe = recipe_of(asked, card)
    found = [size for size in (_exact(asked, recipe), _named(asked, recipe), _pixels(asked)) if size is not None]
    if not found:
        return Size(None, None, "size")
    for other in found[1:]:
        if not _agree(found[0], other):
            raise Conflicting(
                f"{found[0].knob} says {_said(found[0])}, {other.knob} says {_said(other)}",
                knob=other.knob, hint="send one of them",
            )  # fmt: skip
    return rounded(found[0], recipe, card) if asked.round else found[0]


def _agree(one: Size, other: Size) -> bool:
    sides = ((one.width, other.width), (one.height, other.height))
    return all(a == b or a is None or b is None for a, b in sides)


def _exact(asked: Asked, recipe: Preset) -> Size | None:
    if asked.size is None:
        return None
    width, height = _parsed("size", asked.size)
    return _fitted("size", width, height, recipe) if asked.size in OPENAI_SIZES else Size(width, height, "size")


def _pixels(asked: Asked) -> Size | None:
    if asked.width is None and asked.height is None:
        return None
    return Size(asked.width, asked.height, "width" if asked.width is not None else "height")


def _named(asked: Asked, recipe: Preset) -> Size | None:
    if asked.resolution is not None and re.fullmatch(r"\d+x\d+", asked.resolution, re.ASCII):
        width, height = _parsed("resolution", asked.resolution)
        return Size(width, height, "resolution")
    if asked.aspect_ratio is not None and asked.aspect_ratio not in RATIOS:
        raise RefusedRequest("aspect_ratio: it is not known", knob="aspect_ratio", hint="one of " + ", ".join(RATIOS))
    across, down = map(int, (asked.aspect_ratio or "16:9").split(":"))
    if asked.resolution is not None:
        if asked.resolution not in RESOLUTIONS:
            known = "one of " + ", ".join(RESOLUTIONS) + ", or as in 768x512"
            raise RefusedRequest("resolution: it is not known", knob="resolution", hint=known)
        short = RESOLUTIONS[asked.resolution]
        long = short * max(across, down) / min(across, down)
        width, height = (long, short) if across >= down else (short, long)
        return _fitted("resolution", width, height, recipe)
    if asked.aspect_ratio is None:
        return None
    # The preset's area in another shape.
    height = math.sqrt(recipe.width * recipe.height * down / across)
    return _fitted("aspect_ratio", height * across / down, height, recipe)


def _parsed(knob: str, text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text, re.ASCII)
    if match is None:
        raise RefusedRequest(f"{knob}: it is not of the form WIDTHxHEIGHT", knob=knob, hint="as in 768x512")
    return int(match[1]), int(match[2])


def _fitted(knob: str, width: float, height: float, recipe: Preset) -> Size:
    """A named format as the nearest size that the stages can make."""
    step = step_of(recipe)
    across, down = (geometry.nearest_multiple(round(side), step) for side in (width, height))
    exact = (across, down) == (width, height)
    return Size(
        across, down, knob, None if exact else f"{knob}: made as {across}x{down}, sides are multiples of {step}"
    )


def rounded(size: Size, recipe: Preset, card: Card) -> Size:
    """The nearest size that the model and the preset can make, with a note when it is another."""
    step = step_of(recipe)
    most = card.max_side // step * step
    # Too large on one side: the same shape, smaller.
    share = min(1.0, most / max(size.width or 1, size.height or 1))
    sides = [
        None if side is None else min(most, geometry.nearest_multiple(max(round(side * share), 0), step))
        for side in (size.width, size.height)
    ]
    changed = sides != [size.width, size.height]
    note = f"{size.knob}: rounded to {_said(Size(sides[0], sides[1], ''))}" if changed else size.note
    return Size(sides[0], sides[1], size.knob, note)


def _said(size: Size) -> str:
    sides = [str(side) if side is not None else "…" for side in (size.width, size.height)]
    return "x".join(sides)
