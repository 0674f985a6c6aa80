"""The engine: one loaded model on one device, making one video at a time."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch

from ltx2.engine import memory
from ltx2.engine.faults import bring_back, explained, frugal, is_out_of_memory, release
from ltx2.models import fast
from ltx2.models.components import Models
from ltx2.models.precision import clamping, count_anew
from ltx2.pipeline.generate import Retouch, generate, unchanged
from ltx2.spec.errors import DoesNotFit, OutOfMemory
from ltx2.spec.events import Event, Finished, Progress, Retrying
from ltx2.spec.plan import Plan


class Engine:
    """Makes videos with loaded `Models`; `retouch` has the last word about every frame.

    Not re-entrant: one generation at a time.
    """

    def __init__(self, models: Models, retouch: Retouch = unchanged):
        self.models, self.retouch = models, retouch
        self.residency = models.residency

    def generate(self, plan: Plan, out: Path) -> Generator[Event, None, None]:
        """Make the Plan's video at `out`, yielding events; the last one is `Finished`.

        Closing the generator cancels within one evaluation of the denoiser. On any failure nothing is left at `out`
        that was not there before. When the device runs out of memory, the plan is tried once more frugally, after a
        `Retrying`. Raises DoesNotFit before the work starts when the device is too small; OutOfMemory when the frugal
        try ran out, too; InvalidOutput for values that are not finite; OutOfRoom when the disk is full; WorkerCrashed
        when the device is lost to this process; GenerationFailed for anything else.
        """
        try:
            yield from self._generate(plan, out)
        except Exception as error:
            # Also what fails outside of an attempt: a device that was lost in one fails in every step after it.
            reason = explained(error, self.models.device)
            if reason is error:
                raise
            raise reason from error

    def _generate(self, plan: Plan, out: Path) -> Generator[Event, None, None]:
        bring_back(self.models, self.residency)
        fit = self.check_fits(plan)
        count_anew(self.models.networks["transformer"])
        clock = _Clock(self.models.device)
        warnings = yield from self._attempt(plan, out, fit.tiled, clock)
        if warnings is None:
            yield Retrying("the device ran out of memory: once more with less, which is slower")
            with frugal(self.models):
                warnings = yield from self._attempt(plan, out, True, clock)
        if warnings is None:
            raise OutOfMemory(
                f"the device ran out of memory at {plan.width}x{plan.height}, {plan.frames} frames",
                hint="ask for a smaller size or fewer frames",
            )
        yield Finished(
            out,
            plan.seed,
            clock.total(),
            clock.peak_bytes(),
            clock.timings(),
            warnings,
            sum(clock.skipped.values()),
        )

    def _attempt(
        self, plan: Plan, out: Path, tiled: bool, clock: _Clock
    ) -> Generator[Event, None, tuple[str, ...] | None]:
        """Try to make the video; returns what should be known about it, or None when memory ran out."""
        try:
            for progress in generate(self.models, plan, out, tiled, self.retouch):
                clock.mark(progress)
                yield progress
            return self._warnings(plan)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Only here, beyond the handler, nothing holds the frames of the failed try, and with them its tensors.
        release(self.models.device)
        return None

    def check_fits(self, plan: Plan) -> memory.Fit:
        """Whether the Plan fits beside the loaded weights. Raises DoesNotFit, naming what would.

        What the fast path keeps of earlier videos gives way to this one.
        """
        try:
            fit = self._fit(plan)
        except DoesNotFit:
            if not self._forget():
                raise
            return self._fit(plan)
        return self._fit(plan) if fit.tiled and self._forget() else fit

    def _fit(self, plan: Plan) -> memory.Fit:
        models = self.models
        # Networks that a lack of memory sent away come one at a time: whether there is room for each shows when it comes.
        away = models.residency is not self.residency
        loaded = away or models.residency.policy == "resident"
        return memory.check(plan, models.card, models.device, models.held, loaded)

    def _forget(self) -> bool:
        """Drop what the fast path keeps; whether there was anything."""
        dropped = [fast.forget(network) for network in self.models.networks.values()]
        if not any(dropped):
            return False
        release(self.models.device)
        return True

    def _warnings(self, plan: Plan) -> tuple[str, ...]:
        """What should be known about a video that was just made, by the models as they are now."""
        models = self.models
        clamped = clamping(models.networks["transformer"])
        said = (clamped,) if clamped else ()
        if not models.fast_passes:
            return said
        slow = fast.slow_paths(models.networks["transformer"], models.networks["vae"], models.device)
        return (*said, *slow, *fast.lossy_paths(models.networks["transformer"], plan, models.attention == "fp8"))

    def warm_up(self, plan: Plan) -> float:
        """Make the Plan's video once and throw it away, so that kernels and caches for its shapes are ready.

        Returns the seconds it took.
        """
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            for _ in self.generate(plan, Path(folder) / "warm-up.mp4"):
                pass
        return time.perf_counter() - begin


class _Clock:
    """Wall time of each phase of a run.

    A GPU is given work before it has done what it was given, and to wait for it where a phase ends would leave it without
    any: its own clock tells when that was.
    """

    def __init__(self, device: torch.device):
        self.device, self.gpu = device, device.type == "cuda"
        self.skipped: dict[str, int] = {}
        self._ends: list[tuple[str, float, Any]] = []
        if self.gpu:
            torch.cuda.reset_peak_memory_stats(device)
        self.begin = time.perf_counter()
        self._first = self._event()

    def mark(self, progress: Progress) -> None:
        if progress.skipped:
            self.skipped[progress.phase] = progress.skipped
        if progress.step == progress.steps:
            self._ends.append((progress.phase, self.total(), self._event()))

    def timings(self) -> dict[str, float]:
        """Seconds of each phase so far. What runs beside something else counts only as far as it is waited for."""
        phases: dict[str, float] = {}
        last = 0.0
        for phase, at, event in self._ends:
            if event is not None:
                event.synchronize()
                at = max(at, self._first.elapsed_time(event) / 1000)
            phases[phase] = phases.get(phase, 0.0) + max(0.0, at - last)
            last = max(last, at)
        return phases

    def total(self) -> float:
        return time.perf_counter() - self.begin

    def peak_bytes(self) -> int:
        """Most device memory held during the run; on a CPU the process's largest resident size so far."""
        if self.gpu:
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _event(self) -> Any:
        """The moment in which a GPU will have done all that it was given so far; None on a CPU, which has."""
        if not self.gpu:
            return None
        return torch.cuda.current_stream(self.device).record_event(torch.cuda.Event(enable_timing=True))
