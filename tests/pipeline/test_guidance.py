"""Guidance against the official guider's results."""

from __future__ import annotations

import json

import pytest
import torch

from ltx2.pipeline.guidance import combine
from ltx2.spec.plan import Guidance
from tests.data_files import DATA, largest_difference, tensors

CASES = json.loads((DATA / "guidance.json").read_text())["cases"]
VALUES = tensors("guidance")


def _guidance(params: dict) -> Guidance:
    return Guidance(
        params["cfg_scale"], params["stg_scale"], params["modality_scale"], params["rescale_scale"],
        tuple(params["stg_blocks"]),
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_equals_the_official_guider(case: dict) -> None:
    guidance = _guidance(case["params"])
    for side in case["inputs"]:
        given = {
            role: VALUES[f"{side}.{role}"] if case[f"runs_{role}"] else None
            for role in ("uncond", "perturbed", "isolated")
        }
        result = combine(guidance, VALUES[f"{side}.cond"], **given)
        assert largest_difference(result, VALUES[f"{case['name']}.{side}.out"]) <= 1e-5


@pytest.mark.parametrize(
    "name", [case["name"] for case in CASES if f"{case['name']}.{case['inputs'][0]}.out_bf16" in VALUES]
)
def test_bfloat16_inputs_are_combined_in_float32(name: str) -> None:
    case = next(case for case in CASES if case["name"] == name)
    for side in case["inputs"]:
        given = {role: VALUES[f"{side}.{role}"].bfloat16() for role in ("uncond", "perturbed", "isolated")}
        result = combine(_guidance(case["params"]), VALUES[f"{side}.cond"].bfloat16(), **given)
        assert result.dtype == torch.float32
        # The stored result was rounded to bfloat16: half a unit in the last place of its largest value.
        expected = VALUES[f"{name}.{side}.out_bf16"].float()
        assert ((result - expected).abs() <= expected.abs() * 2**-7 + 1e-3).all()


def test_a_weighted_pass_that_was_not_run_is_a_fault() -> None:
    with pytest.raises(AssertionError, match="not run"):
        combine(Guidance(3.0, 0.0, 1.0, 0.0, ()), torch.zeros(1, 2, 3))
