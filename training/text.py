"""From caption tokens to the two text contexts of the transformer, as generation does it but cheaper.

Captions of the toy world are short, so the text encoder runs on a window of `WINDOW` tokens at the end of the
`TEXT_POSITIONS`; the padding left of it never reaches a valid token.
"""

from __future__ import annotations

import torch
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from torch import Tensor
from torch.nn.functional import pad
from transformers import Gemma3ForConditionalGeneration, GemmaTokenizer

from training.networks import TEXT_POSITIONS

WINDOW = 48
PAD = 0
SCALE = 8


def tokenise(tokenizer: GemmaTokenizer, captions: list[str]) -> Tensor:
    """Token ids [N, WINDOW] int16 on the CPU, padded with `PAD` on the left; raises ValueError for a longer caption."""
    rows = tokenizer([caption.strip() for caption in captions]).input_ids
    longest = max(map(len, rows))
    if longest > WINDOW:
        raise ValueError(f"a caption of {longest} tokens does not fit the window of {WINDOW}")
    return torch.tensor([[PAD] * (WINDOW - len(row)) + row for row in rows], dtype=torch.int16)


def contexts(
    text_encoder: Gemma3ForConditionalGeneration, connectors: LTX2TextConnectors, ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Contexts of video and audio, each [N, TEXT_POSITIONS, width], of ids [N, WINDOW] padded on the left."""
    valid = ids != PAD
    hidden = hidden_states(text_encoder, ids.long(), valid)
    missing = TEXT_POSITIONS - ids.shape[1]
    hidden, mask = pad(hidden, (0, 0, 0, 0, missing, 0)), pad(valid.long(), (missing, 0))
    video, audio, _ = connectors(hidden, mask, padding_side="left", scale_factor=SCALE)
    return video, audio


def hidden_states(text_encoder: Gemma3ForConditionalGeneration, ids: Tensor, valid: Tensor) -> Tensor:
    """Embeddings and every layer's output, the last one normed: [N, L, width, layers + 1].

    The layers are called directly because the model's own forward builds its masks with host reads of the padding.
    """
    model = text_encoder.model.language_model
    length = ids.shape[1]
    position = torch.arange(TEXT_POSITIONS - length, TEXT_POSITIONS, device=ids.device)[None]
    causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    # a padding token sees itself, for a row without any key has no softmax
    alone = torch.eye(length, dtype=torch.bool, device=ids.device)
    mask = ((causal & valid[:, None, :]) | alone)[:, None]
    state = model.embed_tokens(ids)
    states = [state]
    rotary = {kind: model.rotary_emb(state, position, kind) for kind in set(model.config.layer_types)}
    for layer, kind in zip(model.layers, model.config.layer_types, strict=True):
        state = layer(state, attention_mask=mask, position_embeddings=rotary[kind], position_ids=position)
        states.append(state)
    states[-1] = model.norm(state)
    return torch.stack([state.float() for state in states], dim=-1)
