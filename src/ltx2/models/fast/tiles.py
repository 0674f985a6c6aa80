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

FEATURES = (128, 192, 256)
TOKENS = range(96, 337, 8)
# Smaller ones read their inputs too often, larger ones do not fit into the registers.
AREA = range(12_288, 43_009)
# The largest that a warpgroup can make by itself.
ALONE = 128 * 168
# What a tile's inputs cost beside its sums, for each of 1 / features and 1 / tokens.
_READING = 10.0
# What storing a tile costs where both warpgroups wait for it, in inputs.
_STORING = 400.0


@dataclass(frozen=True)
class Product:
    """The size of a product, and how many multiprocessors share it."""

    tokens: int
    inputs: int
    features: int
    processors: int


@dataclass(frozen=True)
class Tile:
    """What one multiprocessor makes at a time; two neighbours share the longer of their inputs.

    Its two warpgroups make one `together`, or each one of its own, and then one multiplies while the other stores.
    """

    features: int
    tokens: int
    together: bool = True

    @property
    def cluster(self) -> tuple[int, int]:
        """Neighbours along features and along tokens."""
        return (1, 2) if self.features > self.tokens else (2, 1)

    def filled(self, product: Product) -> float:
        """The share of all rounds over the multiprocessors that is part of the product, 0 to 1."""
        along = (product.features / self.features, product.tokens / self.tokens)
        pairs = ceil(along[0] / self.cluster[0]) * ceil(along[1] / self.cluster[1])
        return along[0] * along[1] / (ceil(2 * pairs / product.processors) * product.processors)

    def worth(self, product: Product) -> float:
        """What orders tiles for a product: how full its rounds are, less what they read and wait for."""
        waiting = _STORING / product.inputs if self.together else 0
        return self.filled(product) - _READING * (1 / self.features + 1 / self.tokens) - waiting


def better(product: Product, than: float) -> Iterator[Tile]:
    """Tiles of more `worth` than this, the best first."""
    sides = [(wide, long) for wide in FEATURES for long in TOKENS if wide * long in AREA]
    tiles = [Tile(*one) for one in sides] + [Tile(*one, False) for one in sides if one[0] * one[1] <= ALONE]
    for tile in sorted(tiles, key=lambda one: one.worth(product), reverse=True):
        if tile.worth(product) <= than:
            return
        yield tile
