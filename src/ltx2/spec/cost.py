"""What a Plan costs: transformer passes, operations, bytes, and estimated seconds and dollars on one H200.

Counting needs shapes only, so it runs without torch, weights or a GPU. An operation is a multiplication or an addition
(one multiply-accumulate counts two); only matrix products and attention are counted. What runs is counted: the fast path's
perturbed pass begins at its first perturbed block, and guidance counts in the steps that it runs in.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from ltx2.spec.card import Card, Shape
from ltx2.spec.geometry import Grid
from ltx2.spec.plan import Plan, Stage
from ltx2.spec.precision import FLOAT_BYTES, Held, text_encoder_bytes, transformer_bytes

GRAPH_TOKENS = 16_384
"""Rows times video tokens up to which launching kernels may cost more than running them, so that graphs are recorded."""
# What the fast decoder makes at once: 32 frames of 768x512 fill a large GPU in its last block, and of a larger picture it
# takes 24 at least, for two more are normalised and padded for each convolution.
_PIECE_PIXELS, _PIECE_FRAMES = 32 * 768 * 512, 24

# Operations a second, measured on one H200 with torch 2.11 and full-size LTX-2: the plain path, and what the fast one did on
# average over the rows of docs/03-speed.md (613 to 659 in bf16, 817 to 943 in fp8).
_PLAIN_RATE = 416e12
_FAST_RATES = {"bf16": 635e12, "fp8": 875e12}
# Measured there too: the untiled decode of 768x512x97 takes 184 ms and 4.2 GiB beyond the weights. The fast one takes
# 1.4 GiB, and at most 5.4 at 1536x1024x121 and 2.3 at 768x512x121 of 2.3 (by the peaks of whole videos): so many bytes for a
# pixel of a piece, and for every pixel of the video, as the first blocks do it in one. Those do more in 2.3 and 2.5.
DECODE_SECONDS_PER_PIXEL = 0.184 / (768 * 512 * 97)
FAST_DECODE_SECONDS_PER_PIXEL = 0.107 / (768 * 512 * 97)
DECODE_BYTES_PER_PIXEL = 118
PIECE_BYTES_PER_PIXEL = 80
FAST_DECODE_BYTES_PER_PIXEL = {"2.0": 15, "2.3": 30, "2.5": 30}
# 2.3 and 2.5 decode with 94.4 TFLOP where 2.0 needs 48.4.
DECODE_FACTOR = {"2.0": 1.0, "2.3": 1.95, "2.5": 1.95}
# Peak beyond the weights of one eager pass, in bytes per video token and channel of each row: 0.7 GiB at 4,992 tokens of
# 4,096 channels and 3.4 GiB at 24,576 (bf16).
ACTIVATION_BYTES = 36.3


@dataclass(frozen=True)
class StageCost:
    """One stage: tokens of both streams, transformer passes and operations of all its steps."""

    video_tokens: int
    audio_tokens: int
    passes: int
    flops: float


@dataclass(frozen=True)
class Cost:
    """The need of a Plan.

    `flops` are those of the denoising stages, `text_flops` those of the text encoder. `weight_bytes` has LoRAs that came
    with the model in it; `original_bytes` are weights that a merged LoRA touches, kept to be put back. Of the fast path
    are `text_key_bytes`, the text keys of the stage at work, `kept_bytes`, those that graphs keep from stage to stage, and
    `graph_bytes`, the graphs' pool. `resident_bytes` is the peak with every network on the device, `staged_bytes` with one
    network at a time. `seconds` is a warm run on one H200 at `rate` operations a second, without the encoding of the
    video, and `dollars` its price. With step caching less may run, which cannot be known before: passes, operations,
    seconds and dollars are then `at_most`.
    """

    stages: tuple[StageCost, ...]
    passes: int
    flops: float
    text_flops: float
    weight_bytes: int
    original_bytes: int
    activation_bytes: int
    text_key_bytes: int
    kept_bytes: int
    graph_bytes: int
    decode_bytes: int
    resident_bytes: int
    staged_bytes: int
    rate: float
    seconds: float
    dollars: float
    at_most: bool

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def need(plan: Plan, card: Card, precision: str | Held = "bf16", price_per_hour: float = 0.0) -> Cost:
    """Count a Plan on a checkpoint. `precision` is bf16, fp32, fp8 or a `Held`, `price_per_hour` in dollars."""
    shape = card.shape
    held = Held(precision) if isinstance(precision, str) else precision
    width = FLOAT_BYTES[held.precision]
    stages = tuple(stage_cost(stage, plan.grid(stage), card, held.fast) for stage in plan.stages)
    flops = sum(stage.flops for stage in stages)
    prompts = max(_rows(stage) for stage in plan.stages)
    text_flops = prompts * card.text_tokens * shape.text_encoder_bytes  # bf16: two bytes and two operations a weight
    pixels = plan.width * plan.height * plan.frames
    weights = [
        transformer_bytes(shape, held.precision),
        text_encoder_bytes(shape, held),
        shape.other_bytes * width // 2,
    ]
    lora = shape.lora_bytes + (0 if held.merges else shape.drawn_lora_bytes)
    # Nearly all of the transformer is touched. Merging what stands for a LoRA with random weights does nothing.
    merged = bool(plan.loras) or (any(stage.lora for stage in plan.stages) and not shape.drawn_lora_bytes)
    originals = weights[0] if merged and held.merges else 0
    moments = [
        _moment(kind, plan.grid(stage), card, width, held.fast) for stage in plan.stages for kind, _ in _kinds(stage)
    ]
    activations, keys = max(one.activations for one in moments), max(one.keys for one in moments)
    kept, graphs = _kept(moments, card)
    decode = round(_decode_bytes(plan, card, held.fast) * width / 2)
    decode_rate = FAST_DECODE_SECONDS_PER_PIXEL if held.fast else DECODE_SECONDS_PER_PIXEL
    decode_seconds = decode_rate * pixels * DECODE_FACTOR[card.version]
    rate = _FAST_RATES.get(held.precision, _PLAIN_RATE) if held.fast else _PLAIN_RATE
    seconds = (flops + text_flops) / rate + decode_seconds
    return Cost(
        stages=stages,
        passes=sum(stage.passes for stage in stages),
        flops=flops,
        text_flops=text_flops,
        weight_bytes=sum(weights) + lora,
        original_bytes=originals,
        activation_bytes=activations,
        text_key_bytes=keys,
        kept_bytes=kept,
        graph_bytes=graphs,
        decode_bytes=decode,
        resident_bytes=sum(weights) + lora + kept + graphs + max(originals + activations + keys, decode),
        staged_bytes=lora
        + max(weights[0] + originals + kept + graphs + activations + keys, weights[1], weights[2] + decode),
        rate=rate,
        seconds=seconds,
        dollars=seconds / 3600 * price_per_hour,
        at_most=plan.skips,
    )


def piece_frames(width: int, height: int) -> int:
    """Frames that the fast decoder makes at once."""
    return max(_PIECE_FRAMES, _PIECE_PIXELS // (width * height))


def _decode_bytes(plan: Plan, card: Card, fast: bool) -> int:
    """What the picture's decode takes beyond the weights, in bf16; the plain one whole, without tiles."""
    area = plan.width * plan.height
    if not fast:
        return DECODE_BYTES_PER_PIXEL * area * plan.frames
    piece = min(plan.frames, piece_frames(plan.width, plan.height))
    return area * (PIECE_BYTES_PER_PIXEL * piece + FAST_DECODE_BYTES_PER_PIXEL[card.version] * plan.frames)


@dataclass(frozen=True)
class _Moment:
    """One kind of evaluation at work: bytes of activations and text keys, and its kind if it is recorded as a graph."""

    activations: int
    keys: int
    kind: tuple[int, ...] | None


def _moment(stage: Stage, grid: Grid, card: Card, width: int, fast: bool) -> _Moment:
    shape, rows = card.shape, _rows(stage)
    activations = round(ACTIVATION_BYTES * rows * grid.video_tokens * shape.video_dim * width / 2)
    if not fast:
        return _Moment(activations, 0, None)
    # Keys and values of both streams for every block.
    keys = 2 * shape.layers * (shape.video_dim + shape.audio_dim) * card.text_tokens * rows * width
    kind = (rows, grid.video_tokens, grid.audio_tokens, stage.passes_per_step)
    return _Moment(activations, keys, kind if rows * grid.video_tokens <= GRAPH_TOKENS else None)


def _kept(moments: list[_Moment], card: Card) -> tuple[int, int]:
    """Bytes of text keys that graphs keep, and of the pool that graphs share.

    Each graph of 2.0 keeps the keys that it was recorded with. In later versions sigma changes them, so that they are
    made inside the graph, in its pool.
    """
    graphs = {one.kind: one for one in moments if one.kind}.values()
    if card.version == "2.0":
        return sum(one.keys for one in graphs), max((one.activations for one in graphs), default=0)
    return 0, max((one.activations + one.keys for one in graphs), default=0)


def _rows(stage: Stage) -> int:
    """Rows of a stage's plain pass: one for every prompt."""
    return 2 if stage.video.cfg != 1 or stage.audio.cfg != 1 else 1


def stage_cost(stage: Stage, grid: Grid, card: Card, fast: bool = True) -> StageCost:
    """Tokens, passes and operations of all steps of one stage."""
    flops = sum(count * _evaluation_flops(kind, grid, card, fast) for kind, count in _kinds(stage))
    return StageCost(grid.video_tokens, grid.audio_tokens, stage.passes, flops)


def _kinds(stage: Stage) -> list[tuple[Stage, int]]:
    """The stage as it is guided, and as it is where guidance does not run, each with its evaluations, where there are any."""
    guided = stage.guided_evaluations
    kinds = ((stage, guided), (stage.unguided, stage.evaluations - guided))
    return [(kind, count) for kind, count in kinds if count]


def _evaluation_flops(stage: Stage, grid: Grid, card: Card, fast: bool) -> float:
    """All passes of one guided evaluation."""
    sides = (stage.video, stage.audio)
    pass_flops = partial(forward_flops, card.shape, grid.video_tokens, grid.audio_tokens, card.text_tokens)
    flops = pass_flops() * (1 + any(side.cfg != 1 for side in sides))
    if any(side.stg for side in sides):
        begin = min((*stage.video.stg_blocks, *stage.audio.stg_blocks)) if fast else 0
        flops += pass_flops(begin=begin)
    if any(side.modality != 1 for side in sides):
        flops += pass_flops(isolated=True)
    return flops


def forward_flops(shape: Shape, video: int, audio: int, text: int, isolated: bool = False, begin: int = 0) -> float:
    """Operations of one transformer pass over `video`, `audio` and `text` tokens of one sample.

    An `isolated` pass leaves out the attention between the two modalities; one that goes on from another pass begins at
    block `begin`.
    """
    wide, narrow = shape.video_dim, shape.audio_dim
    block = _stream_flops(wide, video, text) + _stream_flops(narrow, audio, text)
    if not isolated:
        # Both directions attend in the audio width: queries, keys, values and output of either side, then the products.
        sides = 4 * wide * narrow * video + 4 * narrow**2 * audio
        block += 2 * (sides + 4 * video * audio * narrow)
    leaving = 2 * shape.latent_channels * wide * video
    entering = leaving + 2 * text * (shape.text_width * wide + wide**2)
    return (shape.layers - begin) * block + leaving + (0 if begin else entering)


def text_flops(shape: Shape, text: int) -> float:
    """Of these, the operations on `text` tokens alone: LTX-2.0's are the same in every pass of a stage."""
    keys = 4 * text * (shape.video_dim**2 + shape.audio_dim**2)
    return shape.layers * keys + 2 * text * (shape.text_width * shape.video_dim + shape.video_dim**2)


def _stream_flops(width: int, tokens: int, text: int) -> float:
    """One block of one modality: self-attention, attention to the text, feed-forward."""
    own = 8 * width**2 * tokens + 4 * tokens**2 * width
    prompt = 4 * width**2 * tokens + 4 * width**2 * text + 4 * tokens * text * width
    return own + prompt + 16 * width**2 * tokens
