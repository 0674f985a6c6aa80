"""The worker processes of one server: started, started again when they die, told to stop, and counted."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ltx2.doors.http.service import Duty

LOG = logging.getLogger(__name__)
COMMAND = (sys.executable, "-m", "ltx2", "worker", "--attached")
READY = ("READY", "BUSY")


@dataclass(frozen=True)
class Patience:
    """Seconds before a dead worker is started again, doubled up to `longest`; `deaths` of all workers within `within`
    seconds, with no success in between, mean that this machine cannot do it."""

    rest: float = 1.0
    longest: float = 60.0
    deaths: int = 3
    within: float = 600.0


class Crew:
    """One worker process for each list of words in `workers` (by name), for as long as the server runs.

    `environment` is added to that of the processes: secrets do not belong on a command line, which everybody can read.
    """

    def __init__(
        self,
        workers: Mapping[str, Sequence[str]],
        duty: Duty,
        patience: Patience | None = None,
        environment: Mapping[str, str] | None = None,
    ):
        self.workers, self.duty, self.patience = workers, duty, patience or Patience()
        self._environment = {**os.environ, **(environment or {})}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._states: dict[str, str] = dict.fromkeys(workers, "STARTING")
        self._reason = "no reason was given"
        self._deaths: deque[float] = deque(maxlen=self.patience.deaths)
        self._threads = [
            threading.Thread(target=self._keep, args=(name,), name=f"crew-{name}", daemon=True) for name in workers
        ]

    def start(self) -> None:
        """Start everybody."""
        self._report()
        for thread in self._threads:
            thread.start()

    def tell_to_stop(self) -> None:
        """Have everybody end their job and leave; nobody is started again."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End everybody now. Engines end with their workers."""
        self._signal(signal.SIGKILL)

    def wait(self, seconds: float) -> bool:
        """Whether everybody has left within so many seconds."""
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _signal(self, number: signal.Signals) -> None:
        with self._lock:
            self._stop.set()
            for process in self._processes.values():
                with suppress(ProcessLookupError):
                    process.send_signal(number)

    def _keep(self, name: str) -> None:
        in_a_row = 0
        while True:
            with self._lock:
                if self._stop.is_set():
                    return
                process = self._processes[name] = self._start(name)
            begun = time.monotonic()
            self._follow(name, process)
            status = process.wait()
            assert process.stdin
            process.stdin.close()
            if self._stop.is_set():
                self._note(name, "GONE", None)
                return
            LOG.error("a worker died", extra={"worker": name, "status": status})
            self._deaths.append(time.monotonic())
            self._note(name, "DEAD", f"the worker ended with {status}")
            in_a_row = 0 if time.monotonic() - begun > self.patience.within else in_a_row + 1
            self._stop.wait(min(self.patience.rest * 2 ** (in_a_row - 1), self.patience.longest) if in_a_row else 0.0)

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        # A group of its own: Ctrl-C in a terminal is for the server, which lets the work end.
        return subprocess.Popen(
            [*COMMAND, *self.workers[name]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environment,
            start_new_session=True,
        )

    def _follow(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Read what the worker tells about its engine, until it ends."""
        assert process.stdout
        with process.stdout:
            for line in process.stdout:
                try:
                    said = json.loads(line)
                    self._note(name, str(said["state"]), said.get("reason"))
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue

    def _note(self, name: str, state: str, reason: str | None) -> None:
        with self._lock:
            before, self._states[name] = self._states[name], state
            if reason:
                self._reason = reason
            if state == "READY" and before == "BUSY":
                # A job went through: whatever was wrong, it is not this machine.
                self._deaths.clear()
                self.duty.defunct = None
            elif state == "DEFUNCT" or self._are_dying():
                self.duty.defunct = f"workers die one after the other: {self._reason}"
        self._report()

    def _are_dying(self) -> bool:
        recent = [death for death in self._deaths if time.monotonic() - death < self.patience.within]
        return len(recent) >= self.patience.deaths

    def _report(self) -> None:
        """Write into the duty what the probes tell."""
        states = dict(self._states)
        self.duty.workers = states
        # Without workers of its own a server takes orders for those elsewhere.
        if not states or any(state in READY for state in states.values()):
            self.duty.waiting = None
        elif "STARTING" in states.values():
            self.duty.waiting = "the engine starts"
        else:
            self.duty.waiting = f"the engine cannot start: {self._reason}"
