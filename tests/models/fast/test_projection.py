"""Joined layers: the same numbers, one storage, and every later change of a weight seen by both paths."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ltx2.models.fast import projection
from ltx2.models.fast.ops import PLAIN, Reads
from ltx2.models.fast.projection import Added, Grouped, Joined, JoinedRows, Loose, project
from ltx2.models.lora import LowRank
from ltx2.models.precision import Fp8Linear, quantise_rows


def _layers(*sizes: int, bias: bool = True) -> list[nn.Module]:
    torch.manual_seed(len(sizes))
    return [nn.Linear(16, size, bias=bias) for size in sizes]


def _fp8(layer: nn.Linear) -> Fp8Linear:
    weight, scale = quantise_rows(layer.weight.detach())
    return Fp8Linear(weight, scale.flatten(), layer.bias)


X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(9))


def _check(layers: list[nn.Module], tolerance: float = 1e-6) -> projection.Projection:
    expected = [layer(X).detach() for layer in layers]
    made = project(layers)
    for first in range(len(layers)):
        for ours, theirs in zip(made(X, PLAIN, first), expected[first:], strict=True):
            assert torch.allclose(ours, theirs, atol=tolerance)
    return made


def test_linears_are_joined_without_a_second_copy() -> None:
    layers = _layers(16, 8, 4)
    before = {number: layer.state_dict() for number, layer in enumerate(layers)}
    copies = {number: {key: value.clone() for key, value in state.items()} for number, state in before.items()}
    made = _check(layers)
    assert isinstance(made, Joined)
    assert len({layer.weight.untyped_storage().data_ptr() for layer in layers}) == 1
    assert made.weight.data_ptr() == layers[0].weight.data_ptr()
    for number, layer in enumerate(layers):
        assert all(torch.equal(value, copies[number][key]) for key, value in layer.state_dict().items())
    # A second projection of the same layers finds them joined and moves nothing.
    again = project(layers)
    assert isinstance(again, Joined) and again.weight.data_ptr() == made.weight.data_ptr()


def test_changes_in_place_reach_the_joined_weight() -> None:
    layers = _layers(8, 8)
    made = project(layers)
    with torch.no_grad():
        layers[1].weight.mul_(2)
    assert torch.allclose(made(X, PLAIN)[1], layers[1](X), atol=1e-6)


def test_some_biases_may_be_missing() -> None:
    [first], [second] = _layers(8), _layers(4, bias=False)
    made = _check([first, second])
    assert isinstance(made, Joined) and made.bias is not None


def test_unknown_layers_are_called_one_by_one() -> None:
    class Odd(nn.Linear):
        pass

    assert isinstance(_check([Odd(16, 8), Odd(16, 4)]), Loose)


def test_a_run_time_lora_is_added_to_its_layer() -> None:
    layers = _layers(8, 8, 4)
    layers[1] = LowRank(
        layers[1], [(torch.randn(3, 16), torch.randn(8, 3), 0.5), (torch.randn(1, 16), torch.ones(8, 1), 2)]
    )
    made = _check(layers, 1e-5)
    assert isinstance(made, Added) and isinstance(made.base, Joined)


def test_a_run_time_lora_of_an_fp8_layer_reads_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "_in_rows", lambda layer: isinstance(layer, Fp8Linear))
    plain = _layers(16, 32)
    layers = [LowRank(_fp8(plain[0]), [(torch.randn(3, 16), torch.randn(16, 3), 0.5)]), _fp8(plain[1])]
    made = project(layers)
    assert isinstance(made, Added) and made.reads == Reads.BOTH
    rows = PLAIN.quantise(X)._replace(plain=X)
    for first in (0, 1):
        for ours, theirs in zip(made(rows, PLAIN, first), made(X, PLAIN, first), strict=True):
            assert torch.equal(ours, theirs)


def test_fp8_layers_on_a_cpu_keep_their_exact_path() -> None:
    layers = [_fp8(layer) for layer in _layers(16, 16)]
    assert isinstance(_check(layers), Loose)


def test_fp8_layers_share_one_quantised_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "_in_rows", lambda layer: isinstance(layer, Fp8Linear))
    plain = _layers(16, 32, 4)
    layers = [_fp8(plain[0]), _fp8(plain[1])]
    made = project(layers)
    assert isinstance(made, JoinedRows) and made.reads == Reads.ROWS
    rows = PLAIN.quantise(X)
    for ours, theirs, exact in zip(made(rows, PLAIN), made(X, PLAIN), plain, strict=False):
        assert torch.equal(ours, theirs)
        # Two factors in e4m3, each within 2^-4 of its values, with errors that cancel in part.
        wanted = exact(X).detach()
        assert float((ours - wanted).norm() / wanted.norm()) < 0.06
    assert torch.equal(made(X, PLAIN, first=1)[0], made(X, PLAIN)[1])
    mixed = project([*layers, plain[2]])
    assert isinstance(mixed, Grouped) and mixed.reads == Reads.BOTH
    for first, given in ((first, given) for first in range(3) for given in (X, rows._replace(plain=X))):
        pieces = mixed(given, PLAIN, first)
        assert torch.equal(pieces[-1], plain[2](X))
        assert [piece.shape[-1] for piece in pieces] == [16, 32, 4][first:]
