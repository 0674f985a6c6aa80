"""Engines for the child process that break on demand: the prompt of the plan says how, word by word.

Only tests name these factories; no setting of the product leads here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from ltx2.spec.errors import CheckpointError, InvalidOutput, OutOfMemory, WorkerCrashed
from ltx2.spec.events import Event, Finished, Progress, Retrying
from ltx2.spec.plan import Plan

STEPS = 4


def make(options: Mapping[str, Any]) -> Callable[[Plan, Path], Generator[Event, None, None]]:
    """An engine whose steps take `step` seconds; `load` seconds to make it, or an error in `fail`."""
    time.sleep(options.get("load", 0.0))
    match options.get("fail"):
        case "checkpoint":
            raise CheckpointError("model: a byte is wrong", knob="model", hint="download it again")
        case "unforeseen":
            raise FileNotFoundError("/models/weights.safetensors")
        case "die":
            os._exit(3)
        case "cry":
            os.write(2, b"no driver\nno hope\n")
            os._exit(3)
        case "first":
            # Only the first process of several fails.
            marker = Path(options["marker"])
            if not marker.exists():
                marker.touch()
                raise CheckpointError("model: not there yet", knob="model")
        case _:
            pass

    def generate(plan: Plan, out: Path) -> Generator[Event, None, None]:
        out.parent.joinpath("pid").write_text(str(os.getpid()))
        part = out.with_suffix(".part")
        part.write_text("half")
        try:
            yield Progress("text", 1, 1)
            for step in range(STEPS):
                time.sleep(options.get("step", 0.01))
                if step == 2:
                    yield from act(plan.prompt, out)
                yield Progress("stage 1", step + 1, STEPS)
            part.rename(out)
            yield Finished(out, plan.seed, 0.5, 1 << 40, {"stage 1": 0.25}, ("a warning",))
        finally:
            part.unlink(missing_ok=True)

    return generate


def act(prompt: str, out: Path) -> Generator[Event, None, None]:
    """Do what the prompt says, in the middle of a job."""
    word, _, rest = prompt.partition(" ")
    pipe = int(sys.argv[1])
    match word:
        case "die":
            os.kill(os.getpid(), getattr(signal, rest or "SIGKILL"))
        case "die-once":
            marker = Path(rest)
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            sys.exit(int(rest))
        case "segfault":
            ctypes.string_at(0)
        case "sticky":
            raise WorkerCrashed("the device was lost: an illegal memory access was encountered")
        case "memory":
            yield Retrying("the device ran out of memory")
            raise OutOfMemory("the device ran out of memory", hint="ask for less")
        case "nan":
            raise InvalidOutput("the decoded picture has values that are not finite", knob="seed", hint="another seed")
        case "unforeseen":
            raise KeyError("/secret/path")
        case "full":
            raise OSError(28, "No space left on device", str(out))
        case "sleep":
            time.sleep(float(rest))
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "garbage":
            os.write(pipe, struct.pack("!I", 12) + b"hello, world")
        case "huge":
            os.write(pipe, b"\xff\xff\xff\xff")
        case "wrong":
            os.write(pipe, struct.pack("!I", len(rest)) + rest.encode())
        case "partial":
            os.write(pipe, struct.pack("!I", 100) + b"{")
            socket.socket(fileno=os.dup(pipe)).shutdown(socket.SHUT_RDWR)
            time.sleep(60)
        case "endless":
            while True:
                yield Progress("stage 1", 1, STEPS)
        case "chatter":
            line = b"x" * 1023 + b"\n"
            for _ in range(int(rest)):
                os.write(1, line * 64)
            os.write(2, b"y" * 200_000)
        case "grandchild":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
            out.parent.joinpath("grandchild").write_text(str(child.pid))
            os._exit(9)
        case _:
            pass
    yield Progress("stage 1", 3, STEPS)
