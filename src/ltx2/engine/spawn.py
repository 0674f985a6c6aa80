"""One child process of the engine, seen from its parent: started in a group of its own, spoken to, ended for certain."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

from ltx2.engine.chatter import Chatter
from ltx2.engine.wire import Wire

LOG = logging.getLogger(__name__)
# What the engine does not need to know: the parent has read its settings, and hands over what counts.
SECRETS = ("LTX2_", "ENTER_TOKEN")


class Child:
    """A running `ltx2.engine.child`. The thread that makes one must live as long as it.

    The kernel's parent-death signal comes when that thread ends, not when the process does.
    """

    def __init__(self, environment: Mapping[str, str]):
        ours, theirs = socket.socketpair()
        known = {name: value for name, value in os.environ.items() if not name.startswith(SECRETS)}
        # -P: no module is looked for in the folder where the service happens to be started.
        command = [sys.executable, "-P", "-X", "faulthandler", "-m", "ltx2.engine.child"]
        with theirs:
            self.process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**known, **environment},
                start_new_session=True,
            )
        self.wire = Wire(ours)
        self._reaping = threading.RLock()
        assert self.process.stdout, "it was asked for"
        self.chatter = Chatter(self.process.stdout)

    def kill(self, patience: float) -> None:
        """SIGTERM to the whole group, and SIGKILL when it is still there after `patience` seconds."""
        self._signal(signal.SIGTERM)
        end = time.monotonic() + patience
        while self._runs() and time.monotonic() < end:
            time.sleep(0.02)
        self._signal(signal.SIGKILL)

    def end(self, patience: float) -> int:
        """See the process off, with everything it started, and return its exit status (negative: a signal)."""
        self.wire.close()
        end = time.monotonic() + patience
        while self._runs() and time.monotonic() < end:
            time.sleep(0.02)
        with self._reaping:
            self._signal(signal.SIGKILL)
            status = self.process.wait()
        self.chatter.join(1.0)
        return status

    def _runs(self) -> bool:
        """Whether the process lives, without reaping it: until then nobody else can have its number."""
        try:
            return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    def _signal(self, number: signal.Signals) -> None:
        with self._reaping, suppress(ProcessLookupError):
            # Once it is reaped, its number may be another's.
            if self.process.returncode is None:
                os.killpg(self.process.pid, number)
