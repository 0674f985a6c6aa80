"""Products in bfloat16 or fp8 by cuBLASLt with a tile of our choice, where cuBLAS's own leaves much of a round empty.

cuBLAS has kernels for hundreds of tiles on a Hopper GPU, but chooses among eight, none of them fit to the rounds of a
given product. Here its choice is kept but for the tile, how tiles are paired, and their order. Each sum is made in the same
order: on an H200 all of 920 combinations, of 46 products, had the bytes of cuBLAS's own. The numbers below are those of
cublasLt.h (CUDA 13).
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any, Literal

import torch
from torch import Tensor

from ltx2.models.fast.ops import hopper, on
from ltx2.models.fast.tiles import Product, Tile, better

log = logging.getLogger(__name__)

# By how much more `worth` another tile must be than cuBLAS's own before it is taken: with less, some were slower.
GAIN = 0.035
# Kernels that count their tiles take 4 bytes; what wants more makes each sum in parts, and gives other bytes.
WORKSPACE = 1_024
# What Hopper's copy engine asks of addresses.
_BYTES = 16
# Whose numbers these are.
_CUDA = "13"

_FLOAT32, _BFLOAT16, _E4M3, _COMPUTE_FLOAT32 = 0, 14, 28, 68
_TRANSPOSE_A, _EPILOGUE, _BIAS = 3, 7, 8
_SCALES, _SCALE_MODES, _ONE_FOR_EACH, _FAST_SUMS = (17, 18), (31, 32), 3, 25
_BIAS_ADDED, _GELU = 4, 32
# Where a bias or a scale lies while it is only asked what could be done.
_SOMEWHERE = ctypes.c_uint64(1 << 20)
_TILE, _OPTION, _CLUSTER = (1, ctypes.c_uint32), (5, ctypes.c_uint32), (8, ctypes.c_uint16)
_CLUSTERS = {(2, 1): 3, (1, 2): 5}
# By the names of the kernels that they start: 4 has two warpgroups on one tile instead of one on each of two, 2 goes along
# the tokens first, and 1 is another order of the result's axes.
_TOGETHER, _ALONE, _BOTH = 7, 1, 4


def _tile_numbers() -> dict[tuple[int, int], int]:
    """cuBLASLt's numbers of tiles by (features, tokens): the older ones singly, all other multiples of 8 in order."""
    old = {
        (128, 96): 33, (128, 128): 20, (128, 160): 29, (128, 192): 32, (128, 256): 23, (128, 320): 176,
        (192, 128): 31, (192, 192): 209, (256, 128): 24, (256, 192): 232, (192, 256): 210,
    }  # fmt: skip
    found = dict(old)
    for features, number, lengths in (
        (128, 402, range(104, 337, 8)), (192, 458, range(96, 337, 8)), (256, 495, range(96, 257, 8)),
    ):  # fmt: skip
        others = [(features, tokens) for tokens in lengths if (features, tokens) not in old]
        found.update(zip(others, count(number), strict=False))
    return found


TILES = _tile_numbers()


class _Algorithm(ctypes.Structure):
    _fields_ = (("data", ctypes.c_uint64 * 8),)


class _Result(ctypes.Structure):
    _fields_ = (
        ("algorithm", _Algorithm), ("workspace", ctypes.c_size_t), ("state", ctypes.c_int), ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """x [tokens, inputs] times weight [features, inputs], and what is done to the sums."""

    tokens: int
    inputs: int
    features: int
    bias: bool
    gelu: bool = False
    fp8: bool = False

    @property
    def epilogue(self) -> int:
        """cuBLASLt's number of the product's last step."""
        return (_BIAS_ADDED * self.bias | _GELU * self.gelu) or 1


@dataclass(frozen=True)
class Choice:
    """How a problem is computed: its algorithm, the tile in it, and the bytes of workspace that it needs."""

    algorithm: Any
    tile: Tile
    workspace: int


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False, scales: tuple[Tensor, Tensor] | None = None
) -> Tensor | None:
    """x [..., inputs] times weight [features, inputs] plus bias, then GELU (tanh) if asked for; None where torch should.

    In bfloat16 on a Hopper GPU, or both in e4m3 with `scales` float32 of every row of x [...] and of the weight [features].
    Works inside a CUDA graph's capture.
    """
    kind = torch.bfloat16 if scales is None else torch.float8_e4m3fn
    if x.dtype != kind or (lt := of(x.device)) is None:
        return None
    rows = x.flatten(0, -2)
    if not all(part.is_contiguous() and part.data_ptr() % _BYTES == 0 for part in _given(rows, weight, bias, scales)):
        return None
    with on(x.device):
        result = lt.linear(rows, weight, bias, gelu, scales)
    return None if result is None else result.unflatten(0, x.shape[:-1])


def _given(x: Tensor, weight: Tensor, bias: Tensor | None, scales: tuple[Tensor, Tensor] | None) -> list[Tensor]:
    return [part for part in (x, weight, bias, *(scales or ())) if part is not None]


class CublasLt:
    """cuBLASLt for one device, with a choice for each problem that is kept."""

    def __init__(self, library: Any, processors: int):
        self.library, self.processors = library, processors
        self.handle = ctypes.c_void_p()
        self._do("cublasLtCreate", ctypes.byref(self.handle))
        self.choices: dict[Problem, Choice | None] = {}

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, scales: tuple[Tensor, Tensor] | None = None
    ) -> Tensor | None:
        """bfloat16 [tokens, features]; None where cuBLAS's own choice stands. For the thread's current GPU."""
        problem = Problem(x.shape[0], x.shape[1], weight.shape[0], bias is not None, gelu, scales is not None)
        if problem not in self.choices:
            self.choices[problem] = self._best(problem)
        choice = self.choices[problem]
        if choice is None:
            return None
        result = x.new_empty(problem.tokens, problem.features, dtype=torch.bfloat16)
        space = x.new_empty(choice.workspace, dtype=torch.uint8)
        one, zero = ctypes.c_float(1), ctypes.c_float(0)
        with _Operation(self, problem) as operation:
            if bias is not None:
                operation.set(_BIAS, ctypes.c_uint64(bias.data_ptr()))
            # The weight comes first, as the matrix that cuBLAS calls A.
            for number, scale in zip(_SCALES, reversed(scales or ()), strict=False):
                operation.set(number, ctypes.c_uint64(scale.data_ptr()))
            status = self.library.cublasLtMatmul(
                self.handle, operation.description, ctypes.byref(one),
                _address(weight), operation.weight, _address(x), operation.x,
                ctypes.byref(zero), _address(result), operation.result, _address(result), operation.result,
                ctypes.byref(choice.algorithm), _address(space), ctypes.c_size_t(choice.workspace), _stream(x.device),
            )  # fmt: skip
        if status:
            log.warning(
                "cuBLASLt refuses %s with %s (status %d): torch's choice is taken", problem, choice.tile, status
            )
            self.choices[problem] = None
            return None
        return result

    def _best(self, problem: Problem) -> Choice | None:
        try:
            with closing(self.choices_for(problem)) as found:
                return next(found, None)
        except RuntimeError as error:
            log.warning("cuBLASLt cannot describe %s (%s): torch's choice is taken", problem, error)
            return None

    def choices_for(self, problem: Problem, gain: float = GAIN) -> Generator[Choice]:
        """What there is that is worth more by `gain` than cuBLAS's own choice, the best first."""
        with _Operation(self, problem) as operation:
            own = self._own(operation)
            sides = own and {number: sides for sides, number in TILES.items()}.get(_value(self.library, own, _TILE))
            if not sides:
                # Nothing can be said of it, so it stays.
                return
            taken = Tile(*sides, together=bool(_value(self.library, own, _OPTION) & _BOTH))
            product = Product(problem.tokens, problem.inputs, problem.features, self.processors)
            for tile in better(product, taken.worth(product) + gain):
                if (algorithm := self._with(own, tile)) is None:
                    continue
                found = _Result()
                status = self.library.cublasLtMatmulAlgoCheck(
                    self.handle, operation.description, operation.weight, operation.x, operation.result,
                    operation.result, ctypes.byref(algorithm), ctypes.byref(found),
                )  # fmt: skip
                if not status and found.workspace <= WORKSPACE:
                    yield Choice(algorithm, tile, found.workspace)

    def _own(self, operation: _Operation) -> Any | None:
        """cuBLAS's own choice."""
        wish, found, number = ctypes.c_void_p(), _Result(), ctypes.c_int()
        self._do("cublasLtMatmulPreferenceCreate", ctypes.byref(wish))
        try:
            most = ctypes.c_size_t(WORKSPACE)
            self._do("cublasLtMatmulPreferenceSetAttribute", wish, 1, ctypes.byref(most), ctypes.sizeof(most))
            status = self.library.cublasLtMatmulAlgoGetHeuristic(
                self.handle, operation.description, operation.weight, operation.x, operation.result, operation.result,
                wish, 1, ctypes.byref(found), ctypes.byref(number),
            )  # fmt: skip
        finally:
            self.library.cublasLtMatmulPreferenceDestroy(wish)
        return None if status or not number.value else found.algorithm

    def _with(self, own: Any, tile: Tile) -> Any | None:
        """The same algorithm with another tile; None if there is no such tile."""
        if (number := TILES.get((tile.features, tile.tokens))) is None:
            return None
        algorithm, option = _Algorithm.from_buffer_copy(own), _TOGETHER if tile.together else _ALONE
        wanted = ((_TILE, number), (_OPTION, option), (_CLUSTER, _CLUSTERS[tile.cluster]))
        return None if any(_set(self.library, algorithm, which, value) for which, value in wanted) else algorithm

    def _do(self, function: str, *arguments: Any) -> None:
        if status := getattr(self.library, function)(*arguments):
            raise RuntimeError(f"{function}: status {status}")


class _Operation:
    """cuBLASLt's descriptions of a problem; its matrices are those of torch, read column by column."""

    def __init__(self, lt: CublasLt, problem: Problem):
        self.lt, self.problem = lt, problem
        self.description = ctypes.c_void_p()
        self.weight, self.x, self.result = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()

    def __enter__(self) -> _Operation:
        problem = self.problem
        self.lt._do("cublasLtMatmulDescCreate", ctypes.byref(self.description), _COMPUTE_FLOAT32, _FLOAT32)
        self.set(_TRANSPOSE_A, ctypes.c_int32(1))
        self.set(_EPILOGUE, ctypes.c_int32(problem.epilogue))
        if problem.bias:
            self.set(_BIAS, _SOMEWHERE)
        kind = _BFLOAT16
        if problem.fp8:
            kind = _E4M3
            self.set(_FAST_SUMS, ctypes.c_int8(1))
            for mode, scale in zip(_SCALE_MODES, _SCALES, strict=True):
                self.set(mode, ctypes.c_int32(_ONE_FOR_EACH))
                self.set(scale, _SOMEWHERE)
        for layout, of_what, rows, columns in (
            (self.weight, kind, problem.inputs, problem.features), (self.x, kind, problem.inputs, problem.tokens),
            (self.result, _BFLOAT16, problem.features, problem.tokens),
        ):  # fmt: skip
            sides = (ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows))
            self.lt._do("cublasLtMatrixLayoutCreate", ctypes.byref(layout), of_what, *sides)
        return self

    def __exit__(self, *_: object) -> Literal[False]:
        for layout in (self.weight, self.x, self.result):
            self.lt.library.cublasLtMatrixLayoutDestroy(layout)
        self.lt.library.cublasLtMatmulDescDestroy(self.description)
        return False

    def set(self, number: int, value: Any) -> None:
        """An attribute of the operation."""
        size = ctypes.sizeof(value)
        self.lt._do("cublasLtMatmulDescSetAttribute", self.description, number, ctypes.byref(value), size)


@cache
def of(device: torch.device) -> CublasLt | None:
    """cuBLASLt for a Hopper GPU, torch's own copy of it; None elsewhere, said aloud where it should be there."""
    if not hopper(device):
        return None
    name = f"libcublasLt.so.{_CUDA}"
    try:
        if (built := torch.version.cuda or "none").split(".")[0] != _CUDA:
            # Others may count tiles in another way.
            raise RuntimeError(f"torch is built for CUDA {built}, which takes up to 4 % longer than CUDA {_CUDA}")
        with on(device):
            return CublasLt(ctypes.CDLL(name), torch.cuda.get_device_properties(device).multi_processor_count)
    except (OSError, RuntimeError, AttributeError) as error:
        log.warning("no tiles of our choice: %s: %s", name, error)
        return None


def _value(library: Any, algorithm: Any, which: tuple[int, Any]) -> int:
    found, written = which[1](), ctypes.c_size_t()
    library.cublasLtMatmulAlgoConfigGetAttribute(
        ctypes.byref(algorithm), which[0], ctypes.byref(found), ctypes.sizeof(found), ctypes.byref(written)
    )
    return int(found.value)


def _set(library: Any, algorithm: Any, which: tuple[int, Any], value: int) -> int:
    given = which[1](value)
    return int(
        library.cublasLtMatmulAlgoConfigSetAttribute(
            ctypes.byref(algorithm), which[0], ctypes.byref(given), ctypes.sizeof(given)
        )
    )


def _address(tensor: Tensor) -> Any:
    return ctypes.c_void_p(tensor.data_ptr())


def _stream(device: torch.device) -> Any:
    return ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0)
