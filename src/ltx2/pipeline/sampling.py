"""Samplers as pure generators: each yields (latents, sigma), is sent x0, and returns the final latents.

`latents` is a tuple of tensors, one per modality, that share the sigmas. A sampler knows no network, no mask and no
guidance, so it can be checked against its formula and against reference trajectories. Arithmetic is float32 (res_2s:
float64); between steps latents keep the dtype they came in, bfloat16 in the released pipelines.

Sources: Euler and Euler-ancestral for rectified flow as in k-diffusion; gradient estimation: Permenter & Yuan,
arXiv 2306.04848; res_2s: Refined Exponential Solver, arXiv 2308.02157, with the noise injection of arXiv 2403.06807's
variance-preserving form for rectified flow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from typing import Literal

from torch import Tensor

Latents = tuple[Tensor, ...]
Sampling = Generator[tuple[Latents, float], Latents, Latents]
Noise = Callable[[Literal["step", "substep"]], Latents]
Settle = Callable[[Latents], Latents]

GRADIENT_GAMMA = 2.0
ANCESTRAL_ETA = 1.0
SDE_ETA = 0.5
TERMINAL_SIGMA = 0.0011
ANCHOR_ITERATIONS = 100
# The anchor refinement of res_2s is stable only for short steps away from the end.
ANCHOR_MAX_STEP, ANCHOR_MIN_SIGMA = 0.5, 0.03


def euler(latents: Latents, sigmas: Sequence[float], noise: Noise, settle: Settle) -> Sampling:
    """First-order steps along the velocity (x - x0) / sigma."""
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        x0s = yield latents, sigma
        latents = _map(lambda x, x0: _euler_step(x, x0, sigma, following), latents, x0s)  # noqa: B023 - used at once
    return latents


def gradient_estimation(latents: Latents, sigmas: Sequence[float], noise: Noise, settle: Settle) -> Sampling:
    """Euler with the velocity extrapolated from the previous one: v' = v_prev + gamma (v - v_prev)."""
    previous: Latents | None = None
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        x0s = yield latents, sigma
        if following == 0:
            return _map(lambda x, x0: x0.to(x.dtype), latents, x0s)
        now = tuple((x.float() - x0.float()) / sigma for x, x0 in zip(latents, x0s, strict=True))
        used = now
        if previous is not None:
            used = tuple(old + GRADIENT_GAMMA * (new - old) for old, new in zip(previous, now, strict=True))
        previous = now
        step = following - sigma
        latents = tuple((x.float() + v * step).to(x.dtype) for x, v in zip(latents, used, strict=True))
    return latents


def euler_ancestral(
    latents: Latents, sigmas: Sequence[float], noise: Noise, settle: Settle, eta: float = ANCESTRAL_ETA
) -> Sampling:
    """Step to a lower sigma than asked, then add fresh noise back up to it (rectified-flow form)."""
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        x0s = yield latents, sigma
        if following == 0:
            return _map(lambda x, x0: x0.to(x.dtype), latents, x0s)
        down = following * (1 + (following / sigma - 1) * eta)
        keep = (1 - following) / (1 - down)
        fresh = math.sqrt(max(following**2 - (down * keep) ** 2, 0.0))
        share = down / sigma
        latents = tuple(
            (keep * (share * x.float() + (1 - share) * x0.float()) + fresh * draw.float()).to(x.dtype)
            for x, x0, draw in zip(latents, x0s, noise("step"), strict=True)
        )
        latents = settle(latents)
    return latents


def res_2s(latents: Latents, sigmas: Sequence[float], noise: Noise, settle: Settle, anchor: bool = True) -> Sampling:
    """Two-stage exponential integrator in log-sigma with noise injected after the midpoint and after the step.

    The last interval goes to `TERMINAL_SIGMA`; one more evaluation there gives the result. `anchor` re-derives the
    step's starting point from the noised midpoint (a fixed-point iteration) so that both evaluations share it.
    """
    ends = [*sigmas[1:-1], TERMINAL_SIGMA] if sigmas[-1] == 0 else list(sigmas[1:])
    for sigma, following in zip(sigmas, ends, strict=False):
        first = yield latents, sigma
        h = math.log(sigma / following)
        a21, b1, b2 = _res_2s_weights(h)
        middle = math.sqrt(sigma * following)
        start = tuple(x.double() for x in latents)
        slopes = tuple(x0.double() - x for x0, x in zip(first, start, strict=True))
        mids = tuple(x + h * a21 * slope for x, slope in zip(start, slopes, strict=True))
        mids = settle(_inject(start, mids, sigma, middle, noise("substep")))
        if anchor and h < ANCHOR_MAX_STEP and sigma > ANCHOR_MIN_SIGMA:
            for _ in range(ANCHOR_ITERATIONS):
                start = tuple(mid - h * a21 * slope for mid, slope in zip(mids, slopes, strict=True))
                slopes = tuple(x0.double() - x for x0, x in zip(first, start, strict=True))
        second = yield tuple(mid.to(x.dtype) for mid, x in zip(mids, latents, strict=True)), middle
        ahead = tuple(
            x + h * (b1 * slope + b2 * (x0.double() - x)) for x, slope, x0 in zip(start, slopes, second, strict=True)
        )
        ahead = _inject(start, ahead, sigma, following, noise("step"))
        latents = settle(tuple(new.to(x.dtype) for new, x in zip(ahead, latents, strict=True)))
    if sigmas[-1] == 0:
        x0s = yield latents, TERMINAL_SIGMA
        latents = _map(lambda x, x0: x0.to(x.dtype), latents, x0s)
    return latents


SAMPLERS: dict[str, Callable[[Latents, Sequence[float], Noise, Settle], Sampling]] = {
    "euler": euler,
    "euler-ancestral": euler_ancestral,
    "gradient-estimation": gradient_estimation,
    "res_2s": res_2s,
}


def normalised(draw: Tensor) -> Tensor:
    """Noise with mean 0 and standard deviation 1 over the whole token matrix, as the official res_2s draws it."""
    return (draw - draw.mean()) / draw.std()


def _map(step: Callable[[Tensor, Tensor], Tensor], latents: Latents, x0s: Latents) -> Latents:
    return tuple(step(x, x0) for x, x0 in zip(latents, x0s, strict=True))


def _euler_step(x: Tensor, x0: Tensor, sigma: float, following: float) -> Tensor:
    # The released stepper rounds the velocity to the latent's dtype before it uses it.
    velocity = ((x.float() - x0.float()) / sigma).to(x.dtype).float()
    return (x.float() + velocity * (following - sigma)).to(x.dtype)


def _res_2s_weights(h: float, c2: float = 0.5) -> tuple[float, float, float]:
    """Weights (a21, b1, b2) of the exponential Runge-Kutta pair for a step h in -log sigma."""

    def phi1(z: float) -> float:
        return math.expm1(z) / z if abs(z) > 1e-10 else 1.0

    def phi2(z: float) -> float:
        return (math.expm1(z) - z) / z**2 if abs(z) > 1e-5 else 0.5

    b2 = phi2(-h) / c2
    return c2 * phi1(-h * c2), phi1(-h) - b2, b2


def _inject(start: Latents, arrived: Latents, sigma: float, following: float, draws: Latents) -> Latents:
    """Replace a part of the noise in `arrived` (at sigma `following`) by fresh draws, keeping signal and variance."""
    up = min(following * SDE_ETA, following * 0.9999)
    rest = math.sqrt(following**2 - up**2)
    ratio = 1 - following + rest
    down = rest / ratio
    noised = []
    for x, new, draw in zip(start, arrived, draws, strict=True):
        slope = (x - new) / (sigma - following)
        clean = x - sigma * slope
        noised.append(ratio * (clean + down * slope) + up * draw.double())
    return tuple(noised)


__all__ = ["SAMPLERS", "Latents", "Noise", "Sampling", "euler", "euler_ancestral", "gradient_estimation", "res_2s"]
