"""Which addresses outside may be asked on a stranger's behalf: one look-up, every answer checked, nothing internal."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from ltx2.spec.errors import RefusedRequest

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int, float], Sequence[Address]]
"""Addresses of a host and port, within so many seconds."""

MAX_URL = 2048
PORTS = {"https": 443, "http": 80}

# IANA's registries of special-purpose addresses, and multicast. Written out, since what the standard library calls
# global differs between Python releases.
SPECIAL = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        "2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20",
    )
)  # fmt: skip
# Beyond this part of IPv6 nothing is given out to anyone.
UNICAST = IPv6Network("2000::/3")
# These carry an IPv4 address in their last 32 bits, and it is that one that is reached.
CARRIERS = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))


class UrlNotAllowed(RefusedRequest):
    """The URL is not one that this service asks: not https on port 443, or not a public address."""

    code = "url_not_allowed"
    status = 400


@dataclass(frozen=True)
class Place:
    """A URL that was checked, and the addresses to connect to: those of the one look-up, and no others.

    `host` is the name that TLS checks; `target` the path and query.
    """

    scheme: str
    host: str
    port: int
    target: str
    addresses: tuple[Address, ...] = field(repr=False)

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.authority}:{self.port}"

    @property
    def authority(self) -> str:
        """The host, with brackets where it is an IPv6 address."""
        return f"[{self.host}]" if ":" in self.host else self.host


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet, also under its IPv6 disguises."""
    if isinstance(address, IPv6Address):
        if address.scope_id:
            return False
        if any(address in carrier for carrier in CARRIERS):
            return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in UNICAST:
            return False
    return not any(address in network for network in SPECIAL if network.version == address.version)


def resolve(host: str, port: int, seconds: float) -> Sequence[Address]:
    """All addresses of a host by the system's resolver, which also reads forms such as 0x7f.1.

    Raises OSError when there is none within the time.
    """
    answer: list[Address] = []

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return
        answer.extend(dict.fromkeys(ip_address(str(entry[4][0])) for entry in found))

    # The system's resolver knows no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive() or not answer:
        raise OSError(f"{host} has no address")
    return tuple(answer)


def origin_of(url: str) -> str:
    """The origin of a URL with its port, as `trusted` of `place` has it. Raises UrlNotAllowed."""
    return _parsed(url).origin


def place(url: str, trusted: frozenset[str] = frozenset(), find: Resolve = resolve, seconds: float = 5.0) -> Place:
    """Check a URL and look its host up, once.

    Only https on port 443 without user and password, and only when every address of the host is public; an origin of
    `trusted` (as in http://127.0.0.1:9000, always with the port) may be anything. Raises UrlNotAllowed.
    """
    parsed = _parsed(url)
    if parsed.origin not in trusted and (parsed.scheme, parsed.port) != ("https", 443):
        raise UrlNotAllowed("url: only https on port 443 is asked", knob="url", hint="as in https://example.org/cat")
    try:
        addresses = tuple(find(parsed.host, parsed.port, seconds))
    except OSError:
        addresses = ()
    # One message for names that do not exist and for those inside: nobody may find out from here which are which.
    if not addresses or not (parsed.origin in trusted or all(map(is_public, addresses))):
        raise UrlNotAllowed("url: this host has no public address, or one that is not", knob="url")
    return Place(parsed.scheme, parsed.host, parsed.port, parsed.target, addresses)


def _parsed(url: str) -> Place:
    refused = UrlNotAllowed("url: not a plain https URL", knob="url", hint="as in https://example.org/cat.png")
    if len(url) > MAX_URL or "\\" in url or any(not "!" <= letter <= "~" for letter in url):
        raise refused
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").removesuffix(".")
        port = parts.port or PORTS.get(parts.scheme, 0)
    except ValueError:
        raise refused from None
    if parts.scheme not in PORTS or not host or len(host) > 253 or "@" in parts.netloc or "%" in parts.netloc:
        raise refused
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Place(parts.scheme, host, port, target, ())
