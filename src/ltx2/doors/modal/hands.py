"""The work of one GPU container, from its report to its last second: jobs of either queue, and the videos of `modal run`."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import modal
import modal.exception

from ltx2.doors.modal import weights
from ltx2.doors.modal.deploy import DATABASE
from ltx2.spec.errors import GenerationFailed
from ltx2.spec.events import Finished
from ltx2.spec.plan import Plan, resolve
from ltx2.spec.request import request

if TYPE_CHECKING:
    from ltx2.doors.modal.boot import Boot
    from ltx2.doors.modal.database import Hand
    from ltx2.doors.modal.deploy import Place
    from ltx2.doors.modal.ledger import Meter
    from ltx2.doors.modal.render import Engine, Renderer

LOG = logging.getLogger("ltx2.modal")


@dataclass
class Hands:
    """The work of one GPU container."""

    place: Place
    boot: Boot
    renderer: Renderer | None = None
    meter: Meter | None = None
    hand: Hand | None = None

    def load(self) -> None:
        """Weights and warm-up. Raises what loading raises, which Modal shows to callers."""
        try:
            self.boot.load_model()
        except Exception:
            # Modal tries again in a new container: the spend cap must see what each of them costs.
            self.boot.meter(self.place.ledger(), container()).stop()
            raise

    def ready(self) -> None:
        """The report and what a job needs, in every container, also in one that was restored from a snapshot."""
        name = container()
        board, outputs = self.place.board(), self.place.files()
        self.renderer, self.meter = self.boot.renderer(board, outputs, self.place.ledger(), name)
        self.meter.start()
        # Kernels that the warm-up compiled are there for the next container.
        self._keep_kernels()
        if os.environ.get(DATABASE):
            from ltx2.doors.modal.database import Hand
            from ltx2.jobs.store import Store

            store, attempts = Store(os.environ[DATABASE]), self.place.deployment.attempts
            self.hand = Hand(store, board, self.renderer.engine, self.renderer.inspect, outputs, attempts)

    def make(self, token: str, id: str) -> dict[str, Any]:  # noqa: A002
        """Make one job; see render.py and database.py."""
        assert self.renderer is not None and self.meter is not None
        try:
            if self.hand is not None:
                return self.hand.make_next(modal.current_input_id() or "")
            return self.renderer.make(token, id)
        finally:
            self.meter.note()

    def make_once(self, fields: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
        """Make a video for `modal run`, without a job: its bytes, and what the engine says of it."""
        assert self.renderer is not None and self.meter is not None
        plan = resolve(request(**fields), weights.card_of(self.place.deployment))
        try:
            return rendered(self.renderer.engine, plan)
        finally:
            self.meter.note()

    def leave(self) -> None:
        """The container goes: what it cost is known now."""
        if self.meter is not None:
            self.meter.stop()
        # Those of other shapes, which jobs asked for.
        self._keep_kernels()

    def _keep_kernels(self) -> None:
        try:
            self.place.compiled.commit()
        except (modal.exception.Error, RuntimeError, OSError) as error:
            LOG.warning("compiled kernels were not kept, and are compiled again: %s", error)


def container() -> str:
    """The name of this container."""
    return os.environ.get("MODAL_TASK_ID", "local")


def rendered(engine: Engine, plan: Plan) -> tuple[bytes, dict[str, Any]]:
    """Make a video: its bytes, and its seed, seconds and model. Raises GenerationFailed and what the engine raises."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.mp4"
        for event in engine(plan, out):
            if isinstance(event, Finished):
                report = {"seed": event.seed, "seconds": round(time.monotonic() - begun, 2), "model": plan.model}
                return out.read_bytes(), report
    raise GenerationFailed("the engine ended without a result")
