"""How a GPU container begins: imports (kept in the memory snapshot), weights, warm-up; each phase timed and reported."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ltx2.doors.modal import weights
from ltx2.doors.modal.board import Board
from ltx2.doors.modal.imports import import_all
from ltx2.doors.modal.ledger import Meter
from ltx2.doors.modal.outputs import Outputs
from ltx2.doors.modal.render import Engine, Renderer
from ltx2.models.describe import Source, read_card
from ltx2.spec import shapes
from ltx2.spec.card import Card
from ltx2.spec.cost import need
from ltx2.spec.deployment import GPUS, Deployment
from ltx2.spec.plan import Plan, resolve
from ltx2.spec.request import request

LOG = logging.getLogger("ltx2.modal")
# Left for CUDA itself and the allocator.
RESERVE = 4 * 10**9
BOOT = "boot"
# What a restored GPU makes to prove itself where no shape is warmed up.
CHECK = "256x256x9"


@dataclass
class Boot:
    """One container on its way to its first job. `phases` in seconds, in their order."""

    deployment: Deployment
    phases: dict[str, float] = field(default_factory=dict[str, float])
    engine: Engine | None = None
    loading: float = field(default_factory=time.time)

    def load_code(self) -> None:
        """Import everything that is imported; with a snapshot only the first container of a deployment does this."""
        with Phase(self.phases, "imports"):
            import_all()

    def load_model(self) -> None:
        """Load the weights and make the warm-up shapes. Raises what the engine's loading raises."""
        from ltx2.engine import factory

        self.loading = time.time()
        device, memory = device_here()
        source = weights.source_of(self.deployment)
        precision = precision_for(self.deployment, source, memory)
        with Phase(self.phases, "weights"):
            self.engine = factory.make(factory.options(source, device, precision))
        card = replace(weights.card_of(self.deployment), preset=self.deployment.preset)
        for shape, plan in shapes.plans_of(self.deployment.warm_up, card).items():
            with Phase(self.phases, f"warm-up {shape}"):
                self.try_out(plan)

    def try_out(self, plan: Plan) -> None:
        """Make a video in few steps, look at it and throw it away. Raises InvalidOutput."""
        from ltx2.doors.inspection import inspect

        assert self.engine is not None
        plan = shapes.shortened(plan)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "warm-up.mp4"
            for _ in self.engine(plan, out):
                pass
            inspect(plan, out)

    def renderer(self, board: Board, outputs: Outputs, ledger: Any, name: str) -> tuple[Renderer, Meter]:
        """What makes jobs, in every container: after a restore the clock begins anew, and a GPU that was restored is
        tried out. Reports the phases on the board and in the log.
        """
        from ltx2.doors.inspection import inspect

        assert self.engine is not None
        meter = self.meter(ledger, name)
        if restored() and self.deployment.snapshot == "gpu":
            with Phase(self.phases, "self-check"):
                shape = (*self.deployment.warm_up, CHECK)[0]
                self.try_out(weights.trial(self.deployment, weights.card_of(self.deployment), shape))
        gpu = gpu_here(self.deployment)
        report = {"container": name, "gpu": gpu, "phases": self.phases, "seconds": round(time.time() - meter.begun, 1)}
        LOG.info("ready", extra=report)
        board.jobs.put(BOOT, report | {"at": time.time()})
        return Renderer(board, outputs, self.engine, inspect, meter.price, name, self.deployment.attempts), meter

    def meter(self, ledger: Any, name: str) -> Meter:
        """What counts this container's money, from its beginning; after a restore that is what came after it."""
        begun = process_start()
        if restored():
            begun = time.time() if self.deployment.snapshot == "gpu" else self.loading
        price = self.deployment.price_of(gpu_here(self.deployment))
        return Meter(ledger, name, price, self.deployment.scaledown_window, begun)


class Phase:
    """Times its block into a table."""

    def __init__(self, table: dict[str, float], name: str):
        self.table, self.name, self.begun = table, name, 0.0

    def __enter__(self) -> None:
        self.begun = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.table[self.name] = round(time.monotonic() - self.begun, 3)
        LOG.info("%s took %.1f s", self.name, self.table[self.name])


def device_here() -> tuple[str, int | None]:
    """cuda and its memory in bytes, or cpu."""
    import torch

    if not torch.cuda.is_available():
        return "cpu", None
    _, total = torch.cuda.mem_get_info(0)
    return "cuda", total


def gpu_here(deployment: Deployment) -> str:
    """Which GPU of the list Modal gave us; where it cannot be told, the dearest: money is rather counted too high."""
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        # Whole words: an A100 is no A10, though an A10G is one.
        found = [gpu for gpu in deployment.gpus if re.search(rf"\b{gpu.rstrip('!').partition('-')[0]}G?\b", name)]
        if found:
            return found[0]
    return max(deployment.gpus, key=lambda gpu: GPUS[gpu].price)


def precision_for(deployment: Deployment, source: Source, memory: int | None) -> str:
    """The precision to load in: as set, else bf16 where the weights and the default video fit this GPU, else fp8."""
    if memory is None:
        return "auto"
    card = replace(read_card(source), preset=deployment.preset)
    return fitting(deployment, card, resolve(request(prompt="x"), card), memory)


def fitting(deployment: Deployment, card: Card, plan: Plan, memory: int) -> str:
    """The precision in which a GPU with `memory` bytes holds the model and makes the Plan."""
    if deployment.precision != "auto":
        return deployment.precision
    return "bf16" if need(plan, card).resident_bytes + RESERVE <= memory else "fp8"


def restored() -> bool:
    """Whether this container may have come from a snapshot: Modal restores even the one that it was taken of."""
    return os.environ.get("MODAL_ENABLE_SNAP_RESTORE") == "1"


def process_start() -> float:
    """When this process began, in seconds since 1970."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.time()
