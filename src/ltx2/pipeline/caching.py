"""Step caching: a step takes its velocity from the computed ones before it while that is expected to have changed little.

Lossy. How much the velocity changes for a given change of the latents stays nearly the same from step to step (found by
EasyCache, arXiv 2507.02860), so that the change since the last computed step can be told without computing it, for any
model. What is skipped goes on along the line through the last two computed velocities, as a second-order multistep
method does; repeating the last one ends 1.2 to 1.4 times as far from the uncached latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ltx2.pipeline.sampling import Latents


@dataclass(frozen=True)
class Computed:
    """A computed evaluation: latents, sigma, and the velocities (latent - x0) / sigma, float32."""

    latents: Latents
    sigma: float
    velocities: Latents


class Velocities:
    """What the evaluations of a stage have shown of its velocities.

    Guided x0 go in, with what is given put back, so that given tokens stand still and count for nothing. Everything is
    decided by norms of the latents in float64: the same run skips the same steps.
    """

    def __init__(self, most: float):
        self.most = most
        self.skipped = 0
        self._last: Computed | None = None
        self._before: Computed | None = None
        self._at: Latents = ()
        self._changes: tuple[float, ...] = ()

    def learn(self, latents: Latents, sigma: float, x0s: Latents) -> None:
        """Remember a computed evaluation."""
        floats = tuple(x.float() for x in latents)
        velocities = tuple((x - x0.float()) / sigma for x, x0 in zip(floats, x0s, strict=True))
        self._before, self._last = self._last, Computed(floats, sigma, velocities)
        self._at, self._changes = floats, (0.0,) * len(floats)

    def forget(self) -> None:
        """Start anew: what comes is no continuation."""
        self._last = self._before = None

    def guess(self, latents: Latents, sigma: float) -> Latents | None:
        """x0 of a step that need not be computed, float32; or None.

        The expected relative change of the velocity since the last computed step adds up over the skipped ones. The
        modality that has changed more decides, for one pass makes both.
        """
        last, before = self._last, self._before
        if last is None or before is None:
            return None
        floats = tuple(x.float() for x in latents)
        changes = tuple(
            change + _rate(last, before, side) * _norm(now - at) / max(_norm(last.velocities[side]), TINY)
            for side, (change, now, at) in enumerate(zip(self._changes, floats, self._at, strict=True))
        )
        # Values that are not finite are never less: they are computed, and found.
        if not all(change < self.most for change in changes):
            return None
        self._at, self._changes = floats, changes
        self.skipped += 1
        ahead = (sigma - last.sigma) / (last.sigma - before.sigma)
        return tuple(
            x - sigma * (new + ahead * (new - old))
            for x, new, old in zip(floats, last.velocities, before.velocities, strict=True)
        )


# Keeps a modality that stands still, as a wholly given one does, from dividing by nothing.
TINY = 1e-30


def _rate(last: Computed, before: Computed, side: int) -> float:
    """How much the velocity of one modality changed for the change of its latents."""
    moved = _norm(last.latents[side] - before.latents[side])
    return _norm(last.velocities[side] - before.velocities[side]) / max(moved, TINY)


def _norm(values: Tensor) -> float:
    return values.double().norm().item()
