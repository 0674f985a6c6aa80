"""Guidance as one pure function on x0 predictions."""

from __future__ import annotations

from torch import Tensor

from ltx2.spec.plan import Guidance


def combine(
    guidance: Guidance,
    cond: Tensor,
    uncond: Tensor | None = None,
    perturbed: Tensor | None = None,
    isolated: Tensor | None = None,
) -> Tensor:
    """Steer the conditional x0 [B, T, C] away from the weaker predictions; returns float32.

    cond + (cfg-1)(cond-uncond) + stg(cond-perturbed) + (modality-1)(cond-isolated), then a rescale of the result by
    r*std(cond)/std(result) + 1-r. A pass that its scale switches off may be None.
    Source: the official multi-modal guider (arXiv 2601.03233, section on guidance).
    """
    cond = cond.float()
    result = cond
    for weight, other in (
        (guidance.cfg - 1, uncond),
        (guidance.stg, perturbed),
        (guidance.modality - 1, isolated),
    ):
        if weight:
            assert other is not None, "a guidance pass with a weight was not run"
            result = result + weight * (cond - other.float())
    if guidance.rescale:
        factor = guidance.rescale * (cond.std() / result.std()) + 1 - guidance.rescale
        result = result * factor
    return result
