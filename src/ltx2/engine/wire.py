"""Frames over a socket pair: four bytes of length, then so many bytes of JSON. Nothing that arrives is ever executed."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time

from ltx2.engine.messages import Message, ProtocolError

# A plan is some kilobytes.
LIMIT = 1 << 20
LENGTH = struct.Struct("!I")


class Wire:
    """One end of the pair. One thread may receive while others send."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self._sending = threading.Lock()

    def send(self, message: Message, seconds: float = 10.0) -> None:
        """Send one message whole. Raises OSError when the other side is gone or takes nothing for so long."""
        data = message.model_dump_json().encode()
        if len(data) > LIMIT:
            raise ProtocolError(f"a message of {len(data)} bytes; {LIMIT} is the most")
        view, end = memoryview(LENGTH.pack(len(data)) + data), time.monotonic() + seconds
        with self._sending:
            while view:
                if not self._ready(select.POLLOUT, end - time.monotonic()):
                    raise TimeoutError("the other side takes nothing")
                view = view[self.connection.send(view, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]

    def receive(self, end: float | None = None) -> bytes | None:
        """The next frame; None when the other side has closed. `end` is a time of the monotonic clock.

        Raises ProtocolError for a frame that is too long or cut off, TimeoutError at `end`, OSError.
        """
        head = self._exactly(LENGTH.size, end)
        if not head:
            return None
        (length,) = LENGTH.unpack(head)
        if not 0 < length <= LIMIT:
            raise ProtocolError(f"a frame of {length} bytes; {LIMIT} is the most")
        body = self._exactly(length, end)
        if len(body) < length:
            raise ProtocolError("the connection ended inside a frame")
        return body

    def hang_up(self) -> None:
        """End the talk; a thread that receives sees the end of it."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up and give the descriptor back; for the thread that receives."""
        self.hang_up()
        self.connection.close()

    def _exactly(self, count: int, end: float | None) -> bytes:
        """So many bytes; fewer only at the very beginning of a frame, and then none."""
        data = bytearray()
        while len(data) < count:
            if end is not None and not self._ready(select.POLLIN, end - time.monotonic()):
                raise TimeoutError("nothing came")
            piece = self.connection.recv(count - len(data))
            if not piece and data and count == LENGTH.size:
                raise ProtocolError("the connection ended inside a frame")
            if not piece:
                break
            data += piece
        return bytes(data)

    def _ready(self, event: int, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self.connection, event)
        return bool(poll.poll(max(0.0, seconds) * 1000))
