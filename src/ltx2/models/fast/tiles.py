"""Which tiles of a product keep all multiprocessors at work.

A product [tokens, inputs] x [inputs, features] is made tile by tile, one for every multiprocessor at a time: a round. What
the last round leaves empty is lost: of products of 4,096 features 3 to 7 % with the tiles that cuBLAS takes from 4,992 tokens
on, a fifth and more at 1,248. Hopper's tiles may have any multiple of 8 tokens: with 256x152 the products of 2 x 4,992 tokens
are whole rounds of 132.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from operator import itemgetter

FEATURES = (128, 192, 256)
TOKENS = range(96, 337, 8)
# Smaller ones read their inputs too often, larger ones do not fit into the registers.
AREA = range(16_384, 43_009)
# What a tile's inputs cost beside its sums. On an H200 at its power limit full rounds of 256x152 ran at 708 TFLOP/s, of
# 128x192 at 671 and of 128x144 at 639 to 688: 3 to 5 % for every 0.004 of 1 / features + 1 / tokens.
_READING = 10.0


@dataclass(frozen=True)
class Tile:
    """What one multiprocessor makes at a time; two neighbours share the longer of their inputs."""

    features: int
    tokens: int

    @property
    def cluster(self) -> tuple[int, int]:
        """Neighbours along features and along tokens."""
        return (1, 2) if self.features > self.tokens else (2, 1)

    def filled(self, tokens: int, features: int, processors: int) -> float:
        """The share of all rounds over the multiprocessors that is part of the product, 0 to 1."""
        pairs = ceil(features / self.features / self.cluster[0]) * ceil(tokens / self.tokens / self.cluster[1])
        rounds = ceil(2 * pairs / processors)
        return tokens * features / (rounds * processors * self.features * self.tokens)

    def worth(self, tokens: int, features: int, processors: int) -> float:
        """What orders tiles for a product: how full its rounds are, less what they read."""
        return self.filled(tokens, features, processors) - _READING * (1 / self.features + 1 / self.tokens)


def better(tokens: int, features: int, processors: int, than: float) -> Iterator[Tile]:
    """Tiles of more `worth` than this, the best first."""
    found = [
        (tile.worth(tokens, features, processors), tile)
        for tile in (Tile(wide, long) for wide in FEATURES for long in TOKENS if wide * long in AREA)
    ]
    for worth, tile in sorted(found, key=itemgetter(0), reverse=True):
        if worth <= than:
            return
        yield tile
