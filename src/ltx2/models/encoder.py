"""The text encoder's forward over the tokens that count: most of the padding is left out, and on a GPU it is a CUDA graph.

A prompt has some 30 to 200 tokens of 1,024. A forward over so few is all launches: 48 layers of small kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ltx2.models.fast import _TWIN
from ltx2.models.fast.graphs import CudaRecorder, Graphs

# Tokens of a text are encoded in numbers that are multiples of this: a length of its own for every text would mean other
# kernels, and another graph, for nearly every text.
GROUP, GPU_GROUP = 32, 128
# Above it the products are what takes the time, and a graph keeps the states of all layers in memory.
GRAPH_TOKENS = 256


def hidden_states(encoder: nn.Module, ids: Tensor, mask: Tensor, device: torch.device, fast: bool = True) -> Tensor:
    """All hidden states [1, s, D, layers + 1] of the last s of L tokens, among which are all that are no padding.

    `ids` and `mask` are [1, L], padded on the left. No token attends to padding, and tokens keep the positions that they
    have behind all of it. Without `fast` there is no graph, nor for other encoders than Gemma 3.
    """
    length = ids.shape[1]
    group = GPU_GROUP if device.type == "cuda" else GROUP
    # One group at least: a tokenizer that begins with no token makes none of an empty text.
    begin = max(0, length - max(1, -(-int(mask.sum()) // group)) * group)
    known = _kind(encoder) == "gemma3"
    valid, positions = mask[:, begin:], torch.arange(begin, length, device=device)[None]
    tokens = (ids[:, begin:].to(device), positions, _masks(encoder, valid, device) if known else valid.to(device))
    if not fast or not known or length - begin > GRAPH_TOKENS:
        return _forward(encoder, *tokens)
    return recorded(encoder, device, length - begin, lambda new: _forward(encoder, *new), tokens)


def recorded(
    network: nn.Module,
    device: torch.device,
    length: int,
    work: Callable[[tuple[Any, ...]], Any],
    given: tuple[Any, ...],
) -> Any:
    """`work(given)`, on a GPU from a CUDA graph that is kept for the network and `length` tokens."""
    graphs = _graphs(network, device)
    if graphs is None:
        return work(given)
    # Replays read weights where they lay, so these addresses are a part of what a graph is for.
    key = (length, tuple(weight.data_ptr() for weight in network.parameters()))
    # Recorded at once, for a text that is remembered comes only once; all results are those of the graph.
    times = 1 if key in graphs.recorded or key in graphs.refused else 2
    return [graphs.run(key, lambda new, _: work(new), given, (), graphs.owner) for _ in range(times)][-1]


def _kind(encoder: Any) -> str:
    return encoder.config.model_type


def _forward(encoder: Any, ids: Tensor, positions: Tensor, masks: dict[str, Tensor] | Tensor) -> Tensor:
    # The inner model: the outer one would also compute logits over the whole vocabulary for every position.
    result = encoder.model(
        input_ids=ids,
        attention_mask=masks,
        position_ids=positions,
        output_hidden_states=True,
        use_cache=False,
    )
    return torch.stack(result.hidden_states, dim=-1)


def _masks(encoder: Any, valid: Tensor, device: torch.device) -> dict[str, Tensor]:
    """What may attend to what, [1, 1, s, s] by kind of layer: a token to itself and to those before it, no padding.

    Made here, since the encoder would look into `valid` to choose its kind of mask, and a graph cannot wait for that.
    """
    rows = torch.arange(valid.shape[1])[:, None]
    behind = rows - rows.T
    # Padding attends to itself alone: a row of nothing would be a division by nothing.
    full = (behind >= 0) & valid.bool() | (behind == 0)
    window = encoder.config.get_text_config().sliding_window or valid.shape[1]
    kinds = {"full_attention": full, "sliding_attention": full & (behind < window)}
    return {kind: allowed[None, None].to(device) for kind, allowed in kinds.items()}


class _Text(Graphs):
    """The graphs of one network for texts, and who owns what they are given: nobody, for nothing of it stays the same."""

    def __init__(self, device: torch.device | str = "cuda") -> None:
        super().__init__(CudaRecorder(device), limit=GRAPH_TOKENS // GPU_GROUP)
        self.owner = _Nobody()


class _Nobody:
    def forget(self) -> None:
        """There is nothing to forget."""


def _graphs(network: nn.Module, device: torch.device) -> _Text | None:
    """They live on the network, and are dropped by `fast.forget` before its weights go elsewhere."""
    if device.type != "cuda":
        return None
    return network.__dict__.setdefault(_TWIN, _Text(device))
