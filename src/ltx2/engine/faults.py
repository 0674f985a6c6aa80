"""What to make of an error in a run: too little memory, a full disk, a device that is lost to this process."""

from __future__ import annotations

import errno
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from ltx2.models import fast
from ltx2.models.components import Models
from ltx2.models.residency import Residency
from ltx2.spec.errors import GenerationFailed, Ltx2Error, OutOfMemory, OutOfRoom, WorkerCrashed

FULL = (errno.ENOSPC, errno.EDQUOT)
OUT_OF_MEMORY = (
    "DefaultCPUAllocator", "CUDA error: out of memory", "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "DEVICE_ALLOCATION_FAILED",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less memory would have helped. A CPU's allocator raises a plain RuntimeError, as do CUDA and its libraries
    where they allocate by themselves: for a graph, for pinned memory, for a handle, for a kernel's code.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def explained(error: Exception, device: torch.device) -> Ltx2Error:
    """The error of the tree for one that broke a run; those of the tree stay what they are."""
    if any(isinstance(cause, OSError) and cause.errno in FULL for cause in _causes(error)):
        return OutOfRoom("there was no room for the video", hint="free some space")
    if isinstance(error, Ltx2Error):
        return error
    if is_out_of_memory(error):
        return OutOfMemory("there was not enough memory", hint="ask for a smaller size or fewer frames")
    if is_lost(device):
        return WorkerCrashed(f"the device was lost: {_first_line(error)}", hint="another process may work")
    return GenerationFailed(f"{type(error).__name__}: {error}")


def is_lost(device: torch.device) -> bool:
    """Whether the device answers no more: after an illegal access or a failed assertion every later call fails."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError as error:
        return not is_out_of_memory(error)
    return False


def release(device: torch.device) -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if device.type == "cuda":
        # On a lost device this fails as all else does, and must not take the place of the error that says so.
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


@contextmanager
def frugal(models: Models) -> Iterator[None]:
    """Inside the block networks wait on the CPU, and only those at work are on the device; nothing else is kept there.

    Afterwards they are where they were, or wait on until `bring_back` finds room. Raises OutOfMemory when the CPU has
    no room for them either.
    """
    before = models.residency
    if before.policy != "resident" or models.device.type == "cpu":
        yield
        return
    # Fast passes keep weights of their own, and graphs that know where weights lay.
    models.frugal = True
    # Said before they go: wherever a lack of memory leaves them, they may be brought back from there.
    models.residency = Residency("staged", models.device)
    try:
        try:
            _move(models, models.residency)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory("neither the device nor the CPU has room", hint="ask for a smaller size") from error
        yield
    finally:
        models.frugal = False
        bring_back(models, before)


def bring_back(models: Models, residency: Residency) -> None:
    """Have the networks live as they are meant to, where a lack of memory sent them away; without room they stay away."""
    away = models.residency
    if away is residency:
        return
    try:
        _move(models, residency)
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Only here, beyond the handler, nothing holds what had been moved when there was no more room.
    _move(models, away)


def _move(models: Models, residency: Residency) -> None:
    for name, network in models.networks.items():
        # A text encoder with a device of its own stays there.
        if name == "text_encoder" and models.text_device != models.device:
            continue
        fast.forget(network)
        network.to(residency.home)
    models.residency = residency
    release(models.device)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
