"""What the API refuses on purpose, beside the errors of `spec` and `jobs`.

Ltx2Error
├── RefusedRequest                                        (400 on this surface)
│   ├── Conflicting       conflicting_parameters  400     two fields say different things
│   ├── FieldNotOffered   not_offered             400     the field is known, this engine cannot do it
│   ├── InvalidMedia      invalid_media           400     the picture cannot be read
│   ├── ForeignMedia      unsupported_media       400     the picture is of a kind that is not taken
│   ├── ForeignBody       unsupported_media       415     neither JSON nor multipart
│   ├── TooLarge          request_too_large       413     more bytes than are taken
│   ├── TooSlow           request_timeout         408     the body did not arrive in time
│   ├── ModelNotFound     model_not_found         404     not one of the models that are served
│   └── NotAcceptable     not_acceptable          406     no format that the client accepts
├── Forbidden             insufficient_scope      403     the token may not do this
├── BadLink               forbidden               403     a signed link that was changed or is over
├── StateConflict         not_ready               409     the video is not made yet, or will never be
├── Gone                  gone                    410     the files were kept long enough
├── Busy                  not_ready               503     too many files are being made at once
└── Unwritable            storage_full            503     the disk is full, or takes nothing
"""

from __future__ import annotations

from ltx2.spec.errors import Ltx2Error, RefusedRequest


class Conflicting(RefusedRequest):
    """Two fields of one request contradict each other."""

    code = "conflicting_parameters"
    status = 400


class FieldNotOffered(RefusedRequest):
    """A field that other services know, and that this engine cannot honour."""

    code = "not_offered"
    status = 400


class InvalidMedia(RefusedRequest):
    """A picture that is broken, too large or of an absurd shape."""

    code = "invalid_media"
    status = 400


class ForeignMedia(RefusedRequest):
    """A file that is neither PNG, JPEG nor WebP by its first bytes."""

    code = "unsupported_media"
    status = 400


class ForeignBody(RefusedRequest):
    """A body that is neither JSON nor a multipart form."""

    code = "unsupported_media"
    status = 415


class TooLarge(RefusedRequest):
    """A body or a part of it with more bytes than are taken."""

    code = "request_too_large"
    status = 413


class TooSlow(RefusedRequest):
    """A body that did not arrive in time."""

    code = "request_timeout"
    status = 408


class ModelNotFound(RefusedRequest):
    """A model that is not served here."""

    code = "model_not_found"
    status = 404


class NotAcceptable(RefusedRequest):
    """Nothing that the client accepts can be made."""

    code = "not_acceptable"
    status = 406


class Forbidden(Ltx2Error):
    """The token is known, but may not do this."""

    code = "insufficient_scope"
    status = 403


class BadLink(Ltx2Error):
    """A signed link that was altered, or whose time is over."""

    code = "forbidden"
    status = 403


class StateConflict(Ltx2Error):
    """The job is not in a state that allows this."""

    code = "not_ready"
    status = 409


class Gone(Ltx2Error):
    """The files of this job were deleted when their time was over."""

    code = "gone"
    status = 410


class Busy(Ltx2Error):
    """Too much of the same work is under way; later there is room."""

    code = "not_ready"
    status = 503


class Unwritable(Ltx2Error):
    """A file of the service could not be written; what is there can still be read."""

    code = "storage_full"
    status = 503
