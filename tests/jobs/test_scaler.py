"""The query by which KEDA decides how many workers there should be."""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy import text

from ltx2.jobs.store import Store
from tests.jobs.asks import add

MANIFESTS = (Path(__file__).parents[2] / "deploy" / "kubernetes.yaml").read_text()


def asked(store: Store) -> int:
    (query,) = re.findall(r'query: "(.*)"', MANIFESTS)
    return store.database.read(lambda connection: connection.execute(text(query)).scalar_one())


def test_the_scaler_counts_open_jobs(store: Store) -> None:
    assert asked(store) == 0
    for _ in range(3):
        add(store)
    store.cancel("ann", add(store).id)
    assert store.claim("w")
    assert asked(store) == 3


def test_no_worker_is_started_for_a_job_that_must_wait_for_its_token(store: Store) -> None:
    for number in range(5):
        add(store, "ann", f"{number}", running=2)
    add(store, "bob", running=2)
    assert asked(store) == 3
    claims = [store.claim(f"w{worker}") for worker in range(3)]
    assert all(claims) and asked(store) == 3, "those that run and those that may begin"
