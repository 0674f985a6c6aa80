"""`ltx2 serve` as a process of its own, on a stand-in engine, for tests that stop, kill and start it again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.doors.http.studio import wait_for

ROOT = Path(__file__).parents[3]
QUICK = "tests.doors.http.engines:quick"


def environment(**more: str) -> dict[str, str]:
    """The environment of a test's process: nothing of the developer's own settings."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("LTX2_", "ENTER_TOKEN"))}
    return known | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "ltx2", *words]


def run(*words: str, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        command(*words), env=environment(**more), cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@dataclass
class Running:
    """A server that runs."""

    process: subprocess.Popen[str]
    port: int
    log: Path
    headers: dict[str, str] = field(default_factory=dict[str, str])

    def ask(self, method: str, path: str, **how: Any) -> httpx.Response:
        headers = self.headers | how.pop("headers", {})
        # To read the certificates that nobody shows here takes longer than the request.
        given = {"timeout": 60, "headers": headers, "verify": False} | how
        return httpx.request(method, f"http://127.0.0.1:{self.port}{path}", **given)

    def post(self, prompt: str, **how: Any) -> dict[str, Any]:
        response = self.ask("POST", "/v1/videos", json={"prompt": prompt}, **how)
        assert response.status_code in (200, 202), response.text
        return response.json()

    def state(self, job: dict[str, Any]) -> str:
        return self.ask("GET", f"/v1/videos/{job['id']}").json()["state"]

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.ask("GET", "/livez").status_code in (200, 500)
        except httpx.TransportError:
            return False

    def is_ready(self) -> bool:
        return self.is_up() and self.ask("GET", "/readyz").status_code == 200

    def lines(self) -> list[dict[str, Any]]:
        """Its log, without the words for people at its beginning."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if not line.startswith("ltx2: ")]

    def family(self) -> list[int]:
        """Every process that came from it and lives."""
        return descendants(self.process.pid)

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 40.0) -> int:
        self.process.send_signal(number)
        return self.process.wait(seconds)


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if parent == pid:
            found += [int(path.parent.name), *descendants(int(path.parent.name))]
    return found


def alive(pids: Sequence[int]) -> list[int]:
    """Those that still run; a zombie whose parent is gone does not."""
    found: list[int] = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.append(pid)
    return found


@contextmanager
def serve(folder: Path, *words: str, engine: str = QUICK, ready: bool = True, **more: str) -> Iterator[Running]:
    """A server on a folder, up when the block begins, and ready unless told otherwise; ended with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    port, log = free_port(), folder / f"log-{time.monotonic_ns()}"
    given = ["--data", str(folder / "data"), "--port", str(port), "--min-free-gib", "0", "--engine", engine]
    with log.open("w") as file:
        process = subprocess.Popen(
            command("serve", *given, *words), env=environment(**more), cwd=folder, stderr=file, text=True
        )
    running = Running(process, port, log)
    family: list[int] = []
    try:
        wait_for(running.is_ready if ready else running.is_up)
        yield running
    finally:
        if process.poll() is None:
            family = running.family()
            process.send_signal(signal.SIGTERM)
            threading.Timer(0.3, lambda: process.poll() is None and process.send_signal(signal.SIGTERM)).start()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in alive(family):
            wait_for(lambda pid=pid: not alive([pid]), 10)
