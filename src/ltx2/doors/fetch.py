"""Asking other hosts on a client's behalf: media by `fetch`, webhooks by `send`, never anything internal.

Connections go to the addresses that were checked, with the name in the URL for TLS and Host; no proxy of the
environment, no cookies, no decompression, and one deadline over everything from the look-up to the last byte.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

import httpcore

from ltx2.doors.addresses import Place, Resolve, UrlNotAllowed, place, resolve
from ltx2.spec.errors import RefusedRequest

REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 3
FETCH_SECONDS = 20.0
SEND_SECONDS = 10.0
CONNECT_SECONDS = 5.0
AGENT = b"ltx2"
BROKEN = (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, OSError)


class FetchFailed(RefusedRequest):
    """The host was asked and gave nothing that can be used: an error, too much, too slowly, or something garbled."""

    code = "fetch_failed"
    status = 400


@dataclass(frozen=True)
class Outside:
    """The way out. `trusted` origins (as in http://127.0.0.1:9000) may be plain http, on any port and internal.

    `find` looks hosts up, `context` has the certificates that count (None: the usual ones).
    """

    trusted: frozenset[str] = frozenset()
    find: Resolve = resolve
    context: ssl.SSLContext | None = None

    def check(self, url: str) -> Place:
        """The checked place of a URL. Raises UrlNotAllowed."""
        return place(url, self.trusted, self.find)

    def fetch(self, url: str, limit: int, seconds: float = FETCH_SECONDS) -> bytes:
        """The body at a URL, of at most `limit` bytes, following up to three redirects that are checked anew.

        Raises UrlNotAllowed, and FetchFailed when it takes longer than `seconds` or is not a plain 200.
        """
        end = time.monotonic() + seconds
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        for _ in range(MAX_REDIRECTS + 1):
            with self._asked("GET", self.check(url), headers, None, end) as response:
                if response.status not in REDIRECTS:
                    return _body(response, limit)
                url = urljoin(url, _header(response, b"location"))
        raise UrlNotAllowed("url: too many redirects", knob="url", hint=f"{MAX_REDIRECTS} are followed")

    def send(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Post a body and return the status, whatever it is; redirects are not followed.

        Raises UrlNotAllowed, and FetchFailed when there is no answer within ten seconds.
        """
        end = time.monotonic() + SEND_SECONDS
        with self._asked("POST", self.check(url), headers, body, end) as response:
            return response.status

    @contextmanager
    def _asked(
        self, method: str, to: Place, headers: Mapping[str, str], body: bytes | None, end: float
    ) -> Generator[httpcore.Response]:
        authority = to.authority if to.port in (80, 443) else f"{to.authority}:{to.port}"
        every = {"Host": authority, "User-Agent": AGENT, "Connection": "close", **headers}
        if body is not None:
            every["Content-Length"] = str(len(body))
        url = httpcore.URL(scheme=to.scheme, host=to.host, port=to.port, target=to.target)
        wire = [(_bytes(name), _bytes(value)) for name, value in every.items()]
        try:
            with (
                httpcore.ConnectionPool(ssl_context=self.context, network_backend=_Pinned(to, end)) as pool,
                pool.stream(method, url, headers=wire, content=body) as response,
            ):
                yield response
        except BROKEN as error:
            raise FetchFailed("url: the host did not answer as it should", knob="url") from error


def fetch(url: str, limit: int, seconds: float = FETCH_SECONDS) -> bytes:
    """`Outside.fetch` with nothing trusted."""
    return Outside().fetch(url, limit, seconds)


def send(url: str, headers: Mapping[str, str], body: bytes) -> int:
    """`Outside.send` with nothing trusted: the `Send` of the courier."""
    return Outside().send(url, headers, body)


def _body(response: httpcore.Response, limit: int) -> bytes:
    if response.status != 200:
        raise FetchFailed(f"url: the host answered {response.status}", knob="url")
    if _header(response, b"content-encoding") not in ("", "identity"):
        raise FetchFailed("url: the host sent something compressed", knob="url", hint="it was asked not to")
    too_much = FetchFailed(f"url: more than {limit} bytes", knob="url")
    stated = _header(response, b"content-length")
    if stated.isdecimal() and int(stated[:20]) > limit:
        raise too_much
    body = bytearray()
    for chunk in response.iter_stream():
        body += chunk
        if len(body) > limit:
            raise too_much
    return bytes(body)


def _header(response: httpcore.Response, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in response.headers if key.lower() == name), "")


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("ascii")


class _Pinned(httpcore.NetworkBackend):
    """Connects to the checked addresses only, and holds every read and write to the deadline."""

    def __init__(self, to: Place, end: float):
        self.to, self.end = to, end

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        backend, options = httpcore.SyncBackend(), [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
        refused: Exception = httpcore.ConnectTimeout("out of time")
        for address in self.to.addresses:
            try:
                seconds = min(CONNECT_SECONDS, _left(self.end))
                return _Stream(backend.connect_tcp(str(address), port, seconds, socket_options=options), self.end)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                refused = error
        raise refused


class _Stream(httpcore.NetworkStream):
    """A connection with a deadline: a host that sends one byte now and then does not last longer."""

    def __init__(self, stream: httpcore.NetworkStream, end: float):
        self.stream, self.end = stream, end

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.stream.read(max_bytes, _left(self.end))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, _left(self.end))

    def close(self) -> None:
        self.stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self.stream.start_tls(ssl_context, server_hostname, _left(self.end)), self.end)

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


def _left(end: float) -> float:
    seconds = end - time.monotonic()
    if seconds <= 0:
        raise httpcore.ReadTimeout("out of time")
    return seconds
