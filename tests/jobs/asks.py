"""Asks for small videos, and what the tests read straight from the tables."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import select

from ltx2.jobs.job import Ask, Job
from ltx2.jobs.store import Store
from ltx2.jobs.tables import OUTBOX
from ltx2.spec.card import Card
from ltx2.spec.plan import Plan, resolve
from ltx2.spec.request import request

HOOK = "http://receiver.test/hook"


@functools.cache
def plan(prompt: str = "a cat") -> Plan:
    return resolve(request(prompt=prompt, preset="distilled", seed=1), Card(name="stand-in", kind="distilled"))


def ask(token: str = "ann", prompt: str = "a cat", **fields: Any) -> Ask:
    return Ask(token, plan(prompt), {"prompt": prompt}, **fields)


def add(store: Store, token: str = "ann", prompt: str = "a cat", **fields: Any) -> Job:
    return store.submit(ask(token, prompt, **fields)).job


def letters(store: Store, job: Job | None = None) -> list[Any]:
    """Rows of the outbox, all or those of one job."""
    query = select(OUTBOX) if job is None else select(OUTBOX).where(OUTBOX.c.job == job.number)
    return store.database.read(lambda connection: list(connection.execute(query.order_by(OUTBOX.c.number))))


def wait_for(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until something holds; fail when it takes too long."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
