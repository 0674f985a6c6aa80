"""Tiles by how they fill the rounds of a product."""

from __future__ import annotations

from itertools import islice

import pytest

from ltx2.models.fast.tiles import ALONE, AREA, Product, Tile, better


def _product(tokens: int, features: int, inputs: int = 4096, processors: int = 132) -> Product:
    return Product(tokens, inputs, features, processors)


@pytest.mark.parametrize(
    ("tile", "tokens", "features", "rounds"),
    # Counted by hand: 16 x 66 tiles are eight rounds; 22 x 52 and 16 x 78 nine and ten; 22 x 6 one.
    [
        (Tile(256, 152), 9984, 4096, 8), (Tile(192, 192), 9984, 4096, 9), (Tile(256, 128), 9984, 4096, 10),
        (Tile(192, 208), 1248, 4096, 1),
    ],
)  # fmt: skip
def test_rounds_are_counted(tile: Tile, tokens: int, features: int, rounds: int) -> None:
    share = tokens * features / (rounds * 132 * tile.features * tile.tokens)
    assert tile.filled(_product(tokens, features)) == pytest.approx(share)


def test_pairs_are_whole() -> None:
    # Three tiles of tokens are two pairs, so four.
    assert Tile(256, 128).filled(_product(3 * 128, 256, processors=4)) == pytest.approx(3 / 4)
    assert Tile(128, 128).filled(_product(3 * 128, 256, processors=6)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("product", "tile"),
    [
        # Whole rounds; of few inputs, tiles that need not wait for being stored, of many those that read less.
        (_product(9984, 4096), Tile(128, 152, together=False)), (_product(9984, 4096, 16_384), Tile(256, 152)),
        (_product(1248, 4096), Tile(192, 104, together=False)), (_product(1248, 4096, 16_384), Tile(192, 208)),
    ],
)  # fmt: skip
def test_the_best_tile(product: Product, tile: Tile) -> None:
    assert next(better(product, 0)) == tile


@pytest.mark.parametrize("product", [_product(1248, 2048), _product(24576, 16384), _product(7, 128)])
def test_better_tiles_come_in_order_and_are_better(product: Product) -> None:
    own = Tile(192, 192).worth(product)
    found = list(better(product, own))
    worths = [tile.worth(product) for tile in found]
    assert worths == sorted(worths, reverse=True) and all(worth > own for worth in worths)
    assert all(tile.features * tile.tokens in AREA for tile in islice(better(product, -9), 100))
    assert all(tile.together or tile.features * tile.tokens <= ALONE for tile in better(product, -9))


def test_nothing_is_better_than_the_best() -> None:
    product = _product(9984, 4096, 16_384)
    assert not list(better(product, Tile(256, 152).worth(product)))
