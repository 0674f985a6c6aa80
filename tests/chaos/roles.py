"""The processes of a service, to be killed: `python -m tests.chaos.roles` forks one for each line of JSON.

`api` answers HTTP, sweeps and delivers webhooks, `worker` has an engine in a process of its own. They are put together
from the same parts as `ltx2 serve` and `ltx2 worker`, with shorter times.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg  # noqa: F401  # before the forks, or each of them would load it
import uvicorn

from ltx2.doors.fetch import Outside
from ltx2.doors.http.app import create_app
from ltx2.doors.http.keys import Keyring
from ltx2.doors.http.service import Service
from ltx2.engine.process import Limits, ProcessEngine
from ltx2.jobs import keeper, outbox
from ltx2.jobs.courier import carry
from ltx2.jobs.heart import Pace
from ltx2.jobs.job import Rules
from ltx2.jobs.shelf import Shelf
from ltx2.jobs.worker import Worker
from ltx2.spec.card import Card
from ltx2.spec.service import ServiceSettings
from tests.import_path import import_path
from tests.jobs.stand_in import Recording, drop_the_fence

RULES = Rules(lease=1.5, attempts=100)
SECRET = "whsec_" + base64.b64encode(b"c" * 24).decode()
CARDS = {"tiny": Card(name="tiny", kind="distilled", family="tiny", upsampler=True)}
COURIERS = 3


def secrets(_: str) -> Sequence[str]:
    return [SECRET]


def open_store(given: dict[str, Any]) -> Recording:
    store = Recording(given["url"], RULES)
    store.log = Path(given["log"])
    return store


def api(given: dict[str, Any]) -> None:
    """Answer on `port` until killed; `keeper` says whether to sweep."""
    outbox.PAUSES, outbox.REST, outbox.LEASE = (0.2,) * 100, 0.1, 2.0
    keeper.ROUNDS_TO_CLEAR = 10
    store, shelf = open_store(given), Shelf(Path(given["folder"]))
    stop = threading.Event()
    outside = Outside(frozenset({given["receiver"]}))
    if given["keeper"]:
        threading.Thread(target=keeper.keep, args=(store, shelf, stop, 0.2), daemon=True).start()
    for _ in range(COURIERS):
        threading.Thread(target=carry, args=(store, outside.send, secrets, stop, 0.05), daemon=True).start()
    settings = ServiceSettings(min_free_gib=0, rpm=1_000_000, log_level="error")
    keys = Keyring(list, open_house=True)
    service = Service(store, shelf, CARDS, settings, shelf.folder.parent, b"chaos", keys, outside=outside)
    uvicorn.run(create_app(service), host="127.0.0.1", port=given["port"], log_level="critical", access_log=False)


def worker(given: dict[str, Any]) -> None:
    """Work until killed."""
    if given.get("no_fence"):
        drop_the_fence()
    store = open_store(given)
    options = {"low": given["low"], "high": given["high"]}
    limits = Limits(start=60.0, kill=1.0, rest=0.05, longest_rest=0.5)
    engine = ProcessEngine(options, "tests.chaos.stand_in:make", limits, {"PYTHONPATH": import_path()})
    engine.start()
    shelf, pace = Shelf(Path(given["folder"])), Pace(beat=0.1, poll=0.05)
    Worker(store, engine, shelf, pace=pace, ready=engine.ready).run(threading.Event())


def become(given: dict[str, Any], parent: int) -> None:
    """Play a role in a fresh process; end when the foreman does."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    {"api": api, "worker": worker}[given["role"]](given)


def main() -> None:
    """Fork until there are no more lines."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    parent = os.getpid()
    for line in sys.stdin:
        process = os.fork()
        if not process:
            try:
                become(json.loads(line), parent)
            finally:
                os._exit(1)
        print(process, flush=True)


if __name__ == "__main__":
    main()
