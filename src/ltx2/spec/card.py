"""What a checkpoint says about itself: version, kind, shapes of its networks, rates and limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

Version = Literal["2.0", "2.3", "2.5"]
Kind = Literal["dev", "distilled"]


@dataclass(frozen=True)
class Shape:
    """Sizes of the networks, enough to count tokens, operations and bytes without loading anything.

    The defaults are LTX-2's. `latent_channels` and `audio_channels * audio_bins` are the widths of the two token
    streams; `text_width` is the width of a text token as it enters the transformer; `lora_bytes` are those of the
    distilled LoRA that came with the model, `drawn_lora_bytes` those of the one that random weights get where LoRAs are
    added.
    """

    layers: int = 48
    heads: int = 32
    video_dim: int = 4096
    audio_dim: int = 2048
    text_width: int = 3840
    latent_channels: int = 128
    audio_channels: int = 8
    audio_bins: int = 16
    text_layers: int = 48
    text_hidden: int = 3840
    transformer_bytes: int = 37_752_349_184
    text_encoder_bytes: int = 24_374_650_080
    other_bytes: int = 6_460_000_000
    lora_bytes: int = 0
    drawn_lora_bytes: int = 0


@dataclass(frozen=True)
class Card:
    """A checkpoint's own description.

    `family` names the row of the preset table that suits the model: its version for published checkpoints, `tiny`
    for the embedded one. `distilled_lora` and `upsampler` say whether those files came with the model.
    `text_tokens` is the padded prompt length, `stg_blocks` the transformer blocks that spatio-temporal guidance
    perturbs, `output_sampling_rate` in Hz is what the vocoder's config states, `image_crf` the H.264 quality at which a
    conditioning image is re-encoded to look like the frames of the training videos (None: it is not). `preset` is what a
    service makes of requests that name none (None: what suits the model).
    """

    name: str
    version: Version = "2.0"
    kind: Kind = "dev"
    family: str = "2.0"
    revision: str | None = None
    output_sampling_rate: int = 24_000
    text_tokens: int = 1024
    stg_blocks: tuple[int, ...] = (29,)
    distilled_lora: bool = False
    upsampler: bool = False
    audio_latents_per_second: Fraction = Fraction(25)
    image_crf: int | None = 33
    max_side: int = 2048
    max_seconds: float = 20.0
    note: str = ""
    preset: str | None = None
    shape: Shape = field(default_factory=Shape)

    @property
    def audio_width(self) -> int:
        """Channels of one audio token."""
        return self.shape.audio_channels * self.shape.audio_bins
