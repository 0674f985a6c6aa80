"""The commands themselves, `ltx2 serve --no-workers` and `ltx2 worker`, with their own times and the embedded model.

Part of `make chaos`: a killed worker is missed after its lease of 30 seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ltx2.jobs.store import Store
from tests.chaos.roles import SECRET
from tests.chaos.town import Client, Receiver, children, kill
from tests.jobs.asks import letters, wait_for

WISH = {"prompt": "a red ball bounces", "seed": 1, "width": 128, "height": 64, "frames": 33}
pytestmark = pytest.mark.slow


class Commands:
    """One API process and some workers on a database and a folder."""

    def __init__(self, url: str, folder: Path):
        self.url, self.folder = url, folder
        self.receiver = Receiver(refuse=0.0)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.client = Client(f"http://127.0.0.1:{self.port}")
        self.log = (folder / "log").open("ab")
        self.api = self.serve()
        self.workers: list[subprocess.Popen[bytes]] = []

    def serve(self) -> subprocess.Popen[bytes]:
        return self.run("serve", "--no-workers", "--port", str(self.port), "--receivers", self.receiver.origin)

    def hire(self) -> None:
        self.workers.append(self.run("worker"))

    def run(self, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ltx2", *words, "--data", str(self.folder / "data"), "--db", self.url]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "LTX2_MIN_FREE_GIB": "0", "LTX2_WEBHOOK_SECRET": SECRET}
        return subprocess.Popen(command, stdout=self.log, stderr=self.log, env=environment)

    def busy(self, store: Store) -> list[subprocess.Popen[bytes]]:
        """The workers in the middle of a job's first try: one whose second try is killed fails, and rightly so."""
        running = {
            int((job.worker or "").split("-")[-2])
            for job in store.page("local", limit=100)
            if job.state == "running" and job.tries == 1 and (job.progress or {}).get("phase", "").startswith("stage")
        }
        return [worker for worker in self.workers if worker.pid in running]

    def close(self) -> None:
        for process in [self.api, *self.workers]:
            kill(process.pid)
            process.wait()
        self.receiver.close()
        self.client.http.close()
        self.log.close()


@pytest.fixture
def commands(url: str, tmp_path: Path) -> Iterator[Commands]:
    with contextlib.closing(Commands(url, tmp_path)) as commands:
        yield commands


def test_e1_e2_the_embedded_model_under_kills_makes_every_video_once_and_the_same(commands: Commands) -> None:
    begin, hook = time.monotonic(), f"{commands.receiver.origin}/hook"
    for _ in range(2):
        commands.hire()

    def submit(number: int) -> str:
        headers = {"Idempotency-Key": f"key-{number}"}
        answer = commands.client.ask("POST", "/v1/videos", json={**WISH, "webhook": hook}, headers=headers)
        return answer.json()["id"]

    ids = [submit(number) for number in range(12)]
    with contextlib.closing(Store(commands.url)) as store:
        for what in ("engine", "worker", "api", "engine"):
            wait_for(lambda: commands.busy(store), 120)  # type: ignore[arg-type, return-value]
            victim = commands.busy(store)[0]
            if what == "engine":
                for child in children(victim.pid):
                    kill(child)
                wait_for(lambda: victim not in commands.busy(store), 60)  # noqa: B023
            elif what == "worker":
                kill(victim.pid)
                victim.wait()
                commands.workers.remove(victim)
                commands.hire()
            else:
                kill(commands.api.pid)
                commands.api.wait()
                commands.api = commands.serve()
        assert [submit(number) for number in range(12)] == ids, "asked again after all this: no new job"
        wait_for(lambda: not any(job.open for job in store.page("local", limit=100)), 300)
        wait_for(lambda: not store.undelivered(), 120)
        jobs = store.page("local", limit=100)
        assert {job.id for job in jobs} == set(ids)
        assert [job.error for job in jobs if job.state != "done"] == []
        assert all(len(letters(store, job)) == 1 for job in jobs)
        attempts = sum(job.attempt for job in jobs)
    assert attempts > len(ids), "no kill hit"
    assert {video for video, _ in commands.receiver.came} == set(ids) and len(commands.receiver.came) == len(ids)
    digests = set[str]()
    for video in ids:
        answer: httpx.Response = commands.client.ask("GET", f"/v1/videos/{video}/content")
        digests.add(hashlib.sha256(answer.content).hexdigest())
        seen: dict[str, Any] = commands.client.ask("GET", f"/v1/videos/{video}").json()
        assert seen["status"] == "completed" and seen["warnings"] == []
    assert len(digests) == 1, "the same plan makes the same bytes, on the first try or the second"
    database = commands.url.partition(":")[0]
    figures = {"database": database, "jobs": len(ids), "kills": 4, "attempts": attempts}
    print(json.dumps({**figures, "seconds": round(time.monotonic() - begin, 1)}))
