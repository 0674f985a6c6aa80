"""Names of videos in addresses: checked before any database sees them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path

from ltx2.jobs.errors import NoSuchJob
from ltx2.jobs.store import ID


def known_form(name: str) -> str:
    """A name that a video can have. Raises NoSuchJob for any other: no such video is there."""
    if not ID.fullmatch(name):
        raise NoSuchJob("there is no such video")
    return name


async def _video_id(id: Annotated[str, Path(json_schema_extra={"maxLength": 64, "pattern": ID.pattern})]) -> str:  # noqa: A002
    return known_form(id)


VideoId = Annotated[str, Depends(_video_id)]
