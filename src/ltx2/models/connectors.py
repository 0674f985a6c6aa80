"""From the text encoder's states to the text tokens of both streams, without the padding where it counts for nothing.

The connectors project the states of all layers of a token, 188,160 numbers, and put registers in the place of padding. So
only the tokens that count are projected, an eighth of them for a usual prompt, and on a GPU all of it is a CUDA graph.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.pipelines.ltx2.connectors import per_layer_masked_mean_norm, per_token_rms_norm
from torch import Tensor, nn

from ltx2.models.encoder import GRAPH_TOKENS, recorded


def text_tokens(connectors: nn.Module, states: Tensor, mask: Tensor, fast: bool = True) -> tuple[Tensor, Tensor]:
    """Text tokens of (video, audio), [1, L, D] each, of states [1, s, D, N] of the last s of L tokens, on their device.

    `mask` [1, L] is 1 for tokens, all of them among the last s, and 0 for padding, which is on the left. As the module's own
    forward of states with zeros before them. Without `fast` there is no graph.
    """
    owner: Any = connectors
    valid = mask.to(states.device)
    if any(one.learnable_registers is None for one in (owner.video_connector, owner.audio_connector)):
        video, audio, _ = owner(_behind_zeros(states, mask.shape[1]), valid, padding_side="left")
        return video, audio
    given = (states, valid)
    if not fast or states.shape[1] > GRAPH_TOKENS:
        return _forward(owner, *given)
    return recorded(connectors, states.device, states.shape[1], lambda new: _forward(owner, *new), given)


def _forward(connectors: Any, states: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    length = valid.shape[1]
    # What padding becomes does not matter: registers take its place.
    video, audio = (_behind_zeros(part, length) for part in _projected(connectors, states, valid))
    hidden = (valid.to(video.dtype) - 1)[:, None, None] * torch.finfo(video.dtype).max
    return connectors.video_connector(video, hidden)[0], connectors.audio_connector(audio, hidden)[0]


def _projected(connectors: Any, states: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised over all layers, then projected for (video, audio): [1, s, Dv] and [1, s, Da]."""
    config = connectors.config
    if not config.per_modality_projections:
        count = valid.sum(-1)
        shared = connectors.text_proj_in(per_layer_masked_mean_norm(states, count, states.device, "left"))
        return shared, shared
    normal = per_token_rms_norm(states).flatten(2)
    sides = (
        (connectors.video_text_proj_in, config.video_hidden_dim),
        (connectors.audio_text_proj_in, config.audio_hidden_dim),
    )
    video, audio = (layer(normal * math.sqrt(width / config.caption_channels)) for layer, width in sides)
    return video, audio


def _behind_zeros(values: Tensor, length: int) -> Tensor:
    """[1, s, ...] -> [1, length, ...] with zeros in front."""
    whole = values.new_zeros(1, length, *values.shape[2:])
    whole[:, length - values.shape[1] :] = values
    return whole
