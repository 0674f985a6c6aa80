"""The courier: takes due webhooks from the outbox, signs them after Standard Webhooks, and sends them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from ltx2.jobs.errors import StoreUnavailable
from ltx2.jobs.outbox import Letter
from ltx2.jobs.store import Store
from ltx2.spec.errors import RefusedRequest

Send = Callable[[str, Mapping[str, str], bytes], int]
"""Posts a body to a URL and returns the status; follows no redirect, and gives up after 10 seconds by raising."""
Secrets = Callable[[str], Sequence[str]]
"""The signing secrets of a token, the newest first; two while one is being replaced."""

PREFIX = "whsec_"


def sign(secret: str, letter: str, timestamp: int, body: bytes) -> str:
    """One `v1,…` signature of a webhook (https://www.standardwebhooks.com): HMAC-SHA256 of `id.timestamp.body`.

    Raises RefusedRequest for a secret that is not `whsec_` and base64.
    """
    try:
        if not secret.startswith(PREFIX):
            raise ValueError
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (ValueError, binascii.Error):
        raise RefusedRequest(
            "webhook_secret: it is no whsec_ and base64",
            knob="webhook_secret", hint="`echo whsec_$(openssl rand -base64 24)` makes one",
        ) from None  # fmt: skip
    message = f"{letter}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, message, hashlib.sha256).digest()).decode()


def headers(letter: Letter, secrets: Sequence[str], timestamp: int) -> dict[str, str]:
    """The headers of one try, with a signature for every secret."""
    signatures = [sign(secret, letter.id, timestamp, letter.body.encode()) for secret in secrets]
    return {
        "content-type": "application/json",
        "webhook-id": letter.id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }


def deliver(store: Store, send: Send, secrets: Secrets) -> bool:
    """Try one letter; False when none is due. What the receiver does never reaches the job."""
    letter = store.take_letter()
    if letter is None:
        return False
    try:
        status = send(letter.url, headers(letter, secrets(letter.token), int(time.time())), letter.body.encode())
    except Exception:  # a receiver can fail in as many ways as there are networks
        store.refused(letter, None)
        return True
    if 200 <= status < 300:
        store.delivered(letter)
    else:
        store.refused(letter, status)
    return True


def carry(store: Store, send: Send, secrets: Secrets, stop: threading.Event, pause: float = 0.5) -> None:
    """Deliver until told to stop. Several may run, in threads or processes: a host gets one letter at a time."""
    while not stop.is_set():
        try:
            busy = deliver(store, send, secrets)
        except StoreUnavailable:
            busy = False
        if not busy:
            stop.wait(pause)
