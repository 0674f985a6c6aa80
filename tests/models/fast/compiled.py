"""Run by test_kernels: compiles every kernel for sm_90 at the sizes of LTX-2, which needs no GPU."""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ltx2.models.fast import head_kernels, kernels, launch

HOPPER = GPUTarget("cuda", 90, 32)
# Sizes and strides that the launches pass; those of rows are multiples of 16.
ALIGNED = (
    "gate_row",
    "gate_level",
    "row_0",
    "level_0",
    "row_1",
    "level_1",
    "logits_row",
    *(f"{prefix}{name}_{n}" for prefix in ("", "out_") for name in ("batch", "token") for n in (0, 1)),
    "batch_stride",
    "token_stride",
    "out_batch",
)
WHOLE = (*ALIGNED, "tokens", "batches", "positions", "frames", "frames_out", "height", "width", "front")
POINTERS = {"index": "*i32", "largest": "*fp32", "cos": "*fp32", "sin": "*fp32"}
POINTERS |= dict.fromkeys(("rows_0", "rows_1", "scales", "scales_0", "scales_1"), "*fp32")
FP8_OUTPUTS = ("normal_0", "normal_1", "out_0", "out_1")


def main() -> None:
    for fp8 in (False, True):
        for targets in (0, 1, 2):
            constants = {
                "DIM": 4096,
                "BLOCK": 4096,
                "ADDS": True,
                "GATED": True,
                "INDEXED": targets == 1,
                "TARGETS": targets,
            }
            show(
                kernels._residual_norm,
                {
                    **constants,
                    "AFFINE_0": True,
                    "AFFINE_1": targets == 2,
                    "READS_0": 2 * fp8,
                    "READS_1": int(fp8),
                },
                launch.warps(4096),
                fp8,
            )
        gates = {"HEADS": 32, "WIDTH": 128, "BLOCK_HEADS": 32, "BLOCK_WIDTH": 128, "QUANTISE": fp8}
        show(head_kernels._gate_heads, gates, 8, fp8)
        show(kernels._pointwise, {"DIM": 16384, "BLOCK": 16384, "GELU": True, "QUANTISE": fp8}, 16, fp8)
    for half, pair, fp8 in ((64, True, False), (64, True, True), (32, False, False)):
        heads = {"DIM": 64 * half, "HALF": half, "ROTATES": half == 64, "BLOCK_HEADS": 32, "BLOCK_HALF": half}
        show(head_kernels._normalise_heads, {**heads, "PAIR": pair, "QUANTISE": fp8}, 8, fp8)
    # One row: a launch makes a constant of every 1.
    show(head_kernels._normalise_heads, {**heads, "PAIR": False, "QUANTISE": False, "batches": 1}, 8, False)
    heads = {"HEADS": 32, "WIDTH": 128, "BLOCK_HEADS": 32, "BLOCK_WIDTH": 128}
    show(head_kernels._quantise_heads, heads, 8, True)
    show(head_kernels._largest, {**heads, "TOKENS": head_kernels.TOKENS}, 8, False)
    for channels, normalises in ((128, True), (1024, False)):
        padding = {
            "CHANNELS": channels,
            "BLOCK": channels,
            "ROWS": 2048 // channels,
            "NORMALISES": normalises,
            "REFLECTS": normalises,
        }
        show(kernels._pad, {**padding, "CONTINUES": normalises}, 4, False)


def show(kernel: Any, constants: dict[str, Any], warps: int, fp8: bool) -> None:
    """Compile, and say whether rows are stored sixteen bytes at a time."""
    names = [parameter.name for parameter in kernel.params]
    types = {name: _type(name, name in constants) for name in names}
    if fp8:
        types |= {name: "*fp8e4nv" for name in (*FP8_OUTPUTS, "out") if types.get(name) == "*bf16"}
        if kernel is kernels._residual_norm:
            types["out"] = "*bf16"
    if kernel is head_kernels._largest:
        types["out"] = "*i32"
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if types[name].startswith("*") or (name in ALIGNED and name not in constants)
    }
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=aligned)
    made = triton.compile(source, target=HOPPER, options={"num_warps": warps})
    assert made.asm["cubin"]
    wide = any(
        f"st.global.v{n}" in made.asm["ptx"].replace(".b32", "") or f".v{n}.b32" in made.asm["ptx"] for n in (4, 2)
    )
    print(kernel.__name__, constants, "wide" if wide else "narrow")


def _type(name: str, constant: bool) -> str:
    if constant:
        return "constexpr"
    return "fp32" if name == "eps" else "i32" if name in WHOLE else POINTERS.get(name, "*bf16")


if __name__ == "__main__":
    main()
