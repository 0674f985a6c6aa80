"""Every error that this package raises on purpose, with the code that a client sees and the exit code of the CLI.

Ltx2Error                      code               HTTP  exit
├── RefusedRequest             invalid_request     422     2    the request cannot be done as asked
│   ├── UnknownModel           unknown_model       404     2    no such model here
│   ├── CheckpointError        invalid_checkpoint  422     2    the files are not the checkpoint they should be
│   └── NotOffered             not_offered         501     2    known to the model family, not to this engine
├── DoesNotFit                 exceeds_capacity    422     3    this machine cannot hold the plan
│   └── OutOfMemory            out_of_memory       500     3    it ran out while running, also on a second, frugal try
└── GenerationFailed           failed              500     1    it broke while running
    ├── InvalidOutput          invalid_output      500     1    the networks gave NaN or infinity, or the file is broken
    ├── OutOfRoom              storage_full        503     1    the disk had no room for the video
    └── WorkerCrashed          worker_crashed      500     1    the process or device that made it died; it may be tried again
"""

from __future__ import annotations


class Ltx2Error(Exception):
    """Base of all errors raised on purpose.

    `knob` names the option at fault (as in `width`), `hint` says what would work.
    """

    code = "error"
    status = 500
    exit_code = 1

    def __init__(self, message: str, *, knob: str | None = None, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.knob = knob
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class RefusedRequest(Ltx2Error):
    """The request cannot be done as asked; nothing was loaded or written."""

    code = "invalid_request"
    status = 422
    exit_code = 2


class UnknownModel(RefusedRequest):
    """The named model is neither embedded, nor a folder, nor a file, nor in the local cache."""

    code = "unknown_model"
    status = 404


class CheckpointError(RefusedRequest):
    """The files are incomplete, foreign, corrupt or contradict each other; the message names the tensor or file."""

    code = "invalid_checkpoint"


class NotOffered(RefusedRequest):
    """A feature of the model family that this version of the engine does not have."""

    code = "not_offered"
    status = 501


class DoesNotFit(Ltx2Error):
    """The plan needs more memory than the device has; the hint names the largest setting that fits."""

    code = "exceeds_capacity"
    status = 422
    exit_code = 3


class OutOfMemory(DoesNotFit):
    """The device ran out of memory while running, and again when the plan was tried frugally."""

    code = "out_of_memory"
    status = 500


class GenerationFailed(Ltx2Error):
    """The run broke; no file was left behind."""

    code = "failed"


class InvalidOutput(GenerationFailed):
    """The networks produced values that are not finite, or the file cannot be decoded."""

    code = "invalid_output"


class OutOfRoom(GenerationFailed):
    """The disk had no room for the video; nothing was left behind."""

    code = "storage_full"
    status = 503


class WorkerCrashed(GenerationFailed):
    """The process that made the video died, or its device did: only another process can go on."""

    code = "worker_crashed"
