"""The gate, as ASGI middleware before any route and before any byte of a body: size, host, origin, and who asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ltx2.doors.http import links
from ltx2.doors.http.caller import Caller, Unauthorized, tightest
from ltx2.doors.http.errors import fault, of
from ltx2.doors.http.limits import Buckets, RateLimited
from ltx2.doors.http.load import Scales, Weight
from ltx2.doors.http.service import Service
from ltx2.spec.errors import Ltx2Error
from ltx2.spec.service import LOOPBACK

# What answers without a token. Everything else needs one, also what does not exist.
PUBLIC = frozenset({"/livez", "/readyz", "/version", "/openapi.json"})
TOKEN_HEADERS = ("x-api-key", "x-enter-token", "x-backend-token")
SAFE = ("GET", "HEAD", "OPTIONS")
# GET, but it makes a job.
UNSAFE = frozenset({"/generate_web"})
MAX_QUERY = 16 * 1024 - 1
MAX_HEADER = 8 * 1024
MAX_HEADERS = 32 * 1024
MIB = 1 << 20
# Wrong tokens of one address a minute; half of them may come at once.
FAILURES = 60


class Guard:
    """Lets requests through that have a valid token, or a signed link, or go to what is public.

    The caller is put into `scope["state"]["caller"]`. Whoever is refused gets the same words, and the connection is
    closed when a body would follow.
    """

    def __init__(self, app: ASGIApp, service: Service, buckets: Buckets):
        self.app, self.service, self.buckets = app, service, buckets
        self._scales, self._open = Scales(), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, weight = Headers(scope=scope), None
        refusal = self._check_form(scope, headers)
        if refusal is None:
            try:
                refusal = self._check_place(scope, headers)
                if refusal is None:
                    self._let_in(scope, headers)
                    weight = self._scales.weigh(headers, self.service.settings.body_mib * MIB)
            except Ltx2Error as error:
                refusal = of(error)
        if refusal is None and weight is not None:
            await self._pass(scope, receive, send, weight)
            return
        assert refusal
        if headers.get("transfer-encoding") or headers.get("content-length", "0") != "0":
            refusal.headers["Connection"] = "close"
        await refusal(scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send, weight: Weight) -> None:
        scope.setdefault("state", {})["weight"] = weight
        self._open += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._open -= 1
            weight.let_go()

    def _check_form(self, scope: Scope, headers: Headers) -> Response | None:
        if len(scope.get("query_string", b"")) > MAX_QUERY:
            return fault(414, "the query is too long")
        sizes = [len(name) + len(value) for name, value in scope["headers"]]
        if sum(sizes) > MAX_HEADERS or max(sizes, default=0) > MAX_HEADER:
            return fault(431, "the headers are too large")
        if "transfer-encoding" in headers and "content-length" in headers:
            # A proxy before us may have read the other one.
            return fault(400, "a body has a length or chunks, not both")
        length = headers.get("content-length", "0")
        most = self.service.settings.body_mib
        if not (length.isascii() and length.isdigit()) or len(length) > 18 or int(length) > most * MIB:
            return fault(413, f"the body has more than {most} MiB")
        if self._open >= self.service.settings.connections and path_of(scope) not in PUBLIC:
            # Probes are answered: a crowd is no reason to end the server.
            return fault(503, "too many requests are under way", "not_ready")
        return None

    def _check_place(self, scope: Scope, headers: Headers) -> Response | None:
        """Refuse names that are not ours (DNS rebinding) and pages of other sites."""
        settings = self.service.settings
        host = _host_of(headers.get("host", ""))
        known = {name.lower() for name in settings.hosts}
        if settings.is_local:
            known |= {*LOOPBACK, settings.host.lower()}
        if known and host not in known and path_of(scope) not in PUBLIC:
            return fault(403, "this service does not have that name", "forbidden", "Host")
        origin = headers.get("origin")
        if origin in settings.origins or (scope["method"] in SAFE and path_of(scope) not in UNSAFE):
            return None
        # A page of our own has the same name and port as the request itself; a link or a picture has no origin.
        if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            return fault(403, "pages of other sites may not do this", "forbidden", "Origin")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return fault(403, "pages of other sites may not do this", "forbidden", "Sec-Fetch-Site")
        return None

    def _let_in(self, scope: Scope, headers: Headers) -> None:
        path = path_of(scope)
        if path in PUBLIC or scope["method"] == "OPTIONS":
            return
        state = scope.setdefault("state", {})
        query = _query_of(scope)
        presented = token_of(headers)
        if not presented and links.is_signed(query):
            state["caller"] = self._link(scope["method"], path, query)
            return
        address = (scope.get("client") or ("", 0))[0]
        caller = self.service.keys.find(presented)
        if caller is None:
            wait = self.buckets.take(f"from {address}", FAILURES, FAILURES / 2)
            raise RateLimited("too many wrong tokens from this address", wait) if wait else Unauthorized()
        state["caller"] = replace(caller, limit=tightest(caller.limit, self.service.settings.open_jobs))

    def _link(self, method: str, path: str, query: Mapping[str, str]) -> Caller:
        owner = links.reader(self.service.secret, method, path, query)
        caller = Caller(owner, frozenset({"read"}), link=True)
        if not self.service.keys.is_live(caller):
            raise links.BadLink("the token that gave this link out is not valid any more")
        return caller


def token_of(headers: Headers) -> str:
    """The token of a request, from whichever header carries one; empty when none or several different ones do."""
    found = {value for name in TOKEN_HEADERS for value in headers.getlist(name)}
    for value in headers.getlist("authorization"):
        scheme, _, token = value.partition(" ")
        found.add(token.strip() if scheme.lower() == "bearer" else "")
    return found.pop() if len(found) == 1 else ""


def path_of(scope: Scope) -> str:
    """The path below the root path, under which a proxy may show the service."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    if root and (path == root or path.startswith(root + "/")):
        return path[len(root) :]
    return path


def _query_of(scope: Scope) -> dict[str, str]:
    pairs = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
    query = dict(pairs)
    # A parameter that stands twice means one thing here and another elsewhere.
    return query if len(query) == len(pairs) else query | {"twice": ""}


def _host_of(authority: str) -> str:
    """The name without port, brackets and the dot of the root."""
    try:
        return (urlsplit(f"//{authority}").hostname or "").rstrip(".")
    except ValueError:
        return ""
