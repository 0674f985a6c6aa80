"""A whole service of killable processes, its clients, a receiver of webhooks, and the oracle of what must hold at the
end."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
from standardwebhooks import Webhook

from ltx2.jobs.job import Job
from ltx2.jobs.shelf import Shelf
from ltx2.jobs.store import Store
from tests.chaos.roles import RULES, SECRET
from tests.chaos.stand_in import STEPS
from tests.jobs.asks import letters, wait_for
from tests.jobs.server import Server

OWNER = "local"
Foreman = subprocess.Popen[str]


class Receiver:
    """Takes webhooks, after refusing one in five; `came` counts letters by job and webhook-id."""

    def __init__(self, refuse: float = 0.2):
        self.came: Counter[tuple[str, str]] = Counter()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                Webhook(SECRET).verify(body, dict(self.headers))
                refused = random.random() < refuse
                if not refused:
                    receiver.came[json.loads(body)["data"]["id"], self.headers["webhook-id"]] += 1
                self.send_response(500 if refused else 204)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Client:
    """A client that does not give up while the service is away; any answer but yes and "not now" is noted."""

    def __init__(self, address: str):
        self.http = httpx.Client(base_url=address, timeout=10.0, trust_env=False)
        self.away = 0
        self.odd: list[str] = []

    def ask(self, method: str, path: str, seconds: float = 120.0, **more: Any) -> httpx.Response:
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(httpx.TransportError):
                response = self.http.request(method, path, **more)
                if response.status_code < 300:
                    return response
                if response.status_code not in (429, 503):
                    self.odd.append(f"{method} {path}: {response.status_code} {response.text[:200]}")
                assert response.status_code in (429, *range(500, 600)), self.odd
            self.away += 1
            assert time.monotonic() < end, f"{method} {path} in vain: {self.odd[-3:]}"
            time.sleep(0.05)

    def submit(self, number: int, webhook: str) -> str:
        body = {"prompt": f"cat {number}", "seed": number, "webhook": webhook}
        headers = {"Idempotency-Key": f"key-{number}"}
        return self.ask("POST", "/v1/videos", json=body, headers=headers).json()["id"]


@dataclass
class Town:
    """One service under fire. `workers` are their process numbers."""

    url: str
    folder: Path
    foreman: Foreman
    server: Server | None = None
    keeper: bool = True
    fence: bool = True
    workers: list[int] = field(default_factory=list[int])
    kills: Counter[str] = field(default_factory=Counter[str])

    def __post_init__(self) -> None:
        self.shelf = Shelf(self.folder / "shelf")
        self.shelf.folder.mkdir(parents=True)
        self.log = self.folder / "log"
        self.log.touch()
        self.store = Store(self.url, RULES)
        self.receiver = Receiver()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.client = Client(f"http://127.0.0.1:{self.port}")
        self.api = self._start(role="api", port=self.port, receiver=self.receiver.origin, keeper=self.keeper)

    def hire(self, low: float = 0.1, high: float = 0.6) -> int:
        self.workers.append(self._start(role="worker", low=low, high=high, no_fence=not self.fence))
        return self.workers[-1]

    def strike(self, what: str, chance: random.Random) -> None:
        """Kill one process of a kind, and have another take its place."""
        self.kills[what] += 1
        victim = chance.choice(self.busy() or self.workers)
        match what:
            case "api":
                kill(self.api)
                self.api = self._start(role="api", port=self.port, receiver=self.receiver.origin, keeper=self.keeper)
            case "worker":
                kill(victim)
                self.workers.remove(victim)
                self.hire()
            case "engine":
                for child in children(victim):
                    kill(child)
            case "database":
                assert self.server
                self.server.kill()
                time.sleep(chance.uniform(0.0, 0.3))
                self.server.start()
            case _:
                raise ValueError(what)

    def jobs(self) -> list[Job]:
        return list(self.store.page(OWNER, limit=10_000))

    def open(self) -> list[Job]:
        return [job for job in self.jobs() if job.open]

    def busy(self) -> list[int]:
        """The workers that are making something, by their process."""
        running = {int((job.worker or "").split("-")[-2]) for job in self.jobs() if job.state == "running"}
        return [worker for worker in self.workers if worker in running]

    def published(self) -> Counter[int]:
        """How often workers were told that their files of a job count."""
        lines = (line.split() for line in self.log.read_text().splitlines())
        return Counter(int(number) for number, _, state in lines if state == "done")

    def check(self, ids: set[str]) -> None:
        """The oracle: nothing lost, nothing stuck, nothing published twice, every webhook delivered, all files whole."""
        jobs = self.jobs()
        assert {job.id for job in jobs} == ids, "lost or doubled"
        assert [job.id for job in jobs if job.open] == [], "stuck"
        for job in jobs:
            posted = letters(self.store, job)
            assert len(posted) == 1, f"job {job.number} ended {len(posted)} times"
            if job.state == "done":
                content = self.client.ask("GET", f"/v1/videos/{job.id}/content").text
                assert content == f"{job.number} {job.published}\n" * STEPS
            else:
                assert job.state == "cancelled" and job.published is None, job.error
        assert all(times == 1 for times in self.published().values()), "published twice"
        assert {video for video, _ in self.receiver.came} == ids and len(self.receiver.came) == len(ids), "webhooks"
        assert self.client.odd == [], "answers that are neither yes nor 'not now'"
        assert not list(self.shelf.folder.rglob("*.part")), "drafts are left"

    def close(self) -> None:
        for process in [self.api, *self.workers]:
            kill(process)
        self.client.http.close()
        self.receiver.close()
        self.store.close()

    def _start(self, **given: Any) -> int:
        given |= {"url": self.url, "folder": str(self.shelf.folder), "log": str(self.log)}
        assert self.foreman.stdin and self.foreman.stdout
        self.foreman.stdin.write(json.dumps(given) + "\n")
        self.foreman.stdin.flush()
        return int(self.foreman.stdout.readline())


@dataclass(frozen=True)
class Storm:
    """How many jobs are asked for, and which processes are struck in the meantime, in this order."""

    jobs: int
    strikes: Sequence[str]
    seed: int = 5
    patience: float = 300.0

    def rage(self, town: Town) -> dict[str, Any]:
        """Let clients ask for jobs, twice each, and cancel a tenth, while processes are killed; returns figures."""
        chance, begin = random.Random(self.seed), time.monotonic()
        hook = f"{town.receiver.origin}/hook"
        ids: set[str] = set()
        doubles: list[tuple[str, str]] = []

        def order() -> None:
            for number in range(self.jobs):
                first = town.client.submit(number, hook)
                doubles.append((first, town.client.submit(number, hook)))
                ids.add(first)
                if number % 10 == 9:
                    town.client.ask("POST", f"/v1/videos/{first}/cancel")

        clients = background(order)
        for what in self.strikes:
            # Kill those that have work: before, the time goes into starting Python.
            wait_for(lambda: self._busy(town, clients), 60)
            assert clients.is_alive() or len(doubles) == self.jobs, "the clients gave up"
            time.sleep(chance.uniform(0.0, 0.2))
            town.strike(what, chance)
        clients.join(self.patience)
        assert not clients.is_alive(), "the clients did not come to an end"
        wait_for(lambda: not town.open() and not town.store.undelivered(), self.patience)
        wait_for(lambda: not [*town.shelf.folder.rglob("*.part")], 60)
        assert all(first == second for first, second in doubles) and len(ids) == self.jobs, "accepted twice"
        town.check(ids)
        jobs = town.jobs()
        return {
            "jobs": len(jobs),
            "kills": dict(town.kills),
            "done": sum(job.state == "done" for job in jobs),
            "cancelled": sum(job.state == "cancelled" for job in jobs),
            "attempts of the done": sum(job.attempt for job in jobs if job.state == "done"),
            "letters": sum(town.receiver.came.values()),
            "refused connections": town.client.away,
            "seconds": round(time.monotonic() - begin, 1),
        }

    def _busy(self, town: Town, clients: threading.Thread) -> bool:
        return bool(town.busy()) or (not clients.is_alive() and not town.open())


def background(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def kill(process: int, how: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, how)


def children(process: int) -> list[int]:
    """The processes that a process started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(process).children(recursive=True)]
    return []
