"""The process that holds the device: makes an engine, then one video after the other, as the parent says.

`python -m ltx2.engine.child DESCRIPTOR PARENT` is started by `process`. It ends when the parent does, whatever it is
doing then, and after an error that no later CUDA call of the same process survives.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

from ltx2.engine.messages import (
    Cancel,
    Cancelled,
    Make,
    Order,
    ProtocolError,
    Ready,
    Start,
    broken_by,
    read_order,
    report_of,
)
from ltx2.engine.wire import Wire
from ltx2.spec.errors import GenerationFailed, WorkerCrashed
from ltx2.spec.events import Event, Finished
from ltx2.spec.plan import Plan

LOG = logging.getLogger(__name__)
Generate = Callable[[Plan, Path], Generator[Event, None, None]]
"""What a factory returns. Closing the generator cancels."""

EXIT_LOST, EXIT_PROTOCOL, EXIT_LOAD, EXIT_STICKY = 0, 64, 69, 70
SET_PARENT_DEATH_SIGNAL = 1


class Inbox:
    """Orders of the parent, read by a thread of their own, so that a cancel is heard in the middle of a job."""

    def __init__(self, wire: Wire):
        self.wire = wire
        self.orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._cancelled = -1
        threading.Thread(target=self._read, name="orders", daemon=True).start()

    def is_cancelled(self, job: int) -> bool:
        return self._cancelled >= job

    def _read(self) -> None:
        try:
            while (data := self.wire.receive()) is not None:
                order = read_order(data)
                if isinstance(order, Cancel):
                    self._cancelled = order.job
                else:
                    self.orders.put(order)
        except ProtocolError as error:
            LOG.error("%s", error)
            os._exit(EXIT_PROTOCOL)
        except OSError:
            pass
        # Without a parent nobody wants the video, and the device is wanted by others: no clean-up may delay this.
        os._exit(EXIT_LOST)


def main(descriptor: int, parent: int) -> int:
    """Serve until the parent is gone; returns the exit status."""
    die_with_parent(parent)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # Ctrl-C in a terminal is for the parent, which lets the work end or not.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wire = Wire(socket.socket(fileno=descriptor))
    wire.connection.set_inheritable(False)
    inbox = Inbox(wire)
    first = inbox.orders.get()
    if not isinstance(first, Start):
        return EXIT_PROTOCOL
    try:
        generate = find(first.factory)(first.options)
    except Exception as error:
        LOG.exception("the engine could not be made")
        wire.send(broken_by(None, error))
        return EXIT_LOAD
    wire.send(Ready())
    while True:
        order = inbox.orders.get()
        if not isinstance(order, Make):
            return EXIT_PROTOCOL
        try:
            work(wire, inbox, generate, order)
        except WorkerCrashed:
            return EXIT_STICKY


def work(wire: Wire, inbox: Inbox, generate: Generate, order: Make) -> None:
    """Make one video and report. Raises WorkerCrashed, after reporting it, when this process cannot go on."""
    job = order.job
    try:
        with closing(generate(Plan.from_dict(order.plan), Path(order.out))) as events:
            for event in events:
                if inbox.is_cancelled(job) and not isinstance(event, Finished):
                    break
                wire.send(report_of(job, event))
                if isinstance(event, Finished):
                    return
            else:
                raise GenerationFailed("the engine ended without a result")
        wire.send(Cancelled(job=job))
    except WorkerCrashed as error:
        wire.send(broken_by(job, error))
        raise
    except Exception as error:
        LOG.exception("job %d broke", job)
        wire.send(broken_by(job, error))


def find(name: str) -> Callable[..., Generate]:
    """The factory behind module:function."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process when the parent dies, even while it hangs in a kernel call or holds its lock."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    # It may have died before.
    if os.getppid() != parent:
        os._exit(EXIT_LOST)


if __name__ == "__main__":
    status = main(int(sys.argv[1]), int(sys.argv[2]))
    sys.stderr.flush()
    # No tidying of the interpreter: with a broken device it can hang.
    os._exit(status)
