"""Where container processes come from: `python -m tests.fake_modal.nursery` forks one for each line of JSON.

Importing torch takes most of the time that a container needs to begin on a CPU, so it is done once, before the forks;
what runs in a fork is the client's own entry point for containers, as if it had been started with `python -m`.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
from importlib import import_module

from ltx2.doors.modal.imports import import_all

# No modal here: it reads its environment, and each container has another.
WARM = (
    "torch", "transformers", "ltx2.models.components", "ltx2.engine.factory", "ltx2.engine.engine", "ltx2.doors.inspection",
    "fastapi", "sqlalchemy", "structlog", "httpx",
)  # fmt: skip
ENTRY = "modal._container_entrypoint"


def become(given: dict[str, object]) -> None:
    """Be a container: its environment, log and folder, then the entry point."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(str(given["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(given["environment"])  # type: ignore[call-overload]
    os.chdir(str(given["folder"]))
    sys.path[:0] = os.environ.get("PYTHONPATH", "").split(":")
    sys.argv = [ENTRY]
    runpy.run_module(ENTRY, run_name="__main__", alter_sys=True)


def refuse() -> bool:
    """Stands for CUDA during the imports."""
    raise AssertionError("an import asks CUDA: the CPU snapshot of a container would be of no use")


def main() -> None:
    """Fork until there are no more lines."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    torch = import_module("torch")
    cuda, accelerator = torch.cuda, torch.accelerator
    asked = cuda.is_available, cuda._lazy_init, accelerator.current_accelerator
    # A container imports all this before its memory snapshot is taken, where CUDA must not be asked anything; with a torch
    # that was built for CUDA, as this one then says it is.
    cuda.is_available = cuda._lazy_init = refuse
    accelerator.current_accelerator = lambda *_: torch.device("cuda")
    import_all(WARM)
    cuda.is_available, cuda._lazy_init, accelerator.current_accelerator = asked
    parent = os.getpid()
    for line in sys.stdin:
        process = os.fork()
        if not process:
            code = 0
            try:
                become(json.loads(line))
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
            except BaseException:
                import traceback

                traceback.print_exc()
                code = 1
            finally:
                sys.stdout.flush()
                os._exit(code)
        assert os.getpid() == parent
        print(process, flush=True)


if __name__ == "__main__":
    main()
