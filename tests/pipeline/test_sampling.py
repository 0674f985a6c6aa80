"""Samplers against the official implementation's trajectories: every state, every sigma, the result."""

from __future__ import annotations

import pytest
import torch

from ltx2.pipeline.sampling import SAMPLERS, normalised
from tests.data_files import largest_difference, metadata, tensors

RUNS = metadata("samplers", "runs")
VALUES = tensors("samplers")
SIDES = ("video", "audio")
STEPPERS = {
    "EulerDiffusionStep": "euler",
    "EulerAncestralDiffusionStep": "euler-ancestral",
    "Res2sDiffusionStep": "res_2s",
}


@pytest.mark.parametrize("name", RUNS)
def test_trajectory_equals_the_official_one(name: str) -> None:
    run = RUNS[name]
    begin = "start_masked" if run["masked_start"] else "start"
    dtype = getattr(torch, run["dtype"])
    masks = [VALUES[f"{begin}.{side}.denoise_mask"] for side in SIDES]
    cleans = [VALUES[f"{begin}.{side}.clean_latent"] for side in SIDES]
    draws = iter(range(run["noise_draws_per_modality"]))

    def noise(_kind):
        index = next(draws)
        return tuple(VALUES[f"{name}.{side}.noise"][index][None] for side in SIDES)

    def settle(latents):
        return tuple(
            (latent * mask + clean * (1 - mask)).to(latent.dtype)
            for latent, mask, clean in zip(latents, masks, cleans, strict=True)
        )

    kind = "gradient-estimation" if name.startswith("ge_") else STEPPERS[run["stepper"]]
    extra = {"eta": run["eta"]} if kind == "euler-ancestral" else {}
    if kind == "res_2s":
        extra = {"anchor": run["args"].get("bongmath", True)}
    start = tuple(VALUES[f"{begin}.{side}.latent"].to(dtype) for side in SIDES)
    sampling = SAMPLERS[kind](start, VALUES[f"{name}.sigmas"].tolist(), noise, settle, **extra)
    tolerance = 1e-5 if kind == "euler-ancestral" else 1e-6
    calls = 0
    try:
        latents, sigma = next(sampling)
        while True:
            assert sigma == pytest.approx(VALUES[f"{name}.call_sigmas"][calls].item(), abs=1e-9)
            for side, latent in zip(SIDES, latents, strict=True):
                assert largest_difference(latent, VALUES[f"{name}.{side}.states"][calls][None]) <= tolerance
            x0s = settle(tuple(VALUES[f"{name}.{side}.x0"][calls][None].to(dtype) for side in SIDES))
            calls += 1
            latents, sigma = sampling.send(x0s)
    except StopIteration as finished:
        for side, latent in zip(SIDES, finished.value, strict=True):
            assert largest_difference(latent, VALUES[f"{name}.{side}.final"]) <= tolerance
    assert calls == run["calls"]
    assert next(draws, None) is None, "every stored draw was used"


def test_normalised_noise_has_mean_zero_and_deviation_one() -> None:
    draw = normalised(torch.randn(1, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 4 + 1)
    assert abs(draw.mean().item()) < 1e-12
    assert draw.std().item() == pytest.approx(1, abs=1e-12)
