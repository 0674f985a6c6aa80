"""`ltx2 modal smoke URL`: one video end to end against a deployed service, as a client would, with what it took."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from ltx2.spec.errors import GenerationFailed, RefusedRequest

POLL = 2.0


def smoke(values: argparse.Namespace) -> int:
    """Check the gate, make one video, download and check it; prints what happened. Raises GenerationFailed.

    The token is ENTER_TOKEN of the environment. Raises RefusedRequest without it or without a URL.
    """
    token = os.environ.get("ENTER_TOKEN")
    if not values.url:
        raise RefusedRequest("url: which service?", knob="url", hint="the address that `modal deploy` printed")
    if not token:
        raise RefusedRequest("ENTER_TOKEN is not set", knob="ENTER_TOKEN", hint="the token in the secret enter-token")
    service = Service(values.url.rstrip("/"), token)
    begun = time.monotonic()

    def say(text: str) -> None:
        if not values.json:
            print(text, file=sys.stderr, flush=True)

    status, body = service.ask("GET", "/readyz", with_token=False)
    say(f"readyz: {status} {body.decode(errors='replace')[:300]}")
    if status != 200:
        raise GenerationFailed(f"the service is not ready: {body.decode(errors='replace')[:300]}")
    status, _ = service.ask("POST", "/v1/videos", {"prompt": "x"}, with_token=False)
    if status != 401:
        raise GenerationFailed(f"a request without a token got {status}, not 401")
    job = service.json("POST", "/v1/videos", {"prompt": values.prompt, "seed": 1})
    job, waited = _follow(service, job, values.wait, say)
    status, data = service.ask("GET", f"/v1/videos/{job['id']}/content")
    if status != 200 or data[4:8] != b"ftyp":
        raise GenerationFailed(f"the content of a completed video got {status} and is no mp4")
    out = Path(values.output)
    out.write_bytes(data)
    report = {
        "id": job["id"], "seconds": round(time.monotonic() - begun, 1), "waited_for_gpu": round(waited, 1), "bytes": len(data),
        "usage": job["usage"], "last_start": service.json("GET", "/readyz").get("last_start"), "file": str(out),
    }  # fmt: skip
    print(json.dumps(report))
    return 0


def _follow(service: Service, job: dict[str, Any], patience: float, say: Any) -> tuple[dict[str, Any], float]:
    """Poll to the end; the job, and the seconds until it was begun."""
    begun, started, shown = time.monotonic(), 0.0, ""
    while job["status"] not in ("completed", "failed"):
        if time.monotonic() - begun > patience:
            raise GenerationFailed(
                f"job {job['id']} is {job['status']} after {patience:.0f} s", hint="--wait is longer"
            )
        if job["status"] == "in_progress" and not started:
            started = time.monotonic() - begun
        text = f"{job['status']} {job['stage'] or ''} {job['step'] or 0}/{job['steps'] or 0} {job['progress']} %"
        if text != shown:
            say(f"{time.monotonic() - begun:7.1f} s  {text}")
            shown = text
        time.sleep(POLL if started or time.monotonic() - begun > 10 else 0.5)
        job = service.json("GET", f"/v1/videos/{job['id']}")
    if job["status"] == "failed":
        raise GenerationFailed(f"job {job['id']} failed: {job['error']}")
    return job, started


class Service:
    """A deployed service and its token."""

    def __init__(self, url: str, token: str):
        self.url, self.token = url, token

    def ask(self, method: str, path: str, body: Any = None, with_token: bool = True) -> tuple[int, bytes]:
        """Status and body of one request. Raises GenerationFailed when nobody answers."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if data else {}
        if with_token:
            headers["Authorization"] = f"Bearer {self.token}"
        # No token in the URL, and none for wherever a redirect would lead.
        asked = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=180) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError as error:
            raise GenerationFailed(f"{self.url} does not answer: {error}") from error

    def json(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """The JSON object of one request. Raises GenerationFailed for an error, with its text."""
        status, data = self.ask(method, path, body)
        if status >= 400:
            raise GenerationFailed(f"{method} {path}: {status} {data.decode(errors='replace')[:500]}")
        found: dict[str, Any] = json.loads(data)
        return found
