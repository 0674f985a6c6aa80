"""What a Plan costs: transformer passes, operations, bytes, and estimated seconds and dollars on one H200.

Counting needs shapes only, so it runs without torch, weights or a GPU. An operation is a multiplication or an addition
(one multiply-accumulate counts two); only matrix products and attention are counted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ltx2.spec.card import Card, Shape
from ltx2.spec.geometry import Grid
from ltx2.spec.plan import Plan, Stage
from ltx2.spec.precision import FLOAT_BYTES, Held, text_encoder_bytes, transformer_bytes

# Measured on one H200 with torch 2.11, full-size LTX-2, eager bf16: one 768x512x97 forward takes 379 ms.
EAGER_RATE = 416e12
# Measured there too: the untiled decode of 768x512x97 takes 184 ms and 4.2 GiB beyond the weights.
DECODE_SECONDS_PER_PIXEL = 0.184 / (768 * 512 * 97)
DECODE_BYTES_PER_PIXEL = 118
# 2.3 and 2.5 decode with 94.4 TFLOP where 2.0 needs 48.4.
DECODE_FACTOR = {"2.0": 1.0, "2.3": 1.95, "2.5": 1.95}
# Peak beyond the weights of one eager pass, in bytes per video token and channel: 0.7 GiB at 4,992 tokens of 4,096
# channels and 3.4 GiB at 24,576 (bf16).
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

    `flops` are those of the denoising stages, `text_flops` those of the text encoder. `resident_bytes` is the peak with
    every network on the device, `staged_bytes` with one network at a time. `seconds` is a warm run on one H200 at
    `EAGER_RATE`, and `dollars` its price.
    """

    stages: tuple[StageCost, ...]
    passes: int
    flops: float
    text_flops: float
    weight_bytes: int
    activation_bytes: int
    decode_bytes: int
    resident_bytes: int
    staged_bytes: int
    seconds: float
    dollars: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def need(plan: Plan, card: Card, precision: str | Held = "bf16", price_per_hour: float = 0.0) -> Cost:
    """Count a Plan on a checkpoint. `precision` is bf16, fp32, fp8 or a `Held`, `price_per_hour` in dollars."""
    shape = card.shape
    held = Held(precision) if isinstance(precision, str) else precision
    width = FLOAT_BYTES[held.precision]
    stages = tuple(stage_cost(stage, plan.grid(stage), card) for stage in plan.stages)
    flops = sum(stage.flops for stage in stages)
    prompts = 2 if any(stage.video.cfg != 1 or stage.audio.cfg != 1 for stage in plan.stages) else 1
    text_flops = prompts * card.text_tokens * shape.text_encoder_bytes  # bf16: two bytes and two operations a weight
    pixels = plan.width * plan.height * plan.frames
    weights = [
        transformer_bytes(shape, held.precision),
        text_encoder_bytes(shape, held),
        shape.other_bytes * width // 2,
    ]
    tokens = max(stage.video_tokens for stage in stages)
    activations = round(ACTIVATION_BYTES * tokens * shape.video_dim * width / 2)
    decode = round(DECODE_BYTES_PER_PIXEL * pixels * width / 2)
    decode_seconds = DECODE_SECONDS_PER_PIXEL * pixels * DECODE_FACTOR[card.version]
    seconds = (flops + text_flops) / EAGER_RATE + decode_seconds
    return Cost(
        stages=stages,
        passes=sum(stage.passes for stage in stages),
        flops=flops,
        text_flops=text_flops,
        weight_bytes=sum(weights),
        activation_bytes=activations,
        decode_bytes=decode,
        resident_bytes=sum(weights) + max(activations, decode),
        staged_bytes=max(weights[0] + activations, weights[1], weights[2] + decode),
        seconds=seconds,
        dollars=seconds / 3600 * price_per_hour,
    )


def stage_cost(stage: Stage, grid: Grid, card: Card) -> StageCost:
    """Tokens, passes and operations of all steps of one stage."""
    full = forward_flops(card.shape, grid.video_tokens, grid.audio_tokens, card.text_tokens)
    isolated = forward_flops(card.shape, grid.video_tokens, grid.audio_tokens, card.text_tokens, isolated=True)
    isolates = any(guidance.modality != 1 for guidance in (stage.video, stage.audio))
    step = full * (stage.passes_per_step - isolates) + isolated * isolates
    passes = stage.evaluations * stage.passes_per_step
    return StageCost(grid.video_tokens, grid.audio_tokens, passes, stage.evaluations * step)


def forward_flops(shape: Shape, video: int, audio: int, text: int, isolated: bool = False) -> float:
    """Operations of one transformer pass over `video`, `audio` and `text` tokens of one sample.

    An `isolated` pass leaves out the attention between the two modalities.
    """
    wide, narrow = shape.video_dim, shape.audio_dim
    block = _stream_flops(wide, video, text) + _stream_flops(narrow, audio, text)
    if not isolated:
        # Both directions attend in the audio width: queries, keys, values and output of either side, then the products.
        sides = 4 * wide * narrow * video + 4 * narrow**2 * audio
        block += 2 * (sides + 4 * video * audio * narrow)
    ends = 4 * shape.latent_channels * wide * video + 2 * text * (shape.text_width * wide + wide**2)
    return shape.layers * block + ends


def _stream_flops(width: int, tokens: int, text: int) -> float:
    """One block of one modality: self-attention, attention to the text, feed-forward."""
    own = 8 * width**2 * tokens + 4 * tokens**2 * width
    prompt = 4 * width**2 * tokens + 4 * width**2 * text + 4 * tokens * text * width
    return own + prompt + 16 * width**2 * tokens
