"""From a prompt to the text tokens that the transformer reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

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

    Texts are padded on the left to the card's `text_tokens`. Raises RefusedRequest when a text is longer than that:
    the end of a prompt is never cut off silently.
    """
    ids, mask = tokenise(models.tokenizer, texts, models.card.text_tokens)
    ids, mask = ids.to(models.device), mask.to(models.device)
    with models.use("text_encoder") as encoder:
        # The inner model: the outer one would also compute logits over the whole vocabulary for every position.
        states = encoder.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    with models.use("connectors") as connectors:
        stacked = torch.stack(states, dim=-1).to(connectors.dtype)
        video, audio, _ = connectors(stacked, mask, padding_side="left")
    return Context(video, audio)


def tokenise(tokenizer: Any, texts: list[str], length: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both [B, length] int64, padded on the left. Raises RefusedRequest when a text is too long."""
    tokenizer.padding_side = "left"
    texts = [text.strip() for text in texts]
    longest = max(len(row) for row in tokenizer(texts).input_ids)
    if longest > length:
        raise RefusedRequest(f"prompt: it has {longest} tokens", knob="prompt", hint=f"at most {length} for this model")
    encoded = tokenizer(texts, padding="max_length", max_length=length, return_tensors="pt")
    return encoded.input_ids, encoded.attention_mask
