"""The keys of a service in memory: tokens of its database, read anew every second, and the one of the environment."""

from __future__ import annotations

import hmac
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from ltx2.doors.http.caller import Caller, Scope
from ltx2.jobs import tokens
from ltx2.jobs.tokens import Token

LOG = logging.getLogger(__name__)
PAUSE = 1.0
# Jobs asked for with the token of the environment, and those of a service that asks for none.
ENTERED, LOCAL = "enter", "local"


class Keyring:
    """Finds the caller of a token without asking the database.

    `read` gives the live tokens; `enter` is the token of the environment (ENTER_TOKEN); with `open_house` everybody is
    let in, whatever they send, as a service that only this machine can reach may do. The first token ends that for good:
    when it is revoked or expires, nobody is let in.
    """

    def __init__(self, read: Callable[[], Sequence[Token]], enter: str | None = None, open_house: bool = False):
        self._read, self._enter, self._open = read, enter or None, open_house
        self._tokens: Mapping[str, Token] = {}
        self._names: Mapping[str, Sequence[Token]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="keys", daemon=True)

    def start(self) -> None:
        """Read the tokens now, and again every second from here on. Raises StoreUnavailable."""
        self.reload()
        self._thread.start()

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()

    def reload(self) -> None:
        """Read the tokens. Raises StoreUnavailable."""
        found = self._read()
        names: dict[str, list[Token]] = {}
        for token in found:
            names.setdefault(token.name, []).append(token)
        self._tokens, self._names = {token.id: token for token in found}, names
        self._open = self._open and not found

    @property
    def is_empty(self) -> bool:
        """Whether there is no valid token."""
        return not self._tokens and self._enter is None

    @property
    def is_open(self) -> bool:
        """Whether everybody is let in, whatever token they send: some clients cannot send none."""
        return self._open and self.is_empty

    def find(self, presented: str) -> Caller | None:
        """The caller of a token; None when it is not valid."""
        if self._enter is not None and _same(presented, self._enter):
            return Caller(ENTERED, key=ENTERED)
        read = tokens.read(presented)
        # An id that nobody has costs the same comparison as a wrong secret.
        token = self._tokens.get(read[0]) if read else None
        fits = (token or NOBODY).fits(read[1] if read else "")
        if token and fits and token.is_live(time.time()):
            return caller_of(token)
        return Caller(LOCAL, key=LOCAL) if self.is_open else None

    def is_live(self, caller: Caller) -> bool:
        """Whether a caller would be let in now."""
        if caller.name == ENTERED and self._enter is not None:
            return True
        if caller.name == LOCAL and self.is_open:
            return True
        now = time.time()
        return any(
            token.is_live(now) and (caller.link or token.id == caller.key) for token in self._names.get(caller.name, ())
        )

    def webhook_secrets(self, name: str) -> Sequence[str]:
        """The secrets that sign webhooks of a name, the newest first."""
        return [token.webhook_secret for token in self._names.get(name, ())]

    def _keep(self) -> None:
        while not self._stop.wait(PAUSE):
            try:
                self.reload()
            except Exception as error:  # the last known tokens go on working; their own times are still looked at
                LOG.warning("tokens could not be read, will be tried again: %s", type(error).__name__)


def caller_of(token: Token) -> Caller:
    """The caller that a token makes."""
    return Caller(
        token.name,
        frozenset(cast("tuple[Scope, ...]", token.scopes)),
        token.limit,
        token.rpm,
        token.id,
        running=token.running,
        megapixel_frames=token.megapixel_frames,
    )


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "surrogatepass"), other.encode("utf-8", "surrogatepass"))


NOBODY = Token("", "", tokens.digest_of(""), (), None, None, "", 0.0, None, 0.0)
