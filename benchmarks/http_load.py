"""The service under load: 500 jobs of three tokens, 200 readers of events, some of which never read, 100 downloads.

`python -m benchmarks.http_load` starts a server and a worker process with the stand-in engine of the tests, measures
from outside, and prints JSON on its last line. The server is the real one; only the engine makes nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

TOKENS = ("ann", "bob", "cyd")
ROOT = Path(__file__).parents[1]


def serve(folder: Path) -> None:
    """Be the server: print the port, and serve until killed."""
    import uvicorn

    from ltx2.jobs.job import Rules
    from ltx2.jobs.shelf import Shelf
    from ltx2.jobs.store import Store
    from tests.doors.http.fixtures import app_of, make_service
    from tests.doors.http.studio import StandIn, Studio

    store = Store(f"sqlite:///{folder / 'jobs.db'}", Rules())
    place = Studio(store, Shelf(folder / "shelf"), StandIn(folder), folder, [], threading.Event())
    server = uvicorn.Server(uvicorn.Config(app_of(make_service(place)), port=0, log_level="error", access_log=False))
    asyncio.run(_announced(server))


async def _announced(server: Any) -> None:
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await task


def work(folder: Path, workers: int, seconds: float) -> None:
    """Be the workers, until killed."""
    from ltx2.jobs.heart import Pace
    from ltx2.jobs.shelf import Shelf
    from ltx2.jobs.store import Store
    from ltx2.jobs.worker import Worker
    from tests.doors.http.studio import StandIn, a_video

    a_video(folder)
    store = Store(f"sqlite:///{folder / 'jobs.db'}")
    engine = StandIn(folder, seconds=seconds)
    for number in range(workers):
        worker = Worker(store, engine, Shelf(folder / "shelf"), name=f"load-{number}", pace=Pace(beat=0.5))
        threading.Thread(target=worker.run, args=(threading.Event(),), daemon=True).start()
    print("ready", flush=True)
    threading.Event().wait()


@contextmanager
def process(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """One of the processes above, and the line that it says when it is ready."""
    command = [sys.executable, "-m", "benchmarks.http_load", *words]
    # glibc gives every thread an arena of its own, which keeps what it once held.
    environment = os.environ | {"MALLOC_ARENA_MAX": "2"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            yield running, running.stdout.readline().strip()
        finally:
            running.kill()


def resident(number: int) -> int:
    """Bytes of memory that a process holds."""
    for line in Path(f"/proc/{number}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this needs Linux")


class Load:
    """The clients."""

    def __init__(self, address: str, database: Path):
        self.database = database
        # Shorter than the server keeps connections, or one would close while it is used again.
        limits = httpx.Limits(max_connections=None, keepalive_expiry=2)
        self.client = httpx.AsyncClient(base_url=address, limits=limits, timeout=300)
        self.port = int(address.rpartition(":")[2])
        self.pings: list[float] = []
        self.endings: list[str] = []

    @staticmethod
    def token(name: str) -> dict[str, str]:
        """The headers of a token."""
        return {"Authorization": f"Bearer {name}"}

    async def submit(self, name: str, prompt: str) -> str:
        """Make a job."""
        body = {"prompt": prompt, "seed": 1}
        response = await self.client.post("/v1/videos", json=body, headers=self.token(name))
        response.raise_for_status()
        return response.json()["id"]

    async def read(self, name: str, job: str) -> None:
        """Follow a job to its end."""
        async with self.client.stream("GET", f"/v1/videos/{job}/events", headers=self.token(name)) as stream:
            last = ""
            async for line in stream.aiter_lines():
                if line.startswith("event: "):
                    last = line.removeprefix("event: ")
            self.endings.append(last)

    def deaf(self, name: str, job: str) -> socket.socket:
        """A reader that asks and never reads."""
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        lines = [f"GET /v1/videos/{job}/events HTTP/1.1", "Host: localhost", f"Authorization: Bearer {name}", "", ""]
        connection.sendall("\r\n".join(lines).encode())
        return connection

    @contextmanager
    def pinging(self) -> Iterator[None]:
        """Ask for a sign of life meanwhile, in a thread of its own: the other clients keep theirs busy."""
        stop = threading.Event()
        thread = threading.Thread(target=self._ping, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _ping(self, stop: threading.Event) -> None:
        with httpx.Client(base_url=str(self.client.base_url)) as own:
            while not stop.wait(0.02):
                begun = time.perf_counter()
                assert own.get("/livez").status_code == 200
                self.pings.append(time.perf_counter() - begun)

    async def download(self, name: str, job: str) -> int:
        """The bytes of a video, which must be all of them."""
        response = await self.client.get(f"/v1/videos/{job}/content", headers=self.token(name))
        response.raise_for_status()
        assert len(response.content) == int(response.headers["content-length"])
        return len(response.content)


async def run(address: str, server: int, folder: Path, sizes: argparse.Namespace) -> dict[str, Any]:
    """Submit, follow, work, download; what was measured."""
    load, draw = Load(address, folder / "jobs.db"), random.Random(1)
    warm = [await load.submit("warm", f"warm {n}") for n in range(8)]
    await asyncio.gather(*(load.client.get(f"/v1/videos/{job}", headers=load.token("warm")) for job in warm * 8))
    before = resident(server)
    with load.pinging():
        jobs, submitted = await submit_all(load, sizes.jobs)
        readers = [asyncio.create_task(load.read(*draw.choice(jobs))) for _ in range(sizes.readers)]
        deaf = [load.deaf(*draw.choice(jobs)) for _ in range(sizes.readers // 10)]
        with ExitStack() as stack:
            words = ("work", str(folder), "--workers", str(sizes.workers), "--seconds", str(sizes.seconds))
            await asyncio.to_thread(stack.enter_context, process(*words))
            while len(load.endings) < sizes.readers // 10:
                await asyncio.sleep(0.1)
            peak = resident(server)
            waits = await finished(load, jobs)
            await asyncio.gather(*readers)
        begun = time.perf_counter()
        received = await asyncio.gather(*(load.download(*draw.choice(jobs)) for _ in range(sizes.downloads)))
        downloaded = time.perf_counter() - begun
    for connection in deaf:
        connection.close()
    await load.client.aclose()
    return {
        "jobs": len(jobs),
        "submit_ms": round(1000 * submitted / len(jobs), 1),
        **fairness(waits),
        "readers": len(load.endings),
        "readers_that_heard_the_end": load.endings.count("completed"),
        "readers_that_never_read": len(deaf),
        "livez_ms": quantiles(load.pings),
        "downloads": len(received),
        "download_bytes": sum(received),
        "download_seconds": round(downloaded, 2),
        "memory_mib": round(before / 2**20, 1),
        "memory_with_readers_mib": round(peak / 2**20, 1),
        "memory_growth_mib": round((resident(server) - before) / 2**20, 1),
    }


async def submit_all(load: Load, number: int) -> tuple[list[tuple[str, str]], float]:
    """The jobs of all tokens, eight at a time, and the seconds that it took."""
    begun, gate = time.perf_counter(), asyncio.Semaphore(8)
    jobs: list[tuple[str, str]] = []

    async def one(name: str, index: int) -> None:
        async with gate:
            jobs.append((name, await load.submit(name, f"{name} {index}")))

    for name in TOKENS:
        # One token after the other: who comes last must not wait for all the others.
        await asyncio.gather(*(one(name, index) for index in range(number // len(TOKENS))))
    return jobs, time.perf_counter() - begun


def fairness(waits: dict[str, list[float]]) -> dict[str, Any]:
    """The mean wait of each token, and the largest over the smallest."""
    means = {name: statistics.fmean(waits[name]) for name in TOKENS}
    ratio = max(means.values()) / min(means.values())
    return {"mean_wait_seconds": {name: round(mean, 2) for name, mean in means.items()}, "wait_ratio": round(ratio, 2)}


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile in milliseconds."""
    found, number = sorted(seconds), len(seconds)
    p50, p99 = (round(1000 * found[int(number * share)], 1) for share in (0.5, 0.99))
    return {"p50": p50, "p99": p99, "n": number}


async def finished(load: Load, jobs: list[tuple[str, str]]) -> dict[str, list[float]]:
    """The seconds from acceptance to start of every job of a token, when all have come to their end."""
    from ltx2.jobs.store import Store

    store = Store(f"sqlite:///{load.database}")
    try:
        while (counts := await asyncio.to_thread(store.counts)).get("queued", 0) + counts.get("running", 0):
            await asyncio.sleep(0.5)
        waits: dict[str, list[float]] = {name: [] for name in TOKENS}
        for name, id_ in jobs:
            job = store.get(name, id_)
            assert job.state == "done" and job.started is not None, job.error
            waits[name].append(job.started - job.created)
        return waits
    finally:
        store.close()


def measure(sizes: argparse.Namespace) -> dict[str, Any]:
    """One run in a folder of its own."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        folder = Path(name)
        (folder / "shelf").mkdir()
        with process("serve", name) as (server, port):
            return asyncio.run(run(f"http://127.0.0.1:{port}", server.pid, folder, sizes))


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The sizes of a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=("serve", "work"))
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--jobs", type=int, default=501)
    parser.add_argument("--readers", type=int, default=200)
    parser.add_argument("--downloads", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.05)
    return parser.parse_args(words)


def main() -> None:
    """Run, or be one of the processes of a run."""
    given = parse()
    if given.part == "serve":
        serve(given.folder)
    elif given.part == "work":
        work(given.folder, given.workers, given.seconds)
    else:
        found = measure(given)
        print(json.dumps(found | {"python": platform.python_version(), "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
