"""`ltx2 serve`: takes orders over HTTP, keeps the house, and runs a worker for each device of this machine."""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from ltx2.doors import devices, premises
from ltx2.doors.crew import Crew
from ltx2.doors.machine import Choice, choose
from ltx2.doors.premises import Premises
from ltx2.doors.service_flags import model_words
from ltx2.spec.errors import RefusedRequest
from ltx2.spec.service import ServiceSettings
from ltx2.spec.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    import uvicorn
    from fastapi import FastAPI

    from ltx2.doors.http.keys import Keyring
    from ltx2.doors.http.service import Duty, Service

LOG = logging.getLogger(__name__)
COURIERS = 4
FORGET_SECONDS = 3600.0
DAY = 86_400.0
# After the workers have gone: for answers that are under way, and streams, which end by themselves.
LAST_WORDS = 5.0
# Beyond the job's own time: to cancel, to give the job back, to end the engine.
MARGIN = 15.0
KIB = 1024
USER_TIMEOUT = 60_000


def serve_command(values: argparse.Namespace, _: Settings) -> int:
    """Serve until SIGTERM or Ctrl-C; a second one ends at once. Returns 0 when everything was left in order."""
    settings, machine, _file = premises.read_settings(values, os.environ)
    if values.no_workers:
        settings = premises.replaced(settings, workers=0)
    if values.print_config:
        print(json.dumps(premises.shown(settings, machine), indent=1))
        return 0
    from ltx2.doors.http import logs
    from ltx2.doors.worker import warm_ups

    logs.configure(settings.log_level, settings.log_prompts)
    choice = choose(values, machine)
    if settings.workers != 0 and not values.engine:
        # A shape that the model cannot make is said here, and not by one dying worker after the other.
        warm_ups(machine, choice.card)
    with _listening(settings) as listener, _held(settings):
        place = premises.enter(settings, machine)
        try:
            return _serve(values, place, choice, listener)
        finally:
            place.store.close()


def _serve(values: argparse.Namespace, place: Premises, choice: Choice, listener: socket.socket) -> int:
    from ltx2.doors.http.app import create_app
    from ltx2.doors.http.service import Duty

    settings, duty = place.settings, Duty()
    keys = _keys(place)
    found = devices.devices(place.machine.device)
    if settings.workers != 0:
        _check_free(found)
    crew = Crew(_workers(values, settings, found), duty, environment={"LTX2_DB": settings.database})
    service = _service(place, choice, keys, duty, found)
    app = create_app(service)
    stop = threading.Event()
    server = make_server(app, settings)
    _say(settings, choice, keys, listener)
    _watch_house(place, service, keys, stop)
    crew.start()
    try:
        return asyncio.run(_run(server, listener, duty, crew, settings))
    finally:
        stop.set()
        keys.close()
        crew.kill()
        crew.wait(MARGIN)


async def _run(
    server: uvicorn.Server, listener: socket.socket, duty: Duty, crew: Crew, settings: ServiceSettings
) -> int:
    """Serve; at the first signal let the workers end while answers go on, at the second leave."""
    loop, told, left = asyncio.get_running_loop(), asyncio.Event(), list[bool]()

    def hear() -> None:
        if told.is_set():
            crew.kill()
            server.should_exit = server.force_exit = True
            left.append(True)
        told.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, hear)

    async def drain() -> None:
        await told.wait()
        LOG.info("told to stop: the job under way has %g s", settings.drain_timeout)
        duty.stopping.set()
        await asyncio.to_thread(crew.tell_to_stop)
        if not await asyncio.to_thread(crew.wait, settings.drain_timeout + MARGIN):
            LOG.error("a worker did not leave and is ended")
            crew.kill()
        server.should_exit = True

    draining = asyncio.create_task(drain())
    await server.serve([listener])
    draining.cancel()
    with suppress(asyncio.CancelledError):
        await draining
    return 1 if left else 0


def make_server(app: FastAPI, settings: ServiceSettings) -> uvicorn.Server:
    """The server of an application: strict, impatient, and quiet about itself."""
    import uvicorn

    from ltx2.doors.http.connection import Impatient

    class Server(uvicorn.Server):
        """One whose signals are heard by us."""

        def capture_signals(self) -> Any:
            return nullcontext()

    return Server(
        uvicorn.Config(
            app,
            http=Impatient,
            ws="none",
            root_path=settings.root_path.rstrip("/"),
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=list(settings.trusted_proxies),
            limit_concurrency=settings.connections,
            h11_max_incomplete_event_size=128 * KIB,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=round(LAST_WORDS),
            access_log=False,
            log_config=None,
            server_header=False,
        )
    )


def _service(
    place: Premises,
    choice: Choice,
    keys: Keyring,
    duty: Duty,
    found: Sequence[devices.Device],
) -> Service:
    from ltx2.doors.addresses import origin_of
    from ltx2.doors.fetch import Outside
    from ltx2.doors.http.service import Service

    settings = place.settings
    if settings.memory_gib is not None:
        memory = round(settings.memory_gib * devices.GIB)
    else:
        # Where the workers are elsewhere, their devices are not known here.
        memory = max(device.memory for device in found) if settings.workers != 0 else 0
    precision = place.machine.precision
    if precision == "auto":
        precision = "bf16" if found[0].name.startswith("cuda") else "fp32"
    return Service(
        queue=place.store,
        files=place.shelf,
        models={choice.card.name: choice.card},
        settings=settings,
        folder=settings.folder,
        secret=premises.secret_of(settings),
        keys=keys,
        capacity=devices.capacity(choice.card, precision, memory),
        outside=Outside(frozenset(map(origin_of, settings.receivers))),
        duty=duty,
    )


def _keys(place: Premises) -> Keyring:
    """The keys; refuses to be reached from elsewhere without one."""
    from ltx2.doors.http.keys import Keyring
    from ltx2.jobs.tokens import Tokens

    settings, tokens = place.settings, Tokens(place.store.database)
    # Also where every token is revoked: who once asked for tokens does not want everybody.
    open_house = settings.is_local and not tokens.all()
    keys = Keyring(tokens.live, os.environ.get("ENTER_TOKEN"), open_house)
    keys.start()
    if keys.is_empty and not settings.is_local:
        keys.close()
        raise RefusedRequest(
            f"host: {settings.host} can be reached from elsewhere, and there is no token",
            knob="host", hint="ltx2 tokens add NAME, or set ENTER_TOKEN, or listen on 127.0.0.1",
        )  # fmt: skip
    return keys


def _workers(
    values: argparse.Namespace, settings: ServiceSettings, found: Sequence[devices.Device]
) -> dict[str, list[str]]:
    """The words of each worker's command line, by name."""
    number = len(found) if settings.workers is None else settings.workers
    words = [*model_words(values), "--data", str(settings.folder)]
    words += ["--config", values.config] if values.config else []
    words += ["--drain-timeout", str(settings.drain_timeout), "--stall", str(settings.stall)]
    words += ["--log-level", settings.log_level, *(["--log-prompts"] if settings.log_prompts else [])]
    # A later --device counts more than an earlier one.
    return {f"worker-{index}": [*words, "--device", found[index % len(found)].name] for index in range(number)}


def _watch_house(place: Premises, service: Service, keys: Keyring, stop: threading.Event) -> None:
    """Start the threads that sweep, deliver webhooks and delete old pictures."""
    from ltx2.doors.http import inputs
    from ltx2.jobs.courier import carry
    from ltx2.jobs.keeper import keep

    settings = place.settings

    def secrets(name: str) -> Sequence[str]:
        own = keys.webhook_secrets(name)
        return own or ([settings.webhook_secret] if settings.webhook_secret else [])

    def forget() -> None:
        while not stop.wait(FORGET_SECONDS):
            try:
                # A waiting job may be as old as records get, and needs its picture.
                inputs.forget(service.folder, (settings.keep_records + 1) * DAY)
            except OSError as error:
                LOG.warning("old pictures could not be deleted: %s", error)

    threads = [threading.Thread(target=keep, args=(place.store, place.shelf, stop), name="keeper", daemon=True)]
    threads += [threading.Thread(target=forget, name="pictures", daemon=True)]
    threads += [
        threading.Thread(
            target=carry, args=(place.store, service.outside.send, secrets, stop), name=f"courier-{n}", daemon=True
        )
        for n in range(COURIERS)
    ]
    for thread in threads:
        thread.start()


@contextmanager
def _listening(settings: ServiceSettings) -> Generator[socket.socket]:
    """The socket; nothing is started when somebody else has the port. Raises RefusedRequest."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # A reader that has vanished, or never reads, does not keep its connection for ever.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT)
        try:
            listener.bind((settings.host, settings.port))
        except (OSError, OverflowError) as error:
            foreign = isinstance(error, socket.gaierror) or getattr(error, "errno", None) == errno.EADDRNOTAVAIL
            hint = f"another port works, as in --port {settings.port % 60_000 + 1}"
            raise RefusedRequest(
                f"{'host' if foreign else 'port'}: {settings.host}:{settings.port}: "
                + str(getattr(error, "strerror", None) or error),
                knob="host" if foreign else "port", hint="an address of this machine, or 0.0.0.0 for all" if foreign else hint,
            ) from None  # fmt: skip
        _raise_file_limit()
        yield listener


@contextmanager
def _held(settings: ServiceSettings) -> Generator[None]:
    """The folder for this process alone, where the database is a file of one machine."""
    if not settings.database.startswith("sqlite"):
        yield
        return
    try:
        settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise RefusedRequest(f"data: {settings.folder}: {error.strerror}", knob="data") from None
    descriptor = premises.hold(settings.folder)
    try:
        yield
    finally:
        os.close(descriptor)


def _check_free(found: Sequence[devices.Device]) -> None:
    """Refuse to start workers on a GPU that has one already; they would take each other's memory."""
    for device in found:
        held = devices.claim(device.name)
        if held is not None:
            os.close(held)


def _raise_file_limit() -> None:
    """As many connections as the system lets this process have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _say(settings: ServiceSettings, choice: Choice, keys: Keyring, listener: socket.socket) -> None:
    """Tell the one who started it where to go, and what everybody may do."""
    port = listener.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(f"ltx2: serving {choice.card.name} at http://{host}:{port}{settings.root_path}", file=sys.stderr, flush=True)
    if keys.is_open:
        note = "there is no token, so everybody on this machine may use it as `local`; `ltx2 tokens add NAME` ends that"
        print(f"ltx2: note: {note}", file=sys.stderr, flush=True)
    elif keys.is_empty:
        note = "every token is revoked or expired, so nobody may use it; `ltx2 tokens add NAME` makes one"
        print(f"ltx2: note: {note}", file=sys.stderr, flush=True)
    details = {"model": choice.card.name, "port": port, "database": settings.database.partition(":")[0]}
    LOG.info("serving", extra=details | {"time": time.time(), "open": keys.is_open})
