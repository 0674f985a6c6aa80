"""The plain operations against their formulas, and what compares the kernels with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as functional

from ltx2.models.fast import ops
from ltx2.models.fast.compare import compare
from ltx2.models.fast.ops import PLAIN, Affine, Rows


@pytest.mark.gpu
def test_kernels_equal_their_twins_on_the_gpu() -> None:
    from ltx2.models.fast.kernels import TRITON

    failed = [line for line, good in compare(TRITON, torch.device("cuda"), torch.bfloat16) if not good]
    assert not failed


def test_a_product_that_rounds_after_its_gelu_alone_is_right_in_bf16() -> None:
    """As on a GPU; the plain form rounds before as well, and in the uppermost values one step of bf16 is too much."""

    def once(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        wide = functional.linear(x.float(), weight.float(), bias.float())
        return functional.gelu(wide, approximate="tanh").to(x.dtype)

    def other(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return functional.silu(functional.linear(x.float(), weight.float(), bias.float())).to(x.dtype)

    for sizes in ({}, {"tokens": 77, "heads": 8, "half": 32}):
        for linear_gelu, right in ((once, True), (other, False)):
            verdicts = compare(replace(PLAIN, linear_gelu=linear_gelu), torch.device("cpu"), torch.bfloat16, **sizes)
            assert [good for line, good in verdicts if line.startswith("linear_gelu")] == [right]
            assert all(good for line, good in verdicts if not line.startswith("linear_gelu"))


def test_a_wrong_kernel_is_found() -> None:
    """The comparison compares: an implementation that forgets the shift does not pass."""

    def forgetful(h, update, targets, index, eps, reads=False):
        targets = [affine and Affine(affine.scale, affine.shift * 0) for affine in targets]
        return ops.residual_norm(h, update, targets, index, eps, reads)

    wrong = replace(PLAIN, name="wrong", residual_norm=forgetful)
    verdicts = compare(wrong, torch.device("cpu"), torch.float32)
    assert {line.split()[0] for line, good in verdicts if not good} == {"residual_norm"}


def test_residual_norm_is_the_formula() -> None:
    h, y, gate, scale, shift = torch.randn(5, 2, 6, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    summed, (normal, bare) = PLAIN.residual_norm(h, (y, gate), [Affine(scale, shift), None], None, 1e-6)
    expected = h + y * gate
    assert torch.allclose(summed, expected)
    root = expected / (expected.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(bare, root, atol=1e-6)
    assert torch.allclose(normal, root * (1 + scale) + shift, atol=1e-5)


def test_index_gives_every_token_its_own_level() -> None:
    h = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    levels = Affine(torch.randn(1, 3, 8), torch.randn(1, 3, 8))
    index = torch.tensor([2, 0, 1, 1, 2], dtype=torch.int32)
    _, (indexed,) = PLAIN.residual_norm(h, None, [levels], index, 1e-6)
    spread = Affine(levels.scale[:, index.long()], levels.shift[:, index.long()])
    _, (full,) = PLAIN.residual_norm(h, None, [spread], None, 1e-6)
    assert torch.equal(indexed, full)


def test_quantised_rows_are_within_e4m3_of_their_values() -> None:
    x = torch.randn(3, 7, 64, generator=torch.Generator().manual_seed(2)) * torch.logspace(-6, 3, 7)[:, None]
    rows = ops.quantise(x)
    back = rows.values.float() * rows.scales
    # e4m3 keeps three bits behind the leading one; numbers 2^-16 below the largest of a row go to zero.
    bound = torch.maximum(x.abs() / 16, x.abs().amax(-1, keepdim=True) * 2**-16)
    assert bool(((back - x).abs() <= bound).all())
    assert torch.equal(rows.scales, x.abs().amax(-1, keepdim=True) / 448)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so_when_quantised(bad: float) -> None:
    x = torch.ones(2, 16)
    x[1, 3] = bad
    values, scales, _ = ops.quantise(x)
    product = (values.float() * scales).sum(-1)
    assert torch.isfinite(product[0]) and not torch.isfinite(product[1])


def test_quantised_results_are_the_plain_ones_quantised() -> None:
    x = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(3))
    rows = PLAIN.gelu(x, True)
    assert isinstance(rows, Rows)
    expected = ops.quantise(functional.gelu(x, approximate="tanh"))
    assert torch.equal(rows.values.float(), expected.values.float()) and torch.equal(rows.scales, expected.scales)


@pytest.mark.gpu
def test_a_gelu_in_the_products_last_step_is_the_tanh_form_and_no_farther_from_it() -> None:
    from ltx2.models.fast.kernels import TRITON

    draw = torch.Generator("cuda").manual_seed(0)
    x, weight = (
        torch.randn(*shape, generator=draw, device="cuda").bfloat16() for shape in ((2, 1248, 4096), (16384, 4096))
    )
    weight, bias = weight / 64, torch.randn(16384, generator=draw, device="cuda").bfloat16()
    wide = functional.linear(x.double(), weight.double(), bias.double())
    exact = functional.gelu(wide, approximate="tanh")
    assert TRITON.linear_gelu is not None and PLAIN.linear_gelu is not None
    ours = TRITON.linear_gelu(x, weight, bias)
    apart = float((PLAIN.linear_gelu(x, weight, bias).double() - exact).norm())
    assert ours.shape == exact.shape and float((ours.double() - exact).norm()) <= 1.01 * apart
    for _ in range(5):
        assert torch.equal(TRITON.linear_gelu(x, weight, bias), ours)
