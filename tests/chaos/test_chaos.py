"""Whole services under fire: API, workers, their engines and the database are killed at random while clients ask.

Short here; `make chaos` does it with 200 kills over 300 jobs.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.chaos.town import Foreman, Storm, Town, children, kill
from tests.jobs.asks import wait_for
from tests.jobs.server import Server

MakeTown = Callable[..., Town]
WEIGHTS = {"api": 2, "worker": 4, "engine": 4}


@pytest.fixture(scope="module")
def foreman() -> Iterator[Foreman]:
    command = [sys.executable, "-m", "tests.chaos.roles"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin
        process.stdin.close()


@pytest.fixture
def make_town(url: str, tmp_path: Path, foreman: Foreman, request: pytest.FixtureRequest) -> Iterator[MakeTown]:
    with contextlib.ExitStack() as stack:

        def make(workers: int = 3, **given: bool) -> Town:
            server: Server | None = request.getfixturevalue("server") if url.startswith("postgresql") else None
            town = Town(url, tmp_path / "town", foreman, server, **given)  # type: ignore[arg-type]
            stack.callback(town.close)
            for _ in range(workers):
                town.hire()
            return town

        yield make


def storm(town: Town, jobs: int, strikes: Sequence[str]) -> None:
    figures = Storm(jobs, strikes).rage(town)
    print(json.dumps({"database": town.store.database.url.get_backend_name(), **figures}))
    assert figures["attempts of the done"] > figures["done"], "no kill hit a running job"


def test_e1_e2_i2_a_kill_of_each_process_loses_nothing(make_town: MakeTown) -> None:
    town = make_town(workers=2)
    storm(town, 8, ["engine", "worker", "api", *(["database"] if town.server else [])])


@pytest.mark.slow
def test_e1_e2_i2_two_hundred_kills_lose_nothing(make_town: MakeTown) -> None:
    town, chance = make_town(workers=3), random.Random(5)
    weights = WEIGHTS | ({"database": 1} if town.server else {})
    storm(town, 300, chance.choices([*weights], [*weights.values()], k=200))


def test_control_without_a_keeper_the_jobs_of_killed_workers_stay_stuck(make_town: MakeTown) -> None:
    town = make_town(workers=0, keeper=False)
    doomed = town.hire(low=20.0, high=20.0)
    ids = {town.client.submit(number, f"{town.receiver.origin}/hook") for number in range(2)}
    wait_for(lambda: town.store.counts().get("running") == 1)
    kill(doomed)
    town.hire(0.1, 0.1)
    wait_for(lambda: town.store.counts().get("done") == 1)
    time.sleep(2.0)
    with pytest.raises(AssertionError, match="stuck"):
        town.check(ids)


def test_control_without_the_fence_a_resumed_worker_publishes_twice(make_town: MakeTown) -> None:
    town = make_town(workers=0, fence=False)
    old = town.hire(1.0, 1.0)
    ids = {town.client.submit(0, f"{town.receiver.origin}/hook")}
    # Stopped before its engine is at work, it would learn from its first beat that it has come too late.
    wait_for(lambda: any(job.progress for job in town.open()))
    kill(old, signal.SIGSTOP)
    town.hire(0.1, 0.1)
    wait_for(lambda: town.store.counts().get("done") == 1)
    kill(old, signal.SIGCONT)
    wait_for(lambda: sum(town.published().values()) == 2)
    with pytest.raises(AssertionError, match=r"ended 2 times|published twice"):
        town.check(ids)


def test_e11_no_engine_outlives_its_worker(make_town: MakeTown) -> None:
    town = make_town(workers=2)
    wait_for(lambda: all(len(children(worker)) == 1 for worker in town.workers))
    engines = [child for worker in town.workers for child in children(worker)]
    for worker in town.workers:
        kill(worker)
    begin = time.monotonic()
    wait_for(lambda: not any(alive(engine) for engine in engines), 5)
    print(f"gone after {time.monotonic() - begin:.2f} s")


def alive(process: int) -> bool:
    """Whether a process runs; a zombie that nobody has collected yet does not."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
