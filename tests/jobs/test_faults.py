"""Faults with real processes: workers killed, stopped and resumed; and the controls that show that the tests would see.

Nothing is lost, nothing stays stuck, nothing is published twice, every webhook arrives.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ltx2.jobs import outbox
from ltx2.jobs.courier import carry
from ltx2.jobs.job import Job, Rules
from ltx2.jobs.keeper import keep
from ltx2.jobs.shelf import Shelf
from ltx2.jobs.store import Store
from tests.jobs.asks import HOOK, add, ask, letters, wait_for
from tests.jobs.server import Server
from tests.jobs.test_outbox import secrets

RULES = Rules(lease=0.8, attempts=50)
Foreman = subprocess.Popen[str]


class House:
    """A store, its worker processes, and the threads of the house; all of them end with the test."""

    def __init__(self, url: str, folder: Path, foreman: Foreman):
        self.store = Store(url, RULES)
        self.shelf = Shelf(folder / "shelf")
        self.shelf.folder.mkdir()
        self.log = folder / "log"
        self.log.touch()
        self.url = url
        self.foreman = foreman
        self.workers: list[int] = []
        self.stop = threading.Event()
        self.threads: list[threading.Thread] = []
        self.delivered: Counter[str] = Counter()

    def hire(self, seconds: float, **given: Any) -> int:
        """Start a worker whose jobs take `seconds`; returns its process."""
        given |= {"url": self.url, "folder": str(self.shelf.folder), "log": str(self.log)}
        given |= {"seconds": seconds, "rules": asdict(RULES)}
        assert self.foreman.stdin and self.foreman.stdout
        self.foreman.stdin.write(json.dumps(given) + "\n")
        self.foreman.stdin.flush()
        self.workers.append(int(self.foreman.stdout.readline()))
        return self.workers[-1]

    def start_keeper(self) -> None:
        self._start(keep, self.store, self.shelf, self.stop, 0.1)

    def start_courier(self) -> None:
        def send(url: str, headers: Mapping[str, str], body: bytes) -> int:
            if random.random() < 0.2:
                return 500
            self.delivered[json.loads(body)["data"]["id"] + " " + headers["webhook-id"]] += 1
            return 200

        self._start(carry, self.store, send, secrets, self.stop, 0.02)

    def close(self) -> None:
        self.stop.set()
        for worker in self.workers:
            kill(worker)
        for thread in self.threads:
            thread.join()
        self.store.close()

    def jobs(self) -> list[Job]:
        return list(self.store.page("ann", limit=1000))

    def open(self) -> list[Job]:
        return [job for job in self.jobs() if job.open]

    def published(self) -> Counter[int]:
        """How often workers were told that their files of a job count."""
        lines = (line.split() for line in self.log.read_text().splitlines())
        return Counter(int(number) for number, _, state in lines if state == "done")

    def _start(self, act: Any, *args: Any) -> None:
        self.threads.append(threading.Thread(target=act, args=args))
        self.threads[-1].start()


@pytest.fixture(scope="module")
def foreman() -> Iterator[Foreman]:
    command = [sys.executable, "-m", "tests.jobs.stand_in"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


@pytest.fixture
def house(url: str, tmp_path: Path, foreman: Foreman) -> Iterator[House]:
    with contextlib.closing(House(url, tmp_path, foreman)) as house:
        yield house


def kill(worker: int, how: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a worker that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, how)


def check(house: House) -> None:
    """The oracle: what must hold when the dust has settled."""
    jobs = house.jobs()
    assert [job.id for job in jobs if job.open] == [], "stuck"
    for job in jobs:
        posted = letters(house.store, job)
        assert len(posted) == 1, f"job {job.number} ended {len(posted)} times"
        if job.state == "done":
            video = house.shelf.video(job)
            assert video and video.read_text() == f"{job.number} {job.published}\n" * 4
        else:
            assert job.state == "cancelled" and job.published is None
    assert all(times == 1 for times in house.published().values())


@pytest.mark.parametrize(("jobs", "kills"), [(40, 12), pytest.param(300, 200, marks=pytest.mark.slow)])
def test_killed_workers_lose_nothing_and_publish_nothing_twice(
    house: House, monkeypatch: pytest.MonkeyPatch, jobs: int, kills: int
) -> None:
    monkeypatch.setattr(outbox, "PAUSES", (0.05,) * 30)
    monkeypatch.setattr(outbox, "REST", 0.02)
    chance = random.Random(5)
    asks = [ask(key=f"k{index}", prompt=f"cat {index}", webhook=HOOK) for index in range(jobs)]
    ids = {house.store.submit(each).job.id for each in [*asks, *asks]}
    assert len(ids) == jobs
    house.start_keeper()
    house.start_courier()
    crew = [house.hire(chance.uniform(0.1, 0.4)) for _ in range(3)]
    wanted = chance.sample(sorted(ids), jobs // 10)
    for turn in range(kills):
        # Kill those that have work: before, the time goes into starting Python.
        wait_for(lambda: house.store.counts().get("running", 0) >= 2 or not house.open())
        time.sleep(chance.uniform(0.0, 0.2))
        place = chance.randrange(3)
        kill(crew[place])
        crew[place] = house.hire(chance.uniform(0.1, 0.4))
        if turn < len(wanted):
            house.store.cancel("ann", wanted[turn])
    wait_for(lambda: not house.open() and not house.store.undelivered(), 120)
    check(house)
    assert {job.id for job in house.jobs()} == ids
    assert {name.split()[0] for name in house.delivered} == ids and len(house.delivered) == jobs
    assert sum(job.attempt for job in house.jobs()) > jobs - len(wanted), "no kill hit a running job"


def zombie(house: House, **given: Any) -> None:
    """A worker is stopped in its job, another one makes the job, the first one is resumed and comes to its end."""
    job = add(house.store, webhook=HOOK)
    old = house.hire(0.8, **given)
    wait_for(lambda: house.store.get("ann", job.id).progress is not None)
    kill(old, signal.SIGSTOP)
    house.start_keeper()
    wait_for(lambda: house.store.get("ann", job.id).state == "queued")
    house.hire(0.1)
    wait_for(lambda: house.store.get("ann", job.id).state == "done")
    assert house.store.get("ann", job.id).published == 2
    kill(old, signal.SIGCONT)
    # A zombie that is kept out goes on to the next job: when that is done, it has met the fence.
    kill(house.workers[-1])
    following = add(house.store, webhook=HOOK)
    wait_for(lambda: not house.store.get("ann", following.id).open)


def test_the_fence_keeps_a_resumed_zombie_from_publishing(house: House) -> None:
    zombie(house)
    check(house)
    assert not (house.shelf.folder / "1" / "1").exists()


def test_control_without_the_fence_the_zombie_publishes_again(house: House) -> None:
    zombie(house, no_fence=True)
    with pytest.raises(AssertionError, match="ended 2 times"):
        check(house)


def test_control_without_the_sweeper_jobs_of_killed_workers_stay_stuck(house: House) -> None:
    for _ in range(4):
        add(house.store, webhook=HOOK)
    doomed = house.hire(5.0)
    wait_for(lambda: house.store.counts().get("running") == 1)
    kill(doomed)
    house.hire(0.05)
    wait_for(lambda: house.store.counts().get("done") == 3)
    time.sleep(RULES.lease + 0.3)
    with pytest.raises(AssertionError, match="stuck"):
        check(house)
    house.start_keeper()
    wait_for(lambda: not house.open())
    check(house)


def test_bug_3_a_killed_server_stops_no_worker(server: Server, tmp_path: Path, foreman: Foreman) -> None:
    with contextlib.closing(House(server.fresh(), tmp_path, foreman)) as house:
        for _ in range(12):
            add(house.store, webhook=HOOK)
        house.start_keeper()
        workers = [house.hire(0.2) for _ in range(2)]
        wait_for(lambda: house.store.counts().get("done", 0) >= 2)
        server.kill()
        time.sleep(0.5)
        server.start()
        wait_for(lambda: not house.open(), 60)
        assert all(Path(f"/proc/{worker}").exists() for worker in workers)
        assert house.store.counts() == {"done": 12}
        check(house)
