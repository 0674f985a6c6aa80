"""The query by which KEDA decides how many workers there should be."""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy import text

from ltx2.jobs.store import Store
from tests.jobs.asks import add

MANIFESTS = (Path(__file__).parents[2] / "deploy" / "kubernetes.yaml").read_text()


def test_the_scaler_counts_open_jobs(store: Store) -> None:
    (query,) = re.findall(r'query: "(.*)"', MANIFESTS)
    for _ in range(3):
        add(store)
    store.cancel("ann", add(store).id)
    assert store.claim("w")
    assert store.database.read(lambda connection: connection.execute(text(query)).scalar_one()) == 3
