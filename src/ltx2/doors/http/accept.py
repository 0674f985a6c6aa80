"""Which form of a video a client wants, from its Accept header."""

from __future__ import annotations

# In the order in which they are chosen when a client likes several equally well.
OFFERED = {
    "video/mp4": "mp4",
    "video/webm": "webm",
    "image/gif": "gif",
    "image/webp": "webp",
    "audio/mp4": "audio",
    "application/json": "json",
}
# What clients write when they mean the file as it is.
PLAIN = ("application/binary", "application/octet-stream")
MAX_HEADER = 4096


def choose(header: str | None) -> str | None:
    """mp4, webm, gif, webp, audio or json; None when a client accepts none of them.

    The mp4 whenever it is acceptable at all: it is there, and browsers name everything that they know with `*/*` behind.
    """
    weights = _weights((header or "*/*")[:MAX_HEADER])
    liked = {name: _weight(kind, weights) for kind, name in OFFERED.items()}
    liked["mp4"] = max(liked["mp4"], *(weights.get(kind, 0.0) for kind in PLAIN))
    if liked["mp4"] > 0:
        return "mp4"
    best = max(liked, key=lambda name: liked[name])
    return best if liked[best] > 0 else None


def _weights(header: str) -> dict[str, float]:
    """Media ranges with their weights; a header without any is no wish at all."""
    found: dict[str, float] = {}
    for part in header.split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if kind.count("/") == 1 and " " not in kind:
            found[kind] = _quality(parameters)
    return found or {"*/*": 1.0}


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return min(1.0, max(0.0, float(value)))
            except ValueError:
                return 0.0
    return 1.0


def _weight(kind: str, weights: dict[str, float]) -> float:
    """The most specific range decides, as RFC 9110 has it."""
    for name in (kind, kind.partition("/")[0] + "/*", "*/*"):
        if name in weights:
            return weights[name]
    return 0.0
