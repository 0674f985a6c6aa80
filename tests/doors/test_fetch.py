"""The guard of URLs: nothing internal is asked, whatever its disguise; nothing outside can hold us up or fill us up."""

from __future__ import annotations

import gzip
import resource
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import httpcore
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltx2.doors import fetch as fetch_module
from ltx2.doors.addresses import CARRIERS, Address, UrlNotAllowed, is_public, origin_of, place, resolve
from ltx2.doors.fetch import FetchFailed, Outside
from tests.doors.hosts import Behaviour, Host, answer, certificate, watched

PUBLIC = ip_address("93.184.215.14")
Start = Callable[..., Host]


@pytest.fixture
def start() -> Iterator[Start]:
    hosts: list[Host] = []

    def make(behave: Behaviour, context: ssl.SSLContext | None = None) -> Host:
        hosts.append(Host(behave, context))
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


def found(*addresses: Address) -> Callable[[str, int, float], tuple[Address, ...]]:
    return lambda host, port, seconds: addresses


INSIDE = [
    "127.0.0.1", "127.1.2.3", "0.0.0.0", "10.1.2.3", "100.64.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255",
    "192.0.0.192", "192.168.1.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1",
    "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1",
    "fd00::1", "fe80::1", "fe80::1%1", "fec0::1", "ff02::1", "2001::1", "2002:7f00:1::", "2001:db8::1", "100::1",
    "::1:0:0", "4000::1",
]  # fmt: skip


@pytest.mark.parametrize("address", INSIDE)
def test_c1_no_special_address_is_public(address: str) -> None:
    assert not is_public(ip_address(address))
    with pytest.raises(UrlNotAllowed):
        place("https://example.org/", find=found(ip_address(address)))


@pytest.mark.parametrize("address", ["93.184.215.14", "172.32.0.1", "2606:4700::1111", "64:ff9b::5db8:d70e"])
def test_c1_the_open_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))
    assert place("https://example.org/a?b", find=found(ip_address(address))).target == "/a?b"


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_c1_nothing_that_the_standard_library_calls_internal_is_public(address: Address) -> None:
    if address.is_private or address.is_loopback or address.is_link_local or address.is_reserved:
        # To the standard library these are reserved; to us they are as public as what they carry.
        assert not is_public(address) or any(address in carrier for carrier in CARRIERS)


URLS = [
    "https://127.0.0.1/", "https://[::1]/", "https://0.0.0.0/", "https://169.254.169.254/latest/meta-data/",
    "https://[fd00::1]/", "https://10.0.0.1/", "https://100.64.0.1/", "https://192.0.0.192/",
    "https://[::ffff:127.0.0.1]/", "https://[64:ff9b::7f00:1]/", "https://2130706433/", "https://0x7f.1/",
    "https://0177.0.0.1/", "https://127.1/", "https://localhost/", "https://localhost./", "https://LOCALHOST/",
    "https://a@127.0.0.1/", "https://a:b@example.org/", "https://127.0.0.1:443@example.org/", "http://example.org/",
    "https://example.org:8443/", "https://example.org:80/", "https://example.org:99999/", "https://[fe80::1%25lo]/",
    "https:///path", "https://", "//example.org/", "example.org", "file:///etc/passwd", "gopher://127.0.0.1:11211/_x",
    "ftp://example.org/", "https://exa\tmple.org/", "https://example.org\\@127.0.0.1/", "https://example.org/\r\nX: y",
    " https://127.0.0.1/", "https://exämple.org/", "https://[::1", "https://" + "a" * 3000, "",
]  # fmt: skip


@pytest.mark.parametrize("url", URLS, ids=range(len(URLS)))
def test_c1_h3_no_internal_url_is_asked_in_any_form(url: str) -> None:
    with watched() as connections:
        for act in (
            lambda: Outside().check(url),
            lambda: Outside().fetch(url, 100),
            lambda: Outside().send(url, {}, b""),
        ):
            with pytest.raises(UrlNotAllowed) as caught:
                act()
            assert caught.value.status == 400 and caught.value.code == "url_not_allowed"
            assert "127.0.0.1" not in str(caught.value), "what was found is not told"
    assert connections == []


def test_c1_the_system_reads_numbers_as_addresses_and_so_does_the_guard() -> None:
    assert [str(address) for address in resolve("0x7f.1", 443, 5.0)] == ["127.0.0.1"]


def test_a_trusted_origin_needs_no_port_to_be_written() -> None:
    trusted = frozenset(map(origin_of, ("http://hook.internal", "https://hook.internal", "http://[::1]:9")))
    assert "http://hook.internal:80" in trusted
    inside = found(ip_address("10.0.0.1"))
    for url in ("http://hook.internal/a", "http://HOOK.internal:80/a", "https://hook.internal/a", "http://[::1]:9/"):
        assert place(url, trusted, inside).addresses
    for url in ("http://hook.internal:8080/a", "https://other.internal/a"):
        with pytest.raises(UrlNotAllowed):
            place(url, trusted, inside)


def test_what_is_trusted_is_trusted_by_scheme_host_and_port(start: Start) -> None:
    host = start(answer("200 OK", b"hello"))
    outside = Outside(frozenset({host.origin}))
    assert outside.fetch(f"{host.origin}/a?b=1", 100) == b"hello"
    for other in (f"http://127.0.0.1:{host.port + 1}", f"https://127.0.0.1:{host.port}", f"http://0.0.0.0:{host.port}"):
        with pytest.raises(UrlNotAllowed):
            outside.fetch(other, 100)


def test_the_request_is_plain(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    host = start(answer("200 OK", b"hello"))
    Outside(frozenset({host.origin})).fetch(f"{host.origin}/a?b=1#fragment", 100)
    head = host.requests[0].decode().split("\r\n")
    assert head[0] == "GET /a?b=1 HTTP/1.1" and f"Host: 127.0.0.1:{host.port}" in head
    assert "Accept-Encoding: identity" in head and not any(line.startswith("Cookie") for line in head)


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/", "https://127.0.0.1/", "https://localhost/", "file:///etc/passwd", "gopher://127.0.0.1/",
        "http://example.org/", "https://example.org:8443/", "//127.0.0.1/", "https://a@127.0.0.1/",
    ],
)  # fmt: skip
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_c2_a_redirect_to_the_inside_is_not_followed(start: Start, target: str, status: int) -> None:
    host = start(answer(f"{status} Go\r\nLocation: {target}"))
    with watched() as connections, pytest.raises(UrlNotAllowed):
        Outside(frozenset({host.origin})).fetch(host.origin, 100)
    assert connections == [("127.0.0.1", host.port)] and len(host.requests) == 1


def test_c2_three_redirects_are_followed_and_no_fourth(start: Start) -> None:
    goal = [3]

    def count(connection: socket.socket, request: bytes) -> None:
        number = int(request.split()[1].removeprefix(b"/"))
        if number < goal[0]:
            answer(f"302 Go\r\nLocation: {number + 1}")(connection, request)
        else:
            answer("200 OK", b"there")(connection, request)

    host = start(count)
    outside = Outside(frozenset({host.origin}))
    assert outside.fetch(f"{host.origin}/0", 100) == b"there"
    for goal[0] in (4, 11):
        with pytest.raises(UrlNotAllowed, match="too many redirects"):
            outside.fetch(f"{host.origin}/0", 100)


def test_c2_a_redirect_to_nowhere_ends(start: Start) -> None:
    host = start(answer("302 Go"))
    with pytest.raises(UrlNotAllowed):
        Outside(frozenset({host.origin})).fetch(host.origin, 100)


def test_c3_the_second_answer_of_a_name_server_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, asked = [PUBLIC, ip_address("127.0.0.1")], []

    def rebind(host: str, port: int, seconds: float) -> tuple[Address]:
        return (answers.pop(0),)

    def connect(self: object, host: str, port: int, *args: object, **more: object) -> httpcore.NetworkStream:
        asked.append((host, port))
        raise httpcore.ConnectError("not here")

    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect)
    with watched() as connections, pytest.raises(FetchFailed):
        Outside(find=rebind).fetch("https://rebind.test/cat.png", 100)
    assert asked == [(str(PUBLIC), 443)] and len(answers) == 1 and connections == []


def test_c3_one_internal_address_among_public_ones_refuses_them_all() -> None:
    for other in ("127.0.0.1", "::1", "10.0.0.1"):
        with watched() as connections, pytest.raises(UrlNotAllowed):
            Outside(find=found(PUBLIC, ip_address(other))).fetch("https://mixed.test/", 100)
        assert connections == []


def test_c3_the_checked_address_is_asked_under_the_name_of_the_url(start: Start, tmp_path: Path) -> None:
    server, client = certificate(tmp_path, "media.test")
    host = start(answer("200 OK", b"hello"), server)
    origin = f"https://media.test:{host.port}"
    here = found(ip_address("127.0.0.1"))
    assert Outside(frozenset({origin}), here, client).fetch(f"{origin}/cat.png", 100) == b"hello"
    assert host.names == ["media.test"] and f"Host: media.test:{host.port}".encode() in host.requests[0]
    # The same host under a name that its certificate does not have, and without trust in who signed it.
    other = f"https://other.test:{host.port}"
    for outside, url in (
        (Outside(frozenset({other}), here, client), other),
        (Outside(frozenset({origin}), here), origin),
    ):
        with pytest.raises(FetchFailed):
            outside.fetch(url, 100)
        with pytest.raises(FetchFailed):
            outside.send(url, {}, b"")
    assert len(host.requests) == 1


def test_every_address_is_tried(start: Start) -> None:
    host = start(answer("200 OK", b"hello"))
    origin = f"http://media.test:{host.port}"
    outside = Outside(frozenset({origin}), found(ip_address("127.0.0.9"), ip_address("127.0.0.1")))
    assert outside.fetch(origin, 100) == b"hello"


def drip(head: bytes, pause: float) -> Behaviour:
    def behave(connection: socket.socket, request: bytes) -> None:
        for byte in head + b"x" * 10_000:
            connection.sendall(bytes([byte]))
            time.sleep(pause)

    return behave


def pour(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")


def hush(connection: socket.socket, request: bytes) -> None:
    time.sleep(20)


def inform(connection: socket.socket, request: bytes) -> None:
    while True:
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        time.sleep(0.05)


@pytest.mark.parametrize(
    "behave",
    [
        drip(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n", 0.05),
        drip(b"HTTP/1.1 200 OK\r\nX: ", 0.05),
        hush,
        inform,
    ],
    ids=["slow body", "slow head", "no answer", "hints without end"],
)
def test_c4_who_is_slow_is_left_at_the_deadline(start: Start, behave: Behaviour) -> None:
    host = start(behave)
    outside = Outside(frozenset({host.origin}))
    begin = time.monotonic()
    with pytest.raises(FetchFailed):
        outside.fetch(host.origin, 100_000, seconds=0.5)
    assert time.monotonic() - begin < 3


@pytest.mark.parametrize(
    ("behave", "limit"),
    [
        (pour, 1 << 20),
        (answer("200 OK\r\nContent-Length: 1000000000000"), 1 << 20),
        (answer("200 OK\r\nContent-Length: " + "9" * 30), 1 << 20),
        (answer("200 OK", b"x" * 1001), 1000),
        (answer("200 OK\r\nContent-Encoding: gzip", gzip.compress(b"\0" * 10_000_000)), 1 << 30),
        (answer("200 OK\r\nContent-Length: 100", b"short"), 1000),
        (answer("200 OK\r\nContent-Length: 5\r\nContent-Length: 6", b"hello"), 1000),
        (answer("404 Not Found", b"hello"), 1000),
        (answer("206 Partial Content", b"hello"), 1000),
        (answer("200 OK\r\n" + "X: " + "y" * 200_000, b"hello"), 1000),
        (lambda connection, request: connection.sendall(b"SSH-2.0-OpenSSH\r\n"), 1000),
        (lambda connection, request: None, 1000),
    ],
    ids=range(12),
)
def test_c4_who_sends_too_much_or_rubbish_is_refused(start: Start, behave: Behaviour, limit: int) -> None:
    host = start(behave)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FetchFailed) as caught:
        Outside(frozenset({host.origin})).fetch(host.origin, limit)
    assert caught.value.status == 400 and "127.0.0.1" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024, "KiB"


def test_a_host_that_is_down_is_no_answer(start: Start) -> None:
    host = start(hush)
    host.close()
    with pytest.raises(FetchFailed):
        Outside(frozenset({host.origin})).send(host.origin, {}, b"{}")


def test_a_name_server_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_more: time.sleep(5) or [])
    begin = time.monotonic()
    with pytest.raises(UrlNotAllowed):
        place("https://example.org/", seconds=0.2)
    assert time.monotonic() - begin < 3


@pytest.mark.parametrize("status", [200, 204, 301, 302, 307, 404, 410, 500, 503])
def test_h1_what_a_receiver_answers_is_what_send_returns_and_no_redirect_is_followed(start: Start, status: int) -> None:
    host = start(answer(f"{status} Status\r\nLocation: http://127.0.0.1:1/", b"x"))
    outside = Outside(frozenset({host.origin}))
    assert outside.send(f"{host.origin}/hook", {"webhook-id": "msg_1"}, b'{"a": 1}') == status
    (request,) = host.requests
    assert request.startswith(b"POST /hook HTTP/1.1\r\n") and request.endswith(b'\r\n\r\n{"a": 1}')
    assert b"webhook-id: msg_1\r\n" in request and b"Content-Length: 8" in request


def test_h1_a_receiver_gets_ten_seconds_and_no_more(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch_module.SEND_SECONDS == 10.0
    monkeypatch.setattr(fetch_module, "SEND_SECONDS", 0.5)
    for behave in (hush, drip(b"HTTP/1.1 200 OK\r\nX: ", 0.05), inform):
        host = start(behave)
        begin = time.monotonic()
        with pytest.raises(FetchFailed):
            Outside(frozenset({host.origin})).send(host.origin, {}, b"{}")
        assert time.monotonic() - begin < 3
