"""Reads tensors from safetensors files straight onto a device: several threads, bounded buffers, no second copy in memory.

Each thread reads pieces with `pread`: into the tensor itself on a CPU, or into one of its two pinned buffers and from
there to the GPU on a stream of its own, so that disk and bus work at once. Files are not mapped: a mapped page that is
not there stalls the copy, and a file that shrinks would kill the process.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ltx2.models.header import Entry
from ltx2.spec.errors import CheckpointError

THREADS = 8
# Bytes of one pread and of one pinned buffer: large enough for the disk, small enough for eight threads to share a tensor.
PIECE = 16 * 2**20
# Bytes of tensors that may be under way at once, beyond the one that is waited for.
AHEAD = 512 * 2**20
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def read(entries: Mapping[str, Entry], device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) on the device, in the order in which they lie in their files.

    Host memory beyond the tensors themselves stays below THREADS * 2 * PIECE. Raises CheckpointError for a file that
    cannot be read or is shorter than its header says.
    """
    order = sorted(entries.items(), key=lambda item: (str(item[1].file), item[1].start))
    waiting: deque[tuple[str, Tensor, list[Future[torch.cuda.Event | None]]]] = deque()
    ahead = 0
    with ExitStack() as stack:
        files = {file: stack.enter_context(_opened(file)) for file in {entry.file for entry in entries.values()}}
        lanes = threading.local()
        pool = stack.enter_context(ThreadPoolExecutor(THREADS))
        # Entered last, so left first: what has not begun is dropped before the pool waits for the rest.
        stack.callback(lambda: [piece.cancel() for _, _, pieces in waiting for piece in pieces])
        for name, entry in order:
            tensor = torch.empty(entry.shape, dtype=_dtype(entry), device=device)
            waiting.append((name, tensor, _submit(pool, lanes, files[entry.file], entry, tensor)))
            ahead += tensor.nbytes
            while waiting and ahead > AHEAD:
                name, done = _finish(waiting)
                ahead -= done.nbytes
                yield name, done
        while waiting:
            yield _finish(waiting)


def _submit(
    pool: ThreadPoolExecutor, lanes: threading.local, file: int, entry: Entry, tensor: Tensor
) -> list[Future[torch.cuda.Event | None]]:
    target = tensor.reshape(-1).view(torch.uint8)
    if tensor.device.type != "cuda":
        spans = range(0, target.numel(), PIECE)
        return [pool.submit(_fetch, file, entry, start, target[start : start + PIECE]) for start in spans]
    # The allocator may hand out memory that work on the current stream still uses: copies wait for that.
    free = torch.cuda.Event()
    free.record(torch.cuda.current_stream(tensor.device))
    spans = range(0, target.numel(), PIECE)
    return [pool.submit(_send, lanes, file, entry, start, target[start : start + PIECE], free) for start in spans]


def _finish(waiting: deque[tuple[str, Tensor, list[Future[torch.cuda.Event | None]]]]) -> tuple[str, Tensor]:
    name, tensor, pieces = waiting[0]
    for piece in pieces:
        event = piece.result()
        if event is not None:
            torch.cuda.current_stream(tensor.device).wait_event(event)
    waiting.popleft()
    return name, tensor


def _fetch(file: int, entry: Entry, start: int, target: Tensor) -> None:
    """Fill `target`, bytes in host memory, from `start` bytes into the tensor."""
    view = target.numpy().data
    done = 0
    while done < len(view):
        try:
            count = os.preadv(file, [view[done:]], entry.start + start + done)
        except OSError as error:
            raise CheckpointError(f"{entry.file.name} cannot be read: {error.strerror}") from error
        if count == 0:
            raise CheckpointError(f"{entry.file.name} ends inside {entry.key}: it changed while it was read")
        done += count


def _send(
    lanes: threading.local, file: int, entry: Entry, start: int, target: Tensor, free: torch.cuda.Event
) -> torch.cuda.Event:
    """Fill `target`, bytes on a GPU, through the thread's pinned buffers; the event says when it has arrived."""
    if not hasattr(lanes, "lane"):
        lanes.lane = _Lane(target.device)
    return lanes.lane.send(file, entry, start, target, free)


class _Lane:
    """One thread's way to a GPU: a stream, and two pinned buffers that take turns."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)
        self.buffers = [torch.empty(PIECE, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self.sent: list[torch.cuda.Event | None] = [None, None]
        self.turn = 0

    def send(self, file: int, entry: Entry, start: int, target: Tensor, free: torch.cuda.Event) -> torch.cuda.Event:
        self.turn = 1 - self.turn
        before = self.sent[self.turn]
        if before is not None:
            before.synchronize()
        buffer = self.buffers[self.turn][: target.numel()]
        _fetch(file, entry, start, buffer)
        arrived = torch.cuda.Event()
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(free)
            target.copy_(buffer, non_blocking=True)
            arrived.record(self.stream)
        self.sent[self.turn] = arrived
        return arrived


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    try:
        number = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        yield number
    finally:
        os.close(number)


def _dtype(entry: Entry) -> torch.dtype:
    if entry.dtype not in DTYPES:
        raise CheckpointError(f"{entry.file.name}: {entry.key} is {entry.dtype}, which cannot be loaded")
    return DTYPES[entry.dtype]
