"""What the engine's process prints, as lines of our log: so many in a while, however much it says."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import IO

LOG = logging.getLogger("ltx2.engine.child")
LINE = 2_000
TAIL = 500
LINES, SECONDS = 50, 10.0
PIECE = 1 << 16


class Chatter:
    """Reads a pipe to its end in a thread of its own; at most 50 lines in 10 seconds are logged, the rest counted."""

    def __init__(self, pipe: IO[bytes]):
        self.last: deque[str] = deque(maxlen=20)
        self._pipe = pipe
        self._begin, self._count, self._left_out = time.monotonic(), 0, 0
        self._thread = threading.Thread(target=self._read, name="chatter", daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for the end of the pipe."""
        self._thread.join(seconds)

    def tail(self) -> str:
        """The end of what was said so far, on one line."""
        return " | ".join(list(self.last))[-TAIL:]

    def _read(self) -> None:
        with self._pipe:
            # A line without an end must not fill the memory: it is cut into pieces.
            while line := self._pipe.readline(PIECE):
                self._say(line[:LINE].decode("utf-8", "replace").rstrip())
        self._report()

    def _say(self, line: str) -> None:
        if time.monotonic() - self._begin > SECONDS:
            self._report()
        if not line:
            return
        self.last.append(line)
        self._count += 1
        if self._count <= LINES:
            LOG.info("%s", line)
        else:
            self._left_out += 1

    def _report(self) -> None:
        if self._left_out:
            LOG.warning("%d lines were left out", self._left_out)
        self._begin, self._count, self._left_out = time.monotonic(), 0, 0
