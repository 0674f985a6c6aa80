"""The stand-in at work: its servers, the processes of its containers, and what tests do to them (kill, cancel, expire)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from grpclib.server import Server
from modal_proto import api_pb2

from tests.fake_modal.cloud import App, Call, Cloud, Container, Function
from tests.fake_modal.gateway import Gateway
from tests.fake_modal.runtime import Servicer
from tests.fake_modal.servicer import ENDED

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
STARTS = 3


class FakeModal:
    """A context manager: while it is open, `environment()` makes the real client talk to it.

    `folder` takes logs; `extra` are further variables of every container.
    """

    def __init__(self, folder: Path, extra: dict[str, str] | None = None):
        self.folder, self.extra = folder, extra or {}
        self.cloud = Cloud()
        self.gateways: list[uvicorn.Server] = []
        self._servers: list[Server] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake-modal", daemon=True)
        self.port = 0
        self.closing = False
        self._starting = threading.Lock()
        self._nursery: Nursery | None = None

    def __enter__(self) -> FakeModal:
        self._thread.start()
        self.port = self.on_loop(self._serve(Servicer(self)))
        return self

    def __exit__(self, *_: object) -> None:
        self.closing = True
        for function in self.cloud.functions.values():
            for container in function.living:
                self.kill(container)
        if self._nursery is not None:
            self._nursery.close()
        self.on_loop(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    # What tests do

    def environment(self, **extra: str) -> dict[str, str]:
        """The variables for a command of the real client."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("MODAL_", "LTX2_"))}
        return own | {
            "MODAL_SERVER_URL": f"http://127.0.0.1:{self.port}", "MODAL_TOKEN_ID": "ak-test", "MODAL_TOKEN_SECRET": "as-test",
            "MODAL_CONFIG_PATH": "/nonexistent", "MODAL_ENVIRONMENT": "main", "PYTHONPATH": f"{ROOT}/src:{ROOT}",
            "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default", "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "250",
        } | extra  # fmt: skip

    def command(self, *words: str, timeout: float = 120, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run the real `modal` command in the repository's root."""
        return self.on_host("-m", "modal", *words, timeout=timeout, **extra)

    def on_host(self, *words: str, timeout: float = 120, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run Python as a user would whose client talks to the stand-in."""
        return subprocess.run(
            [sys.executable, *words],
            env=self.environment(**extra), capture_output=True, text=True, timeout=timeout, cwd=ROOT,
        )  # fmt: skip

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine where the servers live."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def kill(self, container: Container, how: int = signal.SIGKILL) -> None:
        """End a container as a preemption (SIGINT) or a crash (SIGKILL) does; its inputs go to another one."""
        assert container.process is not None
        container.process.send_signal(how)
        container.process.wait(30)

    def expire(self, call_id: str) -> None:
        """Forget the result of a call, as Modal does after seven days."""
        self.cloud.calls[call_id].expired = True

    def output(self, container: Container) -> str:
        """What a container has written."""
        return Path(container.log).read_text(errors="replace")

    # What the servers do

    async def submit(self, function: Function, given: api_pb2.FunctionInput, invocation: int, call_id: str) -> Call:
        """Queue an input, and start a container when none is free for it."""
        call = Call(call_id, self.cloud.name("in"), function, given, invocation)
        self.cloud.calls[call.id] = self.cloud.inputs[call.input_id] = call
        function.pending.append(call)
        await self.cloud.tell()
        self._scale(function)
        return call

    async def cancel(self, call: Call) -> None:
        """End a waiting call, or tell the container of a running one."""
        if call.output is None and call.container is None:
            if call in call.function.pending:
                call.function.pending.remove(call)
            self.settle(call, ENDED, 0)
        elif call.output is None and call.container is not None:
            call.container.cancelled.append(call.input_id)
        await self.cloud.tell()

    def settle(self, call: Call, result: api_pb2.GenericResult, data_format: int) -> None:
        """The first result of a call counts."""
        if call.output is None:
            call.output = api_pb2.FunctionGetOutputsItem(
                result=result, input_id=call.input_id, data_format=data_format,  # type: ignore[arg-type]
            )  # fmt: skip

    async def wait(self, holds: Callable[[], bool], seconds: float) -> None:
        """Wait until something holds, no longer than `seconds`."""
        if holds() or seconds <= 0:
            return
        try:
            async with self.cloud.changed:
                await asyncio.wait_for(self.cloud.changed.wait_for(holds), seconds)
        except TimeoutError:
            pass

    async def open_gateway(self, function: Function) -> str:
        """Serve a web function over HTTP; returns its address."""
        listener = _listener()
        config = uvicorn.Config(
            Gateway(self, function), log_level="warning", lifespan="off", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        self.gateways.append(server)
        self._spawn(server.serve(sockets=[listener]))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    def stop_app(self, app: App) -> None:
        """End the containers of an app."""
        for function in app.functions.values():
            function.pending.clear()
            for container in function.living:
                assert container.process is not None
                container.process.kill()

    def _scale(self, function: Function) -> None:
        usable = [container for container in function.containers if not container.retiring and container.alive]
        free = sum(max(0, container.slots - len(container.active)) for container in usable)
        most = function.definition.autoscaler_settings.max_containers or 10
        if not self.closing and function.pending and free < len(function.pending) and len(usable) < most:
            self._start(function)

    def _start(self, function: Function) -> None:
        task_id = self.cloud.name("ta")
        log = self.folder / f"{task_id}.log"
        container = Container(task_id, function, function.definition, str(log))
        function.containers.append(container)
        self._spawn(self._run(container))

    async def _run(self, container: Container) -> None:
        function, cloud = container.function, self.cloud
        port = await self._serve(Servicer(self, container))
        app = cloud.apps[function.app_id]
        arguments = api_pb2.ContainerArguments(
            task_id=container.task_id, function_id=function.id, app_id=function.app_id, environment_name="main",
            function_def=container.definition, app_layout=cloud.layout(app),
        )  # fmt: skip
        file = self.folder / f"{container.task_id}.arguments"
        file.write_bytes(arguments.SerializeToString())
        users = self.environment()
        del users["MODAL_TOKEN_ID"], users["MODAL_TOKEN_SECRET"]
        variables = users | cloud.environment(function) | self.extra | {
            "MODAL_SERVER_URL": f"http://127.0.0.1:{port}", "MODAL_CONTAINER_ARGUMENTS_PATH": str(file),
            "MODAL_TASK_ID": container.task_id, "MODAL_IS_REMOTE": "1",
        }  # fmt: skip
        container.process = await asyncio.to_thread(self._nursed, variables, container.log)
        while container.process.poll() is None:
            await asyncio.sleep(0.02)
        self._bury(container)
        await cloud.tell()

    def _nursed(self, variables: dict[str, str], log: str) -> Process:
        with self._starting:
            if self._nursery is None:
                self._nursery = Nursery(self.environment())
        return self._nursery.start(variables, log)

    def _bury(self, container: Container) -> None:
        """Give the inputs of an ended container to another one, unless it cannot start at all."""
        function = container.function
        for input_id in sorted(container.active, reverse=True):
            call = self.cloud.inputs[input_id]
            if call.output is not None:
                continue
            call.container = None
            if input_id in container.cancelled:
                self.settle(call, ENDED, 0)
            else:
                function.pending.appendleft(call)
        last = function.containers[-STARTS:]
        if len(last) == STARTS and not any(other.served or other.alive for other in last):
            # It cannot start at all: whoever waits is told, as after a crash loop.
            reason = container.failure or api_pb2.GenericResult(
                status=api_pb2.GenericResult.GENERIC_STATUS_INTERNAL_FAILURE, exception=self.output(container)[-500:]
            )
            while function.pending:
                self.settle(function.pending.popleft(), reason, api_pb2.DATA_FORMAT_PICKLE)
        self._scale(function)

    async def _serve(self, servicer: Servicer) -> int:
        listener = _listener()
        server = Server([servicer])
        await server.start(sock=listener)
        self._servers.append(server)
        return int(listener.getsockname()[1])

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _close(self) -> None:
        for gateway in self.gateways:
            gateway.should_exit = gateway.force_exit = True
        for server in self._servers:
            server.close()
        deadline = time.monotonic() + 3
        while self._tasks and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for task in list(self._tasks):
            task.cancel()


class Process:
    """A process of the nursery, which is no child of this one."""

    def __init__(self, number: int):
        self.number = number

    def poll(self) -> int | None:
        """None while it lives."""
        return None if Path(f"/proc/{self.number}").exists() else 0

    def send_signal(self, how: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.number, how)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, seconds: float) -> None:
        """Wait for its end. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {self.number} does not end")
            time.sleep(0.01)


class Nursery:
    """The process that container processes are forked from; see nursery.py."""

    def __init__(self, environment: dict[str, str]):
        self._lock = threading.Lock()
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "tests.fake_modal.nursery"],
            env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def start(self, environment: dict[str, str], log: str) -> Process:
        """Fork a container."""
        assert self._parent.stdin is not None and self._parent.stdout is not None
        with self._lock:
            print(
                json.dumps({"environment": environment, "log": log, "folder": str(ROOT)}),
                file=self._parent.stdin,
                flush=True,
            )
            return Process(int(self._parent.stdout.readline()))

    def close(self) -> None:
        """End it; its containers are ended by who started them."""
        assert self._parent.stdin is not None and self._parent.stdout is not None
        self._parent.stdin.close()
        try:
            self._parent.wait(10)
        except subprocess.TimeoutExpired:
            self._parent.kill()
            self._parent.wait(10)
        self._parent.stdout.close()


def _listener() -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    return listener
