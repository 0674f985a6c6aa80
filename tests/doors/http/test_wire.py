"""Requests that two servers could read in two ways (row G6), byte by byte: refused, and the connection closed."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.doors.http.fixtures import app_of, make_service, serving
from tests.doors.http.studio import Studio

POST = "POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ann\r\nContent-Type: application/json\r\n"
GET = "GET /v1/videos HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ann\r\n"
HIDDEN = "GET /v1/videos/hidden HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ann\r\n\r\n"
ODD = {
    "length and chunks": f"{POST}Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}",
    "two lengths": f"{POST}Content-Length: 2\r\nContent-Length: 40\r\n\r\n{{}}{HIDDEN}",
    "a length that is none": f"{POST}Content-Length: +2\r\n\r\n{{}}{HIDDEN}",
    "a negative length": f"{POST}Content-Length: -2\r\n\r\n{{}}{HIDDEN}",
    "a bad chunk": f"{POST}Transfer-Encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n{HIDDEN}",
    "an unknown coding": f"{POST}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{HIDDEN}",
    "a folded header": f"{GET}X-Long: a\r\n b\r\n\r\n",
    "a space before the colon": f"{POST}Transfer-Encoding : chunked\r\nContent-Length: 2\r\n\r\n{{}}{HIDDEN}",
    "a bare line feed in a value": "GET /v1/videos HTTP/1.1\r\nHost: localhost\r\nX: a\nContent-Length: 5\r\n\r\n",
    "no host": "GET /v1/videos HTTP/1.1\r\nAuthorization: Bearer ann\r\n\r\n",
    "a null byte": "GET /v1/videos HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
    "no request": "\x16\x03\x01 hello\r\n\r\n",
}


@pytest.fixture(scope="module")
def port(shared_place: Studio) -> Iterator[int]:
    with serving(app_of(make_service(shared_place))) as address:
        yield int(address.rpartition(":")[2])


@pytest.mark.parametrize("kind", ODD)
def test_G6_smuggling(port: int, kind: str) -> None:
    answers = talk(port, ODD[kind].encode())
    refused = answers.startswith((b"HTTP/1.1 400", b"HTTP/1.1 401"))
    # RFC 9112 lets a server read a folded line as one.
    assert refused or (kind == "a folded header" and answers.startswith(b"HTTP/1.1 200"))
    assert answers.count(b"HTTP/1.1 ") <= 1, "what hides behind a request is never answered"
    assert b"hidden" not in answers


def talk(port: int, data: bytes) -> bytes:
    """What the server answers until it closes the connection, or for two seconds."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(2)
        connection.sendall(data)
        found = b""
        try:
            while piece := connection.recv(65536):
                found += piece
        except (TimeoutError, ConnectionResetError):
            pass
        return found
