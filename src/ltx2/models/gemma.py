"""The tensors of the text encoders in one spelling, for each of the spellings in which they are published.

Gemma 3 (LTX-2 and 2.3): hub files predate transformers 4.50, and 5.x moved the vision tower. Gemma 4 (2.5): the hub's
spelling, transformers' own, and that of the official single file, whose parts for pictures and sound are named otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable

# Beginnings of names, longer ones first; only Gemma 4 has them.
_PARTS = (
    ("embed_vision.multimodal_embedder.", "picture_projection."),
    ("embed_vision.embedding_projection.", "picture_projection.embedding_projection."),
    ("multi_modal_projector.embedding_projection.", "picture_projection.embedding_projection."),
    ("embed_vision.", "picture."),
    ("vision_embedder.", "picture."),
    ("vision_model.", "picture."),
    ("audio_projector.", "sound_projection."),
    ("embed_audio.", "sound_projection."),
)


def gemma_name(name: str) -> str:
    """A tensor's name in the common spelling of its Gemma."""
    name = name.replace("language_model.model.", "language_model.").removeprefix("model.")
    name = name.removeprefix("language_model.")
    for start, short in _PARTS:
        if name.startswith(start):
            return short + name.removeprefix(start)
    return name.replace("vision_model.", "")


def own_names(network_names: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """For every name of a file that of the network's tensor, or the name itself when the network has none such."""
    own = {gemma_name(name): name for name in network_names}
    return {name: own.get(gemma_name(name), name) for name in names}
