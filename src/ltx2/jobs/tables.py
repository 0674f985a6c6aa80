"""The tables of the queue, for SQLite and PostgreSQL alike, and the steps that bring an older database up to date."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.schema import CreateColumn

from ltx2.jobs.errors import WrongStore

METADATA = MetaData()
NUMBER = BigInteger().with_variant(Integer(), "sqlite")
DOCUMENT = JSON(none_as_null=True)

SCHEMA = Table("ltx2_schema", METADATA, Column("version", Integer, nullable=False))

JOBS = Table(
    "ltx2_jobs",
    METADATA,
    Column("number", NUMBER, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False),
    Column("token", Text, nullable=False),
    Column("key", Text),
    Column("digest", Text, nullable=False),
    Column("request", DOCUMENT, nullable=False),
    Column("plan", DOCUMENT, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("turn", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("worker", Text),
    Column("lease_until", Double),
    Column("cancel_asked", Boolean, nullable=False),
    Column("deadline", Double),
    Column("progress", DOCUMENT),
    Column("version", Integer, nullable=False),
    Column("result", DOCUMENT),
    Column("error", DOCUMENT),
    Column("published", Integer),
    Column("webhook", Text),
    Column("removed", Boolean, nullable=False),
    Column("created", Double, nullable=False),
    Column("started", Double),
    Column("finished", Double),
    Column("expires", Double),
    Column("most_running", Integer),
    UniqueConstraint("token", "id"),
    UniqueConstraint("token", "key"),
    Index("ltx2_jobs_token", "token", "number"),
    Index("ltx2_jobs_twins", "token", "digest"),
    Index("ltx2_jobs_finished", "finished"),
    # The number names a folder: SQLite would give that of a deleted row away again.
    sqlite_autoincrement=True,
)
# In the order in which jobs are claimed, so that a claim reads one row however long the queue is.
Index("ltx2_jobs_queue", JOBS.c.state, JOBS.c.priority.desc(), JOBS.c.turn, JOBS.c.number)

OUTBOX = Table(
    "ltx2_outbox",
    METADATA,
    Column("number", NUMBER, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("job", BigInteger, nullable=False),
    Column("token", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("next_at", Double, nullable=False),
    Column("lease_until", Double),
    Column("created", Double, nullable=False),
    Index("ltx2_outbox_due", "state", "next_at"),
    Index("ltx2_outbox_host", "host", "state"),
    sqlite_autoincrement=True,
)

# Since version 2. Apart from the others, so that the step to version 1 stays what it was.
SINCE_2 = MetaData()
TOKENS = Table(
    "ltx2_tokens",
    SINCE_2,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("scopes", DOCUMENT, nullable=False),
    Column("limit", Integer),
    Column("rpm", Integer),
    Column("webhook_secret", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("expires", Double),
    Column("revoked", Double),
    Column("running", Integer),
    Column("megapixel_frames", Double),
    Index("ltx2_tokens_name", "name"),
)

# Since version 3: what tokens with a daily limit have asked for. Apart from the jobs, which their clients can delete.
SINCE_3 = MetaData()
SPENT = Table(
    "ltx2_spent",
    SINCE_3,
    Column("job", BigInteger, primary_key=True, autoincrement=False),
    Column("token", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("megapixel_frames", Double, nullable=False),
    Index("ltx2_spent_token", "token", "at"),
    Index("ltx2_spent_at", "at"),
)
LIMITS = (JOBS.c.most_running, TOKENS.c.running, TOKENS.c.megapixel_frames)
# Whether anything may begin is asked many times a second, and answered from this alone, however long the queue is.
WAITING = Index("ltx2_jobs_waiting", JOBS.c.state, JOBS.c.token, JOBS.c.most_running)

Step = Callable[[Connection], None]


def add_limits(connection: Connection) -> None:
    """Version 3: limits of running jobs and of megapixel-frames a day. New tables have the columns already."""
    SINCE_3.create_all(connection)
    for column in LIMITS:
        table = column.table.name
        if column.name not in {found["name"] for found in inspect(connection).get_columns(table)}:
            what = CreateColumn(column).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN {what}")
    WAITING.create(connection, checkfirst=True)


# Each step leads from the version that is its index to the next one; published steps are never changed.
STEPS: tuple[Step, ...] = (METADATA.create_all, SINCE_2.create_all, add_limits)


def migrate(connection: Connection, steps: Sequence[Step] = STEPS) -> int:
    """Bring the tables up to date inside the caller's transaction; returns the version found before.

    Raises WrongStore when a newer version of this package has written the database.
    """
    SCHEMA.create(connection, checkfirst=True)
    found = version(connection, steps)
    for step in steps[found or 0 :]:
        step(connection)
    if found is None:
        connection.execute(insert(SCHEMA).values(version=len(steps)))
    elif found < len(steps):
        connection.execute(update(SCHEMA).values(version=len(steps)))
    return found or 0


def version(connection: Connection, steps: Sequence[Step] = STEPS) -> int | None:
    """The version of the tables that are there, None where there are none. Raises WrongStore when it is a newer one."""
    if not inspect(connection).has_table(SCHEMA.name):
        return None
    found = connection.execute(select(SCHEMA.c.version)).scalar_one_or_none()
    if found is not None and found > len(steps):
        raise WrongStore(
            f"the database has schema version {found}, this program knows {len(steps)}",
            hint="run the newer version of ltx2, or restore the backup from before the upgrade",
        )
    return found
