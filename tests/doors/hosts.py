"""Hosts on loopback that behave as told, and a watch over every connection that this process tries to make."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Behaviour = Callable[[socket.socket, bytes], None]
_watched: list[Any] | None = None
_hooked = False


def answer(head: str, body: bytes = b"") -> Behaviour:
    """Answers with this status line and headers (lines), and the body; its length is said unless a header does."""

    def behave(connection: socket.socket, request: bytes) -> None:
        length = "" if "length" in head.lower() or "chunked" in head else f"\r\nContent-Length: {len(body)}"
        connection.sendall(f"HTTP/1.1 {head}{length}\r\n\r\n".encode() + body)

    return behave


class Host:
    """A server of one behaviour; `requests` are the heads and bodies that came."""

    def __init__(self, behave: Behaviour, context: ssl.SSLContext | None = None):
        self.behave, self.context = behave, context
        self.requests: list[bytes] = []
        self.names: list[str | None] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        if context:
            context.sni_callback = lambda _socket, name, _context: self.names.append(name)
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def origin(self) -> str:
        return f"{'https' if self.context else 'http'}://127.0.0.1:{self.port}"

    def close(self) -> None:
        # Closing alone does not wake the thread that accepts, and so the port would stay open.
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            connection.settimeout(30)
            if self.context:
                connection = stack.enter_context(self.context.wrap_socket(connection, server_side=True))
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(65536) or b"\r\n\r\n"
            head, _, body = request.partition(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0
            )
            while len(body) < length:
                body += connection.recv(65536) or b" " * length
            self.requests.append(head + b"\r\n\r\n" + body)
            self.behave(connection, self.requests[-1])


@contextlib.contextmanager
def watched() -> Iterator[list[Any]]:
    """The addresses that anything in this process connects to inside the block."""
    global _watched, _hooked
    if not _hooked:
        # There is no way to take a hook out again.
        sys.addaudithook(_note)
        _hooked = True
    _watched = seen = []
    try:
        yield seen
    finally:
        _watched = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and _watched is not None:
        _watched.append(arguments[1])


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context with a fresh certificate for `name`, and a client's that trusts it."""
    pem = folder / "server.pem"
    subject = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", *subject]
    subprocess.run([*command, "-keyout", str(pem), "-out", str(folder / "cert.pem")], check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "cert.pem", pem)
    return server, ssl.create_default_context(cafile=str(folder / "cert.pem"))
