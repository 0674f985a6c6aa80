"""Where a queued job stands in line, and how long it waits when tokens may have only so many jobs running."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select

from ltx2.jobs.job import Job
from ltx2.jobs.tables import JOBS

HALVINGS = 40


@dataclass(frozen=True)
class Party:
    """A token's jobs as a queued job sees them: `ahead` of it in line, `running`, and the `most` that may run at once."""

    ahead: int
    running: int = 0
    most: int | None = None

    def begun(self, time: float) -> float:
        """How many of those ahead can have begun after a time; the unit of time is what one job takes."""
        if self.most is None:
            return self.ahead
        return min(self.ahead, max(0, self.most - self.running) + self.most * time)

    def held(self) -> float:
        """How long the token's limit alone keeps its next job from beginning; those that run are half done."""
        if self.most is None or self.ahead + self.running < self.most:
            return 0.0
        return (self.ahead + self.running - self.most + 0.5) / self.most


@dataclass(frozen=True)
class Place:
    """The place of a queued job: its own token's jobs, those of others, as far as they are ahead of it."""

    own: Party
    others: tuple[Party, ...] = ()

    @property
    def ahead(self) -> int:
        """Jobs ahead in line. One whose token has enough running lets others pass, so it may begin after this one."""
        return sum(party.ahead for party in (self.own, *self.others))

    def wait(self, workers: int) -> float:
        """How long until the job begins, in units of what one takes: all are taken to be alike, those under way half done.

        It begins when the workers have ended more jobs than can begin before it, and its token has room for it. What
        comes later and passes it is not foreseen: priorities above its own, and tokens that are new in line.
        """
        soonest, latest = 0.0, (self.ahead + 0.5) / workers
        # What can have begun before grows with time, but ever more slowly: there is one moment when the workers catch up.
        for _ in range(HALVINGS):
            time = (soonest + latest) / 2
            if workers * time < 0.5 + sum(party.begun(time) for party in (self.own, *self.others)):
                soonest = time
            else:
                latest = time
        return max(latest, self.own.held())


def place(connection: Connection, job: Job) -> Place:
    """Where a queued job stands: one count, and one for each token ahead of it that has a limit of running jobs."""
    ahead = and_(JOBS.c.state == "queued", _before(job))
    number = connection.execute(select(func.count()).select_from(JOBS).where(ahead)).scalar_one()
    limited = dict(_limited(connection, ahead))
    # Jobs that come between the two counts must not make it negative.
    unlimited = max(0, number - sum(party.ahead for party in limited.values()))
    mine = limited.pop(job.token, Party(0))
    if job.most_running is not None:
        mine = Party(mine.ahead, _running(connection, (job.token,)).get(job.token, 0), job.most_running)
    return Place(mine, (Party(unlimited), *limited.values()))


def _limited(connection: Connection, ahead: ColumnElement[bool]) -> Iterator[tuple[str, Party]]:
    most = func.max(JOBS.c.most_running)
    where = and_(ahead, JOBS.c.most_running.is_not(None))
    rows = connection.execute(select(JOBS.c.token, func.count(), most).where(where).group_by(JOBS.c.token)).all()
    running = _running(connection, [token for token, _, _ in rows]) if rows else {}
    for token, number, may in rows:
        yield token, Party(number, running.get(token, 0), may)


def _running(connection: Connection, tokens: Sequence[str]) -> dict[str, int]:
    where = and_(JOBS.c.state == "running", JOBS.c.token.in_(tokens))
    rows = connection.execute(select(JOBS.c.token, func.count().label("number")).where(where).group_by(JOBS.c.token))
    return {row.token: row.number for row in rows}


def _before(job: Job) -> ColumnElement[bool]:
    """Whether a queued job is claimed before this one if both may begin."""
    return or_(
        JOBS.c.priority > job.priority,
        and_(JOBS.c.priority == job.priority, JOBS.c.turn < job.turn),
        and_(JOBS.c.priority == job.priority, JOBS.c.turn == job.turn, JOBS.c.number < job.number),
    )
