"""How networks hold their weights, in words and bytes: which precisions there are and which layers each of them leaves alone.

Names: `bf16` and `fp32` hold every network so. `fp8` holds most linears of the transformer in float8 e4m3 and the rest
in bf16. The text encoder may be held on its own, as `int8` or `int4`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ltx2.spec.card import Shape

# Bytes of an element that is held plainly, by the name of the precision.
FLOAT_BYTES = {"bf16": 2, "fp32": 4, "fp8": 2}
# Bytes of a linear weight of the text encoder with its scales, one float32 a row or two float16 for every group of 32;
# and the share of Gemma 3 12B's weights that are such linears (the rest is the embedding and the vision tower).
_COMPACT_BYTES = {"int8": 1.0, "int4": 0.625}
_LINEARS = 0.88
# Blocks of 48 that stay as they are: the first and the last five, as in the published fp8 files of LTX-2.
_FIRST, _LAST, _OF = 1, 5, 48


@dataclass(frozen=True)
class Held:
    """How a model is held on a device, in words.

    `precision` is bf16, fp32 or fp8; `text_encoder` auto (as `precision`), int8, int4, or elsewhere (on another device);
    `loras` merged, added, or auto. `fast` says whether the fast paths are taken, which keep some memory on a GPU and
    decode with less.
    """

    precision: str = "bf16"
    text_encoder: str = "auto"
    loras: str = "auto"
    fast: bool = True

    @classmethod
    def on(cls, device: str, precision: str, text_encoder: str, text_device: str, loras: str, fast: bool) -> Held:
        """What settings come to on a device: `auto` precision is what suits it, and cuda is cuda:0."""
        elsewhere = text_device != "auto" and text_device.removesuffix(":0") != device.removesuffix(":0")
        return cls(suited(precision, device), "elsewhere" if elsewhere else text_encoder, loras, fast)

    @property
    def merges(self) -> bool:
        """Whether LoRAs are merged into weights, whose originals are kept meanwhile."""
        return self.loras == "merged" or (self.loras == "auto" and self.precision != "fp8")


def suited(precision: str, device: str) -> str:
    """The precision as asked; for `auto` bf16 on a GPU and fp32 on a CPU."""
    if precision == "auto":
        return "bf16" if device.startswith("cuda") else "fp32"
    return precision


def fp8_blocks(layers: int) -> range:
    """The transformer blocks whose linears are held in fp8 when this engine quantises: all but the first and last ones."""
    return range(_FIRST, max(_FIRST, layers - max(1, round(layers * _LAST / _OF))))


def transformer_bytes(shape: Shape, precision: str) -> int:
    """Bytes of the transformer's weights. Shape counts bf16; an fp8 weight takes one byte of the two."""
    if precision != "fp8":
        return shape.transformer_bytes * FLOAT_BYTES[precision] // 2
    return shape.transformer_bytes - len(fp8_blocks(shape.layers)) * block_weights(shape)


def text_encoder_bytes(shape: Shape, held: Held) -> int:
    """Bytes of the text encoder's weights on the device. Shape counts bf16."""
    plain = shape.text_encoder_bytes * FLOAT_BYTES[held.precision] // 2
    if held.text_encoder == "elsewhere":
        return 0
    if held.text_encoder == "auto":
        return plain
    compact = _LINEARS * shape.text_encoder_bytes * _COMPACT_BYTES[held.text_encoder] / 2
    return round((1 - _LINEARS) * plain + compact)


def block_weights(shape: Shape) -> int:
    """Elements of the linears of one block that fp8 holds: six attentions and two feed-forwards, without gate logits."""
    wide, narrow = shape.video_dim, shape.audio_dim
    return 16 * wide**2 + 20 * narrow**2 + 4 * wide * narrow


def lora_bytes(shape: Shape, rank: int = 384) -> int:
    """Bytes of a bf16 LoRA on the linears of all blocks, min(rank, in, out) for each: 4 % below the distilled LoRA of
    LTX-2, which also touches both ends."""
    wide, narrow = shape.video_dim, shape.audio_dim
    sides = 12 * [(narrow, narrow)] + 4 * [(wide, narrow)] + 8 * [(wide, wide)]
    sides += 2 * [(wide, 4 * wide)] + 2 * [(narrow, 4 * narrow)]
    return 2 * shape.layers * sum(min(rank, *pair) * sum(pair) for pair in sides)
