"""What the queue raises on purpose, beside the errors of `spec`.

Ltx2Error
├── NoSuchJob         not_found             404    unknown, removed, or another token's
├── Conflict          idempotency_mismatch  422    the same key or id came with another request
├── QueueFull         queue_full            429    too many open jobs, of this token or of all
├── QuotaExceeded     quota_exceeded        429    the token's megapixel-frames of the last 24 hours are spent
└── StoreUnavailable  not_ready             503    the database did not answer within the store's patience
    ├── StorageFull   storage_full          503    no room for another row
    └── WrongStore    wrong_store           500    damaged, on a network file system, or of a newer version
"""

from __future__ import annotations

from ltx2.spec.errors import Ltx2Error


class NoSuchJob(Ltx2Error):
    """There is no such job for this token."""

    code = "not_found"
    status = 404


class Conflict(Ltx2Error):
    """The idempotency key or id belongs to a job that was asked for with other fields."""

    code = "idempotency_mismatch"
    status = 422


class QueueFull(Ltx2Error):
    """The queue takes no more; nothing was written. `own`: this token's limit is reached, others may still come.

    `retry_after`: seconds until there is probably a place, where somebody knows.
    """

    code = "queue_full"
    status = 429
    retry_after: float | None = None

    def __init__(self, message: str, hint: str, own: bool = False):
        super().__init__(message, hint=hint)
        self.own = own


class QuotaExceeded(Ltx2Error):
    """A token has asked for as much as it may in a day; nothing was written.

    `retry_after`: seconds until this job has room, None when it is larger than the whole limit.
    """

    code = "quota_exceeded"
    status = 429

    def __init__(self, message: str, hint: str, retry_after: float | None):
        super().__init__(message, knob="megapixel_frames", hint=hint)
        self.retry_after = retry_after


class StoreUnavailable(Ltx2Error):
    """The database did not answer, in spite of repeated attempts."""

    code = "not_ready"
    status = 503


class StorageFull(StoreUnavailable):
    """The database has no room left; nothing was written."""

    code = "storage_full"


class WrongStore(StoreUnavailable):
    """This database cannot be used by this version, or at this place."""

    code = "wrong_store"
    status = 500
    exit_code = 2
