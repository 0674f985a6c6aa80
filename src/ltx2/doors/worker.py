"""`ltx2 worker`: takes jobs from the database and makes them with an engine in a process of its own, until told to stop."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from ltx2.doors import devices, premises
from ltx2.doors.http import logs
from ltx2.doors.machine import choose
from ltx2.engine import factory
from ltx2.engine.process import ProcessEngine
from ltx2.jobs.heart import Pace
from ltx2.jobs.worker import Worker, accept
from ltx2.spec.card import Card
from ltx2.spec.errors import RefusedRequest
from ltx2.spec.plan import Plan
from ltx2.spec.settings import Settings
from ltx2.spec.shapes import plans_of, shortened

LOG = logging.getLogger(__name__)
LOOK = 0.2
# A worker whose `serve` is gone ends this soon, whatever it does.
ORPHAN_SECONDS = 3.0
EXIT_DEFUNCT, EXIT_NOW = 70, 1


def worker_command(values: argparse.Namespace, _: Settings) -> int:
    """Work until SIGTERM or Ctrl-C: the job under way has `drain_timeout` seconds, then it goes back to the queue.

    A second signal ends at once. Exits with 70 when engines die one after the other.
    """
    settings, machine, _file = premises.read_settings(values, os.environ)
    if values.print_config:
        print(json.dumps(premises.shown(settings, machine), indent=1))
        return 0
    logs.configure(settings.log_level, settings.log_prompts)
    stop = threading.Event()
    devices.claim(devices.devices(machine.device)[0].name)
    engine = make_engine(values, machine)
    _listen(stop, engine)
    if values.attached:
        threading.Thread(target=_watch_parent, args=(stop,), name="parent", daemon=True).start()
    place = premises.enter(settings, machine)
    from ltx2.doors.inspection import inspect

    pace = Pace(drain=settings.drain_timeout, stall=settings.stall)
    worker = Worker(
        place.store,
        engine,
        place.shelf,
        pace=pace,
        inspect=accept if values.engine else inspect,
        ready=engine.ready,
    )
    LOG.info("worker begins", extra={"worker": worker.name})
    thread = threading.Thread(target=worker.run, args=(stop,), name="worker", daemon=True)
    try:
        engine.start()
        thread.start()
        return _attend(engine, thread, stop)
    finally:
        stop.set()
        engine.close()
        place.store.close()


def make_engine(values: argparse.Namespace, machine: Settings) -> ProcessEngine:
    """The engine that flags and settings name. Raises what `choose` raises, and RefusedRequest for a warm-up."""
    if values.engine:
        # Its module is found where the tests are started.
        return ProcessEngine({}, values.engine, environment={"PYTHONPATH": os.pathsep.join(sys.path)})
    choice = choose(values, machine)
    plans = warm_ups(machine, choice.card)
    return ProcessEngine(factory.options(choice.source, machine.device, machine.precision, plans, machine))


def warm_ups(machine: Settings, card: Card) -> tuple[Plan, ...]:
    """What is made, in few steps, before the first job. Raises RefusedRequest for a shape that this model cannot make."""
    try:
        return tuple(map(shortened, plans_of(machine.warm_up, card).values()))
    except RefusedRequest as error:
        raise RefusedRequest(f"warm_up: {error.message}", knob="warm_up", hint=error.hint) from None


def _attend(engine: ProcessEngine, thread: threading.Thread, stop: threading.Event) -> int:
    """Tell how the engine stands whenever that changes, until the worker has ended; returns the exit code."""
    told: dict[str, Any] = {}
    while thread.is_alive():
        now = {"state": "DEFUNCT" if engine.defunct else engine.state, "reason": engine.reason}
        if now != told:
            told = now
            tell(now)
            LOG.info("engine", extra=now)
        if engine.defunct and not stop.is_set():
            LOG.error("engines die one after the other: this worker gives up")
            stop.set()
            thread.join(ORPHAN_SECONDS)
            return EXIT_DEFUNCT
        thread.join(LOOK)
    return 0


def tell(now: dict[str, Any]) -> None:
    """One line of JSON on stdout, for `serve` and for who looks on."""
    try:
        print(json.dumps(now), flush=True)
    except (BrokenPipeError, ValueError):
        # Nobody looks on.
        return


def _listen(stop: threading.Event, engine: ProcessEngine) -> None:
    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            # A thread may hold any lock now; the engine's process dies with this one.
            os._exit(EXIT_NOW)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


def _watch_parent(stop: threading.Event, leave: Callable[[int], None] = os._exit) -> None:
    """Wait for the end of standard input: then `serve` is gone, however it ended."""
    try:
        while os.read(0, 1024):
            pass
    except OSError:
        pass
    if not stop.is_set():
        LOG.error("the server is gone: this worker ends")
        stop.set()
        threading.Event().wait(ORPHAN_SECONDS)
        leave(EXIT_NOW)
