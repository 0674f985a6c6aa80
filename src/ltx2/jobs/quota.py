"""What a token with a daily limit has asked for: megapixel-frames of 24 hours, written down with every job."""

from __future__ import annotations

import math
from itertools import accumulate

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, select

from ltx2.jobs.errors import QuotaExceeded
from ltx2.jobs.job import LATE, Ask, Ending, Job
from ltx2.jobs.tables import SPENT

DAY = 86_400.0
# Sums of decimal fractions are not exact.
GRAIN = 1e-6


def check(connection: Connection, ask: Ask, now: float) -> None:
    """Raise QuotaExceeded when the job is more than is left of the token's last 24 hours.

    Exact while the caller's transaction holds other submits of the token back.
    """
    most, wanted = ask.megapixel_frames, ask.plan.megapixel_frames
    if most is None:
        return
    if wanted > most + GRAIN:
        raise QuotaExceeded(
            f"megapixel_frames: the video has {_amount(wanted)}, this token may have {_amount(most)} in 24 hours",
            hint="ask for a smaller or shorter one",
            retry_after=None,
        )
    where = and_(SPENT.c.token == ask.token, SPENT.c.at > now - DAY)
    amount = func.coalesce(func.sum(SPENT.c.megapixel_frames), 0.0)
    spent = float(connection.execute(select(amount).where(where)).scalar_one())
    if spent + wanted <= most + GRAIN:
        return
    wait = _until(connection, where, spent + wanted - most) + DAY - now
    raise QuotaExceeded(
        f"megapixel_frames: the video has {_amount(wanted)}, and {_amount(max(0.0, most - spent))} of the {_amount(most)}"
        " that this token may have in 24 hours are left",
        hint=f"there is room in {_shown(wait)}",
        retry_after=wait,
    )


def _until(connection: Connection, where: ColumnElement[bool], over: float) -> float:
    """When the job was asked for with which, and all before it, so much goes out of the count."""
    rows = connection.execute(select(SPENT.c.at, SPENT.c.megapixel_frames).where(where).order_by(SPENT.c.at)).all()
    gone = accumulate(float(amount) for _, amount in rows)
    return next(float(at) for (at, _), amount in zip(rows, gone, strict=True) if amount >= over - GRAIN)


def spend(connection: Connection, ask: Ask, job: Job) -> None:
    """Write down what an accepted job asks for, where somebody counts it."""
    if ask.megapixel_frames is not None:
        amount = ask.plan.megapixel_frames
        values = {"job": job.number, "token": job.token, "at": job.created, "megapixel_frames": amount}
        connection.execute(insert(SPENT).values(values))


def refund(connection: Connection, job: Job, ending: Ending) -> None:
    """Give back what a job asked for that never began, or that failed through no wish of its client."""
    if job.attempt == 0 or (ending.state == "failed" and ending != LATE):
        connection.execute(delete(SPENT).where(SPENT.c.job == job.number))


def forget(connection: Connection, now: float) -> None:
    """Delete what no longer counts."""
    connection.execute(delete(SPENT).where(SPENT.c.at <= now - DAY))


def _amount(megapixel_frames: float) -> str:
    """To four places, never as 1e+06."""
    return f"{round(megapixel_frames, 4):.12g}"


def _shown(seconds: float) -> str:
    """A time as people say it, rounded up."""
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{math.ceil(minutes / 60)} h"
