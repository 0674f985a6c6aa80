"""Tiles by how they fill the rounds of a product."""

from __future__ import annotations

from itertools import islice

import pytest

from ltx2.models.fast.tiles import AREA, Tile, better

H200 = 132


@pytest.mark.parametrize(
    ("tile", "tokens", "features", "rounds"),
    # Counted by hand: 16 x 66 tiles are eight rounds; 22 x 52 and 16 x 78 nine and ten; 22 x 6 one.
    [
        (Tile(256, 152), 9984, 4096, 8), (Tile(192, 192), 9984, 4096, 9), (Tile(256, 128), 9984, 4096, 10),
        (Tile(192, 208), 1248, 4096, 1),
    ],
)  # fmt: skip
def test_rounds_are_counted(tile: Tile, tokens: int, features: int, rounds: int) -> None:
    share = tokens * features / (rounds * H200 * tile.features * tile.tokens)
    assert tile.filled(tokens, features, H200) == pytest.approx(share)


def test_pairs_are_whole() -> None:
    # Three tiles of tokens are two pairs, so four.
    assert Tile(256, 128).filled(3 * 128, 256, 4) == pytest.approx(3 / 4)
    assert Tile(128, 128).filled(3 * 128, 256, 6) == pytest.approx(1)


def test_the_best_tile_of_the_square_layers_of_two_rows() -> None:
    assert next(better(9984, 4096, H200, 0)) == Tile(256, 152)


@pytest.mark.parametrize(("tokens", "features"), [(1248, 2048), (4992, 4096), (24576, 16384), (7, 128)])
def test_better_tiles_come_in_order_and_are_better(tokens: int, features: int) -> None:
    size = (tokens, features, H200)
    own = Tile(192, 192).worth(*size)
    found = [tile.worth(*size) for tile in better(*size, own)]
    assert found == sorted(found, reverse=True)
    assert all(worth > own for worth in found)
    assert all(tile.features * tile.tokens in AREA for tile in islice(better(*size, -9), 100))


def test_nothing_is_better_than_the_best() -> None:
    size = (9984, 4096, H200)
    assert not list(better(*size, Tile(256, 152).worth(*size)))
