"""What an operator reads in the metrics of jobs, and the pauses that a full queue names."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from ltx2.doors.http import tally
from ltx2.doors.http.app import create_app
from ltx2.doors.http.tally import Tally
from ltx2.jobs.job import Ending, Job
from tests.doors.http.fixtures import Make, client_of, make_service
from tests.doors.http.studio import Studio, studio, wait_for
from tests.doors.http.test_limits import knob_app


def read(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^(ltx2_\S+) (\S+)$", text, re.MULTILINE)}


def test_E2_metrics_tell_what_became_of_jobs(place: Studio) -> None:
    app = create_app(make_service(place))
    with client_of(app, "admin") as api:

        def told() -> dict[str, float]:
            return read(api.get("/metrics").text)

        assert told()["ltx2_gpu_seconds_total"] == 0
        for prompt in ("a cat", "a dog", "fail"):
            api.post("/v1/videos", json={"prompt": prompt}, headers={"Prefer": "wait=30"})
        gone = api.post("/v1/videos", json={"prompt": "gone"}, headers={"Prefer": "wait=30"}).json()["id"]
        api.delete(f"/v1/videos/{gone}")
        place.sweep()
        for _ in range(2):
            found = told()
            assert found['ltx2_jobs_ended_total{code="",state="done"}'] == 3, "a deleted one counts, and none twice"
            assert found['ltx2_jobs_ended_total{code="failed",state="failed"}'] == 1
            assert found["ltx2_job_attempts_total"] == 4 and found["ltx2_jobs_retried_total"] == 0
            assert found["ltx2_gpu_seconds_total"] == pytest.approx(3 * 0.25)
            assert found["ltx2_cost_dollars_total"] == pytest.approx(3 * 0.25 / 3600 * 4.54)
            assert found["ltx2_megapixel_frames_total"] > 0
            assert found["ltx2_job_run_seconds_count"] == found["ltx2_job_wait_seconds_count"] == 4
        assert found["ltx2_queue_wait_seconds"] == 0 and found["ltx2_webhooks_pending"] == 0
        place.engine.go.clear()
        for prompt in ("runs", "waits"):
            api.post("/v1/videos", json={"prompt": prompt})
        time.sleep(0.2)
        assert 0.1 < told()["ltx2_queue_wait_seconds"] < 30


def test_jobs_that_nobody_looks_at_are_counted(place: Studio) -> None:
    with client_of(create_app(make_service(place))) as api:
        api.post("/v1/videos", json={"prompt": "x"}, headers={"Prefer": "wait=30"})
    app = create_app(make_service(place))
    with client_of(app, "admin") as api:
        place.store.submit(wanted(place))
        wait_for(lambda: place.store.counts().get("done") == 2)
        found = read(api.get("/metrics").text)
        assert found['ltx2_jobs_ended_total{code="",state="done"}'] == 1, "and not those of before this server"
        assert len(api.get("/v1/videos").json()["data"]) == 0
    with client_of(app) as api:
        api.get("/v1/videos")
    with client_of(app, "admin") as api:
        assert read(api.get("/metrics").text)['ltx2_jobs_ended_total{code="",state="done"}'] == 1


def wanted(place: Studio) -> Any:
    from ltx2.jobs.job import Ask
    from ltx2.spec.plan import Plan

    job = place.store.page("ann")[0]
    return Ask("ann", Plan.from_dict(job.plan), {"prompt": "y"})


@pytest.fixture
def job(place: Studio, made: Make) -> Job:
    return place.store.get("ann", made()["id"])


def numbers(registry: CollectorRegistry) -> dict[str, float]:
    return read(generate_latest(registry).decode())


def test_every_job_counts_once_in_whatever_order_commits_are_seen(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MOST", 10)
    now, rows = time.time() + 10, list[Job]()

    def ended(since: float, limit: int) -> Sequence[Job]:
        return [row for row in sorted(rows, key=lambda row: row.finished or 0) if (row.finished or 0) > since][:limit]

    registry = CollectorRegistry()
    counts = Tally(registry, ended)
    for number in range(35):
        rows.append(replace(job, number=1000 + number, finished=now + number * 0.01, attempt=1 + (number == 3)))
    counts.look()
    rows.append(replace(job, number=2000, finished=now - 5))
    rows.append(replace(job, number=2001, finished=now + 4000))
    counts.look()
    for row in rows:
        counts.count(row)
    found = numbers(registry)
    assert found['ltx2_jobs_ended_total{code="",state="done"}'] == 37
    assert found["ltx2_job_attempts_total"] == 38 and found["ltx2_jobs_retried_total"] == 1
    assert not counts.count(replace(job, number=1, finished=now - 9999)), "before this server began"


def test_errors_make_no_endless_series_and_warnings_are_counted(job: Job) -> None:
    registry = CollectorRegistry()
    counts, now = Tally(registry), time.time() + 1
    failed = Ending.of("failed", "out_of_memory", "x")
    for number, code in enumerate(("out_of_memory", "new_a", "new_b")):
        error = (failed.error or {}) | {"code": code}
        counts.count(replace(job, number=number, finished=now, state="failed", result=None, error=error))
    black = (job.result or {}) | {"warnings": ["the picture is black"]}
    counts.count(replace(job, number=9, finished=now, result=black))
    found = numbers(registry)
    assert found['ltx2_jobs_ended_total{code="out_of_memory",state="failed"}'] == 1
    assert found['ltx2_jobs_ended_total{code="other",state="failed"}'] == 2
    assert found["ltx2_jobs_with_warnings_total"] == 1


def test_the_pace_of_recent_jobs(job: Job) -> None:
    counts, now = Tally(CollectorRegistry()), time.time() + 1
    assert counts.pause() is None and counts.workers() == 1
    for number in range(5):
        name = "ann" if number % 2 else "bob"
        counts.count(replace(job, number=number, finished=now + 10 * number, token=name, worker=f"w{number % 3}"))
    assert counts.pause() == pytest.approx(10) and counts.pause("ann") == pytest.approx(20)
    assert counts.pause("eve") is None and counts.workers() == 3
    counts.count(replace(job, number=99, finished=now + 5000))
    assert counts.pause() is None, "what was long ago says nothing of now"


def test_D11_retry_after_is_learned_from_the_jobs_that_ended(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    with studio(tmp_path / "other", tmp_path / "jobs.db", workers=0, depth=3) as place:
        app = knob_app(place, open_jobs=2)
        counts: Tally = app.state.tally
        with client_of(app) as api:
            for prompt in "ab":
                api.post("/v1/videos", json={"prompt": prompt})

            def said() -> int:
                full = api.post("/v1/videos", json={"prompt": "x"})
                assert full.status_code == 429 and full.json()["error"]["code"] == "queue_full"
                return int(full.headers["Retry-After"])

            assert said() == 30, "nobody knows yet"
            now = time.time() + 1
            for number in range(4):
                counts.count(replace(job, number=number, finished=now + 7 * number, token=("ann", "bob")[number % 2]))
            assert said() == 14, "one of this token's own jobs must end"
            with client_of(app, "bob") as other:
                other.post("/v1/videos", json={"prompt": "c"})
                full = other.post("/v1/videos", json={"prompt": "d"})
                assert full.headers["Retry-After"] == "7", "any job may"
            for number in range(4, 8):
                counts.count(replace(job, number=number, finished=now + 590 + 200 * number))
            assert said() == 120


def test_two_workers_halve_the_wait(place: Studio, job: Job) -> None:
    app = create_app(make_service(place))
    place.engine.go.clear()
    with client_of(app) as api:

        def eta(prompt: str) -> float:
            return api.post("/v1/videos", json={"prompt": prompt}).json()["eta_seconds"]

        api.get("/v1/videos")
        api.post("/v1/videos", json={"prompt": "runs"})
        wait_for(lambda: place.engine.started[1:])
        for number in range(20):
            api.post("/v1/videos", json={"prompt": f"{number}"})
        one = eta("x")
        for number in range(2):
            app.state.tally.count(replace(job, number=900 + number, finished=time.time() + 1, worker=f"w{number}"))
        # 0.25 s each; 20 before it and one half done, then itself.
        assert one == pytest.approx(0.25 * (20.5 + 1), abs=0.06)
        assert eta("y") == pytest.approx(0.25 * (21.5 / 2 + 1), abs=0.06)
