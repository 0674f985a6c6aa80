"""Function calls as this door sees them: begun, looked at without waiting, cancelled. The traps of `get` are handled here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import modal
import modal.exception

from ltx2.jobs.errors import StoreUnavailable
from ltx2.jobs.job import Ending
from ltx2.spec.discretion import discreet

LOG = logging.getLogger("ltx2.modal")
Look = Ending | Literal["open", "expired", "unknown"]

TIMED_OUT = Ending.of("failed", "deadline_exceeded", "the video took longer than a call may take")
ENDED = Ending.of("failed", "worker_crashed", "the call was ended from outside")


class Calls(Protocol):
    """How jobs reach GPUs."""

    def begin(self, token: str, id: str) -> str:  # noqa: A002
        """Start the making of a job; returns the id of the call."""
        ...

    def look(self, call: str) -> Look:
        """How a call stands, without waiting."""
        ...

    def cancel(self, call: str) -> None:
        """Take a waiting call back, interrupt a running one; the container lives on."""
        ...


@dataclass(frozen=True)
class FunctionCalls:
    """Calls of a deployed method; `spawn` begins one and returns its id."""

    spawn: Callable[[str, str], str]

    def begin(self, token: str, id: str) -> str:  # noqa: A002
        """See Calls. Raises StoreUnavailable when Modal does not take it."""
        try:
            return self.spawn(token, id)
        except (modal.exception.Error, OSError) as error:
            raise StoreUnavailable(f"Modal does not take the call: {error}") from error

    def look(self, call: str) -> Look:
        """See Calls. Raises StoreUnavailable when Modal does not answer."""
        try:
            modal.FunctionCall.from_id(call).get(timeout=0)
        # Not finished: the builtin one. Modal's own timeouts derive from another class of the same name.
        except TimeoutError:
            return "open"
        except modal.exception.OutputExpiredError:
            return "expired"
        except modal.exception.NotFoundError:
            return "unknown"
        except modal.exception.FunctionTimeoutError:
            return TIMED_OUT
        except modal.exception.InternalFailure as error:
            return Ending.of("failed", "worker_crashed", _reason("Modal could not run it", error))
        except (modal.exception.ConnectionError, modal.exception.ServiceError) as error:
            raise StoreUnavailable(f"Modal does not answer: {error}") from error
        except modal.exception.RemoteError:
            return ENDED
        except Exception as error:  # whatever the container's start-up raised
            return Ending.of("failed", getattr(error, "code", "internal"), _reason("the container broke", error))
        return ENDED

    def cancel(self, call: str) -> None:
        """See Calls. A call that is not there any more needs no cancelling."""
        try:
            modal.FunctionCall.from_id(call).cancel()
        except modal.exception.NotFoundError:
            return
        except (modal.exception.Error, OSError) as error:
            raise StoreUnavailable(f"Modal does not answer: {error}") from error


def _reason(what: str, error: Exception) -> str:
    # A container's traceback stays in its log; what Modal says before it says nothing of the trouble.
    lines = str(error).strip().splitlines()
    LOG.warning("%s: %s", what, error)
    return f"{what}: {discreet(lines[-1])}" if lines else what
