"""Products with tiles of our choice, through a library that reads cuBLASLt's descriptions and computes what they say."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ltx2.models.fast import cublas
from ltx2.models.fast.cublas import TILES, CublasLt, Problem
from ltx2.models.fast.tiles import Tile
from ltx2.models.precision import product, quantise_rows

TILE, OPTION, CLUSTER = 1, 5, 8
PLACES = {TILE: 1, OPTION: 2, CLUSTER: 3}
KINDS = {0: torch.float32, 14: torch.bfloat16, 28: torch.float8_e4m3fn}
SQUARE = Problem(9984, 4096, 4096, True, False)
# On a single multiprocessor a small product has better tiles than cuBLAS's, too.
ONE = 1


class Library:
    """What is used of cuBLASLt, for tensors on the CPU. An algorithm is four numbers: whose, tile, option, cluster."""

    def __init__(self, own: int = TILES[192, 192], workspace: int = 4, option: int = 4):
        self.own, self.workspace, self.option = own, workspace, option
        self.things: dict[int, Any] = {}
        self.made = 0
        self.unknown: set[int] = set()
        self.status = 0
        self.ran: list[tuple[int, int, int]] = []

    def _make(self, pointer: Any, thing: Any) -> int:
        self.made += 1
        self.things[self.made] = thing
        pointer._obj.value = self.made
        return 0

    def _drop(self, pointer: Any) -> int:
        del self.things[pointer.value]
        return 0

    def cublasLtCreate(self, pointer: Any) -> int:
        pointer._obj.value = 77
        return 0

    def cublasLtMatmulDescCreate(self, pointer: Any, compute: int, scale: int) -> int:
        assert (compute, scale) == (68, 0), "sums and factors in float32"
        return self._make(pointer, {})

    def cublasLtMatmulDescSetAttribute(self, thing: Any, number: int, value: Any, size: int) -> int:
        assert size == ctypes.sizeof(value._obj)
        self.things[thing.value][number] = value._obj.value
        return 0

    def cublasLtMatrixLayoutCreate(self, pointer: Any, kind: int, rows: Any, columns: Any, apart: Any) -> int:
        return self._make(pointer, (KINDS[kind], rows.value, columns.value, apart.value))

    def cublasLtMatmulPreferenceCreate(self, pointer: Any) -> int:
        return self._make(pointer, {})

    def cublasLtMatmulPreferenceSetAttribute(self, thing: Any, number: int, value: Any, size: int) -> int:
        return self.cublasLtMatmulDescSetAttribute(thing, number, value, size)

    def __getattr__(self, name: str) -> Any:
        if name.endswith("Destroy"):
            return self._drop
        raise AttributeError(name)

    def cublasLtMatmulAlgoGetHeuristic(
        self, handle: Any, what: Any, a: Any, b: Any, c: Any, d: Any, wish: Any, most: int, found: Any, count: Any
    ) -> int:
        assert (handle.value, most, self.things[wish.value][1]) == (77, 1, cublas.WORKSPACE)
        found._obj.algorithm.data[:] = [66, self.own, self.option, 3, 0, 0, 0, 0]
        count._obj.value = 1 if self.own else 0
        return 0

    def cublasLtMatmulAlgoConfigGetAttribute(
        self, chosen: Any, number: int, value: Any, size: int, written: Any
    ) -> int:
        value._obj.value = chosen._obj.data[PLACES[number]]
        return 0

    def cublasLtMatmulAlgoConfigSetAttribute(self, chosen: Any, number: int, value: Any, size: int) -> int:
        assert size == (2 if number == CLUSTER else 4), "cuBLASLt refuses another width"
        chosen._obj.data[PLACES[number]] = value._obj.value
        return 0

    def cublasLtMatmulAlgoCheck(
        self, handle: Any, what: Any, a: Any, b: Any, c: Any, d: Any, chosen: Any, found: Any
    ) -> int:
        found._obj.workspace = self.workspace
        return 15 if chosen._obj.data[1] in self.unknown else 0

    def cublasLtMatmul(
        self, handle: Any, what: Any, one: Any, a: Any, of_a: Any, b: Any, of_b: Any, zero: Any,
        c: Any, of_c: Any, d: Any, of_d: Any, chosen: Any, space: Any, size: Any, stream: Any,
    ) -> int:  # fmt: skip
        if self.status:
            return self.status
        assert (one._obj.value, zero._obj.value, c.value) == (1, 0, d.value)
        assert size.value == self.workspace and space.value
        told = self.things[what.value]
        left, right = self._matrix(a, of_a), self._matrix(b, of_b)
        sums = (left.t() if told[3] else left).float() @ right.float()
        if left.dtype == torch.float8_e4m3fn:
            assert (told[25], told[31], told[32]) == (1, 3, 3), "fast sums, and a scale for each row and each feature"
            sums *= self._matrix(told[17], (torch.float32, sums.shape[0], 1, sums.shape[0]))
            sums *= self._matrix(told[18], (torch.float32, sums.shape[1], 1, sums.shape[1])).t()
        if told[7] & 4:
            sums += self._matrix(told[8], (torch.bfloat16, sums.shape[0], 1, sums.shape[0])).float()
        if told[7] & 32:
            sums = functional.gelu(sums, approximate="tanh")
        self._matrix(d, of_d).copy_(sums)
        self.ran.append(tuple(chosen._obj.data[1:4]))
        return 0

    def _matrix(self, address: Any, layout: Any) -> Tensor:
        """What lies at an address column by column."""
        kind, rows, columns, apart = layout if isinstance(layout, tuple) else self.things[layout.value]
        place = address if isinstance(address, int) else address.value
        memory = (ctypes.c_uint8 * (columns * apart * kind.itemsize)).from_address(place)
        return torch.frombuffer(memory, dtype=kind).view(columns, apart)[:, :rows].t()


def _inputs(tokens: int = 100, inputs: int = 24, features: int = 104) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = ((tokens, inputs), (features, inputs), (features,))
    x, weight, bias = (torch.randn(shape, generator=generator).bfloat16() for shape in shapes)
    return x, weight, bias


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_it_is_the_product(biased: bool, gelu: bool) -> None:
    library = Library()
    x, weight, bias = _inputs()
    ours = CublasLt(library, ONE).linear(x, weight, bias if biased else None, gelu)
    expected = functional.linear(x.float(), weight.float(), bias.float() if biased else None)
    expected = functional.gelu(expected, approximate="tanh") if gelu else expected
    assert ours is not None and torch.equal(ours, expected.bfloat16())
    assert library.ran and not library.things, "all descriptions are given back"


def test_in_fp8_it_is_the_product_of_scaled_rows() -> None:
    library = Library()
    x, weight, bias = _inputs(inputs=32)
    (x8, of_x), (weight8, of_weight) = quantise_rows(x), quantise_rows(weight)
    scales = (of_x.flatten(), of_weight.flatten())
    ours = CublasLt(library, ONE).linear(x8, weight8, bias, False, scales)
    expected = product(x8, of_x, weight8, scales[1], bias, torch.bfloat16)
    assert ours is not None and ours.dtype == torch.bfloat16
    assert torch.allclose(ours, expected, rtol=2**-7, atol=1e-6)
    assert library.ran and not library.things


@pytest.mark.parametrize(
    ("inputs", "tile", "numbers"),
    # cublasLt.h: MATMUL_TILE_128x152 and 256x152, CLUSTER_SHAPE_2x1x1 and 1x2x1; options as in the kernels that they start.
    [(4096, Tile(128, 152, together=False), [407, 1, 3]), (16_384, Tile(256, 152), [501, 7, 5])],
)
def test_a_tile_that_fills_the_rounds_is_taken(inputs: int, tile: Tile, numbers: list[int]) -> None:
    choice = next(CublasLt(Library(), 132).choices_for(Problem(9984, inputs, 4096, True)))
    assert choice.tile == tile and list(choice.algorithm.data[:4]) == [66, *numbers]


def test_where_no_tile_is_better_cublas_keeps_its_own() -> None:
    lt = CublasLt(Library(TILES[256, 128]), 132)
    assert not list(lt.choices_for(Problem(6144, 16_384, 4096, True)))
    # Nor in fp8 where each warpgroup makes a tile of its own.
    alone = CublasLt(Library(TILES[128, 128], option=1), 132)
    assert not list(alone.choices_for(Problem(9984, 4096, 12_288, True, fp8=True)))


@pytest.mark.parametrize("library", [Library(own=631), Library(own=0), Library(workspace=1 << 20)])
def test_what_is_not_known_or_adds_up_in_parts_is_left_alone(library: Library) -> None:
    assert not list(CublasLt(library, 132).choices_for(SQUARE))
    assert not library.things


def test_a_tile_that_does_not_exist_leaves_the_next_one() -> None:
    library = Library()
    library.unknown = {TILES[128, 152]}
    assert next(CublasLt(library, 132).choices_for(SQUARE)).tile == Tile(128, 144, together=False)


def test_a_product_that_is_refused_is_torchs_from_then_on(caplog: pytest.LogCaptureFixture) -> None:
    library = Library()
    library.status = 13
    lt = CublasLt(library, ONE)
    with caplog.at_level(logging.WARNING):
        assert lt.linear(*_inputs(), False) is None
    assert "status 13" in caplog.text
    library.status = 0
    assert lt.linear(*_inputs(), False) is None and not library.things


def test_a_product_that_cannot_be_described_is_torchs(caplog: pytest.LogCaptureFixture) -> None:
    library = Library()
    library.cublasLtMatmulDescSetAttribute = lambda *_: 7
    lt = CublasLt(library, ONE)
    with caplog.at_level(logging.WARNING):
        assert lt.linear(*_inputs(), False) is None
        assert lt.linear(*_inputs(), False) is None
    assert caplog.text.count("status 7") == 1, "and that is said once"


def test_another_cuda_has_other_numbers(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(cublas, "hopper", lambda device: True)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    cublas.of.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert cublas.of(torch.device("cpu")) is None
    assert "CUDA 12.8" in caplog.text
    cublas.of.cache_clear()


def test_the_gpu_of_the_input_is_the_current_one_and_batches_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []

    @contextmanager
    def on(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        assert library.ran, "not only afterwards"

    library = Library()
    monkeypatch.setattr(cublas, "of", lambda device: CublasLt(library, ONE))
    monkeypatch.setattr(cublas, "on", on)
    x, weight, bias = _inputs()
    ours = cublas.linear(x.view(2, 50, 24), weight, bias)
    assert ours is not None and torch.equal(
        ours, functional.linear(x.float(), weight.float(), bias.float()).bfloat16().view(2, 50, 104)
    )
    assert current == [x.device]


@pytest.mark.gpu
def test_another_gpu_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    x, weight, bias = (part.to("cuda:1") for part in _inputs(4992, 4096, 4096))
    with torch.cuda.device(0):
        ours = cublas.linear(x, weight / 64, bias)
    assert ours is not None and torch.equal(ours, functional.linear(x, weight / 64, bias))


def test_elsewhere_than_on_a_gpu_torch_does_it() -> None:
    assert cublas.linear(*_inputs()) is None


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("tokens", "inputs", "features", "last"),
    [
        (9984, 4096, 4096, ""), (9984, 16384, 4096, ""), (1248, 4096, 16384, "gelu"), (1248, 4096, 4096, ""),
        (4992, 4096, 4096, "fp8"),
    ],
)  # fmt: skip
def test_the_bytes_are_those_of_torch_on_the_gpu(tokens: int, inputs: int, features: int, last: str) -> None:
    x, weight, bias = (part.cuda() for part in _inputs(tokens, inputs, features))
    weight /= inputs**0.5
    take = partial(cublas.linear, x, weight, bias, last == "gelu")
    if last == "gelu":
        expected = torch._addmm_activation(bias, x, weight.t(), use_gelu=True)
    elif last == "fp8":
        (x8, of_x), (weight8, of_weight) = quantise_rows(x), quantise_rows(weight)
        expected = product(x8, of_x, weight8, of_weight.flatten(), bias, torch.bfloat16)
        take = partial(cublas.linear, x8, weight8, bias, scales=(of_x.flatten(), of_weight.flatten()))
    else:
        expected = functional.linear(x, weight, bias)
    first = take()
    assert first is not None, "a better tile is known for each of these"
    if last == "fp8":
        # Another order of the two scales.
        assert torch.allclose(first, expected, rtol=2**-7, atol=1e-5)
    else:
        assert torch.equal(first, expected)
    # On two streams at once, and from a graph: what a kernel counts in is its own each time.
    other = torch.cuda.Stream()
    other.wait_stream(torch.cuda.current_stream())
    results: list[Tensor | None] = []
    for _ in range(10):
        with torch.cuda.stream(other):
            results.append(take())
        results.append(take())
    torch.cuda.synchronize()
    assert all(result is not None and torch.equal(result, first) for result in results)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = take()
    assert recorded is not None
    recorded.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(recorded, first)
