"""A hub on 127.0.0.1 for tests: listings, redirects to another origin, ranges, errors, and faults on demand."""

from __future__ import annotations

import hashlib
import json
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import prod
from typing import Any
from urllib.parse import unquote, urlsplit

BYTES = {"BF16": 2, "F32": 4, "F16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1}


@dataclass(frozen=True)
class Content:
    """What a file holds: its first bytes, and zeros up to its size, which take no memory."""

    start: bytes
    size: int

    def read(self, start: int, stop: int) -> bytes:
        piece = self.start[start:stop]
        return piece + bytes(stop - start - len(piece))


@dataclass
class FakeRepository:
    """One repository; `error` is sent instead of anything else: (status, X-Error-Code)."""

    files: dict[str, Content]
    error: tuple[int, str] | None = None
    token: str | None = None

    @cached_property
    def commit(self) -> str:
        return hashlib.sha1(repr([(path, self.checksum(path)) for path in sorted(self.files)]).encode()).hexdigest()

    def is_large(self, path: str) -> bool:
        return path.endswith(".safetensors")

    def checksum(self, path: str) -> str:
        content = self.files[path]
        if content.size > 2**22:
            return hashlib.sha256(content.start).hexdigest()  # Too large to be read: only headers are asked for.
        body = content.read(0, content.size)
        if self.is_large(path):
            return hashlib.sha256(body).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


@dataclass
class FakeHub:
    """The server's state. Faults: `cuts` are numbers of bytes after which the next bodies break off, `flip` damages the
    last byte of bodies, `new_etags` gives every answer another etag, `no_ranges` ignores ranges, `delay` is in seconds
    for each 64 KiB. `log` records (method, path, range, authorization, host) of every request."""

    repositories: dict[str, FakeRepository] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    flip: bool = False
    new_etags: bool = False
    no_ranges: bool = False
    delay: float = 0.0
    log: list[tuple[str, str, str | None, str | None, str]] = field(default_factory=list)
    port: int = 0
    content_port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, name: str, files: Mapping[str, bytes | Content]) -> FakeRepository:
        contents = {
            path: Content(content, len(content)) if isinstance(content, bytes) else content
            for path, content in files.items()
        }
        self.repositories[name] = FakeRepository(contents)
        return self.repositories[name]

    def bodies(self) -> list[tuple[str, str | None]]:
        """Path and range of every request for the content of a large file."""
        return [(path, wanted) for method, path, wanted, *_ in self.log if method == "GET" and path.startswith("/cdn/")]


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """Run the hub and the origin that its content comes from, each in a thread."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
    hub.port, hub.content_port = (server.server_address[1] for server in servers)
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.hub.log.append(
            (self.command, path, self.headers["Range"], self.headers["Authorization"], self.headers["Host"])
        )
        words = path.strip("/").split("/")
        if words[0] == "cdn":
            repository = self.hub.repositories["/".join(words[1:3])]
            return self._content(repository, "/".join(words[3:]))
        api = words[:2] == ["api", "models"]
        words = words[2:] if api else words
        repository = self.hub.repositories.get("/".join(words[:2]))
        if repository is None:
            return self._error(404, "RepoNotFound")
        if repository.error:
            return self._error(*repository.error)
        if repository.token and self.headers["Authorization"] != f"Bearer {repository.token}":
            return self._error(401, "GatedRepo")
        revision = words[3] if len(words) > 3 else "main"
        if revision not in ("main", repository.commit):
            return self._error(404, "RevisionNotFound")
        if api:
            return self._json(self._tree(repository) if words[2:3] == ["tree"] else self._info(repository))
        return self._resolve("/".join(words[:2]), repository, "/".join(words[4:]))

    def _info(self, repository: FakeRepository) -> dict[str, Any]:
        siblings = []
        for path, content in repository.files.items():
            sibling: dict[str, Any] = {"rfilename": path, "size": content.size, "blobId": "0" * 40}
            checksum = repository.checksum(path)
            if repository.is_large(path):
                sibling["lfs"] = {"sha256": checksum, "size": content.size, "pointerSize": 100}
            else:
                sibling["blobId"] = checksum
            siblings.append(sibling)
        return {"id": "x/y", "sha": repository.commit, "siblings": siblings}

    def _tree(self, repository: FakeRepository) -> list[dict[str, Any]]:
        rows = []
        for path, content in repository.files.items():
            row: dict[str, Any] = {"type": "file", "path": path, "size": content.size, "oid": repository.checksum(path)}
            if repository.is_large(path):
                row["lfs"] = {"oid": repository.checksum(path), "size": content.size, "pointerSize": 100}
            rows.append(row)
        return rows

    def _resolve(self, name: str, repository: FakeRepository, path: str) -> None:
        if path not in repository.files:
            return self._error(404, "EntryNotFound")
        if not repository.is_large(path):
            return self._content(repository, path)
        location = {"Location": f"http://127.0.0.1:{self.hub.content_port}/cdn/{name}/{path}"}
        return self._answer(302, b"", self._linked(repository, path) | location)

    def _linked(self, repository: FakeRepository, path: str) -> dict[str, str]:
        checksum, size = repository.checksum(path), repository.files[path].size
        return {
            "X-Repo-Commit": repository.commit,
            "X-Linked-Etag": f'"{checksum}"',
            "X-Linked-Size": str(size),
        }

    def _content(self, repository: FakeRepository, path: str) -> None:
        content, wanted = repository.files[path], self.headers["Range"]
        start, stop, status = 0, content.size, 200
        # huggingface_hub follows redirects to the same address, so the content says again whose it is.
        fields = self._linked(repository, path) | {"ETag": f'"{repository.checksum(path)}"'}
        if self.hub.new_etags:
            fields["ETag"] = f'"{len(self.hub.log)}"'
        if wanted and not self.hub.no_ranges:
            first, last = wanted.removeprefix("bytes=").split("-")
            start, stop, status = int(first), min(int(last) + 1, content.size), 206
            fields["Content-Range"] = f"bytes {start}-{stop - 1}/{content.size}"
        self.send_response(status)
        for key, value in (fields | {"Content-Length": str(stop - start)}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self._send(content, start, stop)

    def _send(self, content: Content, start: int, stop: int) -> None:
        end = min(stop, start + self.hub.cuts.pop(0)) if self.hub.cuts else stop
        try:
            for position in range(start, end, 2**16):
                piece = content.read(position, min(position + 2**16, end))
                if self.hub.flip and position + len(piece) == content.size:
                    piece = piece[:-1] + bytes([piece[-1] ^ 1])
                self.wfile.write(piece)
                time.sleep(self.hub.delay)
        except OSError:
            end = 0  # The client went away.
        if end < stop:
            self.close_connection = True

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str) -> None:
        self._answer(status, b"", {"X-Error-Code": code})

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def safetensors(
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Content:
    """A safetensors file of zeros in any size, bfloat16 unless `dtypes` says otherwise."""
    fields: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for key, shape in shapes.items():
        dtype = (dtypes or {}).get(key, "BF16")
        begin, end = end, end + prod(shape) * BYTES[dtype]
        fields[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(fields).encode()
    return Content(struct.pack("<Q", len(text)) + text, 8 + len(text) + end)
