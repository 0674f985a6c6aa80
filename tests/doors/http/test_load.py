"""The load run of `benchmarks/http_load.py`, smaller: fairness, readers, memory (row D10 through the whole service)."""

from __future__ import annotations

from benchmarks import http_load


def test_D10_load() -> None:
    words = ["--jobs", "45", "--readers", "40", "--downloads", "30", "--workers", "2", "--seconds", "0.02"]
    found = http_load.measure(http_load.parse(words))
    assert found["jobs"] == 45
    assert found["wait_ratio"] <= 2, found
    assert found["readers"] == found["readers_that_heard_the_end"] == 40
    assert found["downloads"] == 30
    assert found["memory_growth_mib"] <= 20, found
    # The benchmark itself asks for less than 100 ms, of a machine that does nothing else.
    assert found["livez_ms"]["p99"] < 2000, found
