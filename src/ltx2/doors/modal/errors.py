"""What a deployment on Modal raises on purpose, beside the errors of `spec`, `jobs` and `doors.http`.

Ltx2Error
├── CallGone          gone               410   Modal kept the call for seven days, and no longer
├── SpendCapReached   spend_cap_reached  429   the day's money is spent
├── NotDeployed       not_ready          503   the weights are not on the volume yet
└── DoneElsewhere     not_offered        501   needs the jobs to be in PostgreSQL
"""

from __future__ import annotations

from ltx2.spec.errors import Ltx2Error


class CallGone(Ltx2Error):
    """The call that made the job has expired at Modal, and the job has no ending."""

    code = "gone"
    status = 410


class SpendCapReached(Ltx2Error):
    """The daily spend cap would be passed."""

    code = "spend_cap_reached"
    status = 429
    retry_after = 120


class NotDeployed(Ltx2Error):
    """Something that the operator has to do first."""

    code = "not_ready"
    status = 503
    retry_after = 30


class DoneElsewhere(Ltx2Error):
    """What jobs in a Dict cannot have."""

    code = "not_offered"
    status = 501
