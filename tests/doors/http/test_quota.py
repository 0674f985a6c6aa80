"""What one token may have in a day and at once, as its client and as several servers of one database see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from ltx2.doors.http.caller import Caller
from ltx2.doors.http.service import Duty
from tests.doors.http.fixtures import Names, app_of, client_of, make_service
from tests.doors.http.running import run, serve
from tests.doors.http.studio import Studio, studio, wait_for
from tests.jobs.server import Server

IDLE_TWO = Duty(workers={"one": "ready", "two": "ready"})
SMALL = {"model": "small", "width": 128, "height": 128, "frames": 9, "preset": "distilled"}
AMOUNT = 128 * 128 * 9 / 1e6


class Limited(Names):
    """Keys under which `ann` may have two small videos in a day, one at a time."""

    def find(self, presented: str) -> Caller | None:
        found = super().find(presented)
        if found is None or found.name != "ann":
            return found
        return replace(found, running=1, megapixel_frames=2 * AMOUNT)


@pytest.fixture
def limited(place: Studio) -> Iterator[TestClient]:
    with client_of(app_of(make_service(place, keys=Limited()))) as client:
        yield client


def test_a_spent_day_is_told_with_the_limit_and_the_time(place: Studio, limited: TestClient) -> None:
    for number in range(2):
        assert limited.post("/v1/videos", json=SMALL | {"prompt": f"{number}"}).status_code == 200
    job = limited.get("/v1/videos").json()["data"][0]["id"]
    wait_for(lambda: limited.get(f"/v1/videos/{job}").json()["status"] == "completed")
    assert limited.delete(f"/v1/videos/{job}").status_code == 200
    spent = limited.post("/v1/videos", json=SMALL | {"prompt": "x"})
    error = spent.json()["error"]
    assert spent.status_code == 429 and (error["code"], error["param"]) == ("quota_exceeded", "megapixel_frames")
    assert "0 of the 0.2949 " in error["message"] and "24 h" in error["message"]
    assert spent.headers["Retry-After"] == "120" and spent.headers["x-should-retry"] == "false"
    original = limited.get("/generate_web", params={"prompt": "x", "model": "small", "width": 64, "height": 64})
    assert original.status_code == 429 and original.json()["error"]["code"] == "quota_exceeded"
    large = limited.post("/v1/videos", json=SMALL | {"prompt": "x", "frames": 25})
    assert large.status_code == 429 and "smaller or shorter" in large.json()["error"]["message"]
    assert len(limited.get("/v1/videos").json()["data"]) == 1, "nothing was half accepted"
    other = limited.post("/v1/videos", json=SMALL | {"prompt": "x"}, headers={"Authorization": "Bearer bob"})
    assert other.status_code == 200


def test_the_jobs_beyond_those_at_once_wait_and_let_others_pass(tmp_path: Path) -> None:
    with (
        studio(tmp_path, tmp_path / "jobs.db", workers=2) as place,
        client_of(app_of(replace(make_service(place, keys=Limited()), duty=IDLE_TWO))) as ann,
    ):
        place.engine.go.clear()
        slow = SMALL | {"model": "dev", "preset": "dev"}
        jobs = [ann.post("/v1/videos", json=slow | {"prompt": f"{number}"}).json()["id"] for number in range(2)]
        alone = ann.post("/v1/estimate", json=slow | {"prompt": "x"}).json()["seconds"]
        wait_for(lambda: place.engine.started == ["0"])
        held = ann.get(f"/v1/videos/{jobs[1]}").json()
        assert (held["queue_position"], held["state"]) == (0, "queued")
        assert held["eta_seconds"] == pytest.approx(1.5 * alone, abs=0.06), "after the one that runs, half done"
        ann.post("/v1/videos", json=slow | {"prompt": "other"}, headers={"Authorization": "Bearer bob"})
        wait_for(lambda: len(place.engine.started) == 2)
        assert place.engine.started == ["0", "other"]
        assert ann.get(f"/v1/videos/{jobs[1]}").json()["state"] == "queued"
        place.engine.go.set()
        wait_for(lambda: ann.get(f"/v1/videos/{jobs[1]}").json()["state"] == "done")


def test_two_servers_of_one_database_count_together(tmp_path: Path, server: Server) -> None:
    db = ("--db", server.fresh())
    limits = ("--megapixel-frames", f"{7.5 * AMOUNT:.6f}", "--running", "1")
    token = run("tokens", "add", "ann", *limits, *db, "--data", str(tmp_path)).stdout.strip()
    with (
        serve(tmp_path / "one", "--no-workers", *db) as one,
        serve(tmp_path / "two", "--no-workers", *db) as two,
        ThreadPoolExecutor(8) as pool,
    ):
        headers = {"Authorization": f"Bearer {token}"}
        asked = SMALL | {"model": "tiny"}

        def submit(number: int) -> int:
            to = (one, two)[number % 2]
            return to.ask("POST", "/v1/videos", json=asked | {"prompt": f"{number}"}, headers=headers).status_code

        assert Counter(pool.map(submit, range(24))) == {200: 7, 429: 17}
        assert len(two.ask("GET", "/v1/videos", headers=headers).json()["data"]) == 7
