"""From a prompt to the text tokens that the transformer reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ltx2.models.connectors import text_tokens
from ltx2.models.encoder import hidden_states
from ltx2.spec.errors import RefusedRequest

if TYPE_CHECKING:
    from ltx2.models.components import Models


@dataclass(frozen=True)
class Context:
    """Text tokens for the two streams: video [B, S, Dv] and audio [B, S, Da]. Padding became registers: no mask."""

    video: Tensor
    audio: Tensor


@torch.inference_mode()
def embed(models: Models, texts: list[str]) -> Context:
    """Embed prompts (one row each) with all hidden states of the text encoder and the connectors.

    Texts are padded on the left to the card's `text_tokens`; the encoder leaves most of the padding out. Every text is
    embedded alone, so that its tokens do not depend on what else is asked and may be remembered. Raises RefusedRequest
    when a text is longer than that: the end of a prompt is never cut off silently.
    """
    texts = [text.strip() for text in texts]
    found = {text: models.recall(text) for text in texts}
    missing = [text for text, pair in found.items() if pair is None]
    for text, pair in zip(missing, _encode(models, missing) if missing else [], strict=True):
        models.remember(text, pair)
        found[text] = pair
    pairs = [pair for text in texts if (pair := found[text]) is not None]
    return Context(torch.cat([video for video, _ in pairs]), torch.cat([audio for _, audio in pairs]))


def _encode(models: Models, texts: list[str]) -> list[tuple[Tensor, Tensor]]:
    ids, mask = tokenise(models.tokenizer, texts, models.card.text_tokens)
    rows = [(ids[row : row + 1], mask[row : row + 1]) for row in range(len(texts))]
    with models.use("text_encoder") as encoder:
        states = [
            hidden_states(encoder, *row, models.text_device, models.fast_passes).to(models.device) for row in rows
        ]
    with models.use("connectors") as connectors:
        return [
            text_tokens(connectors, stacked.to(connectors.dtype), mask, models.fast_passes)
            for stacked, (_, mask) in zip(states, rows, strict=True)
        ]


def tokenise(tokenizer: Any, texts: list[str], length: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both [B, length] int64, padded on the left. Raises RefusedRequest when a text is too long."""
    tokenizer.padding_side = "left"
    texts = [text.strip() for text in texts]
    longest = max(len(row) for row in tokenizer(texts).input_ids)
    if longest > length:
        raise RefusedRequest(f"prompt: it has {longest} tokens", knob="prompt", hint=f"at most {length} for this model")
    encoded = tokenizer(texts, padding="max_length", max_length=length, return_tensors="pt")
    return encoded.input_ids, encoded.attention_mask
