"""Decoded frames on their way to the encoder."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ltx2.models.small import small
from ltx2.pipeline import decode
from ltx2.pipeline.decode import audible, decode_audio, decode_video, to_host
from ltx2.spec.errors import InvalidOutput


def test_more_chunks_are_asked_for_before_one_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU that is played: what leaves it only says when it was begun, and when it had to have arrived."""
    told: list[str] = []

    class Leaving:
        def __init__(self, chunk: Any):
            self.number = chunk.number

        @classmethod
        def begin(cls, chunk: Any) -> Leaving:
            told.append(f"begin {chunk.number}")
            return cls(chunk)

        def arrived(self) -> int:
            told.append(f"arrived {self.number}")
            return self.number

    monkeypatch.setattr(decode, "_Leaving", Leaving)
    chunks = (SimpleNamespace(number=number, device=torch.device("cuda", 0)) for number in range(4))
    assert list(to_host(chunks, ahead=2)) == [0, 1, 2, 3]  # pyright: ignore[reportArgumentType]
    first, rest = ["begin 0", "begin 1", "begin 2", "arrived 0"], ["begin 3", "arrived 1", "arrived 2", "arrived 3"]
    assert told == first + rest


def test_on_a_cpu_no_chunk_waits_for_the_next_one() -> None:
    made: list[int] = []

    def chunks() -> Iterator[torch.Tensor]:
        for number in range(3):
            made.append(number)
            yield torch.full((2,), number)

    for number, chunk in enumerate(to_host(chunks())):
        assert chunk.tolist() == [number] * 2 and made == list(range(number + 1))


@pytest.mark.gpu
def test_chunks_arrive_whole_while_the_gpu_makes_the_next_ones() -> None:
    """Each is the last of much work on memory that is given away at once, so a copy that came early or late would show."""

    def chunks() -> Iterator[torch.Tensor]:
        for number in range(12):
            values = torch.zeros(16, 1 << 20, device="cuda")
            for _ in range(50):
                values = values + 1
            yield (values + number).to(torch.uint8)

    for number, chunk in enumerate(to_host(chunks())):
        assert chunk.is_pinned() and bool((chunk == 50 + number).all())


@pytest.mark.parametrize("part", ["vae", "vocoder"])
def test_a_value_that_is_not_finite_is_an_error(part: str) -> None:
    models = small("2.0")
    networks: dict[str, Any] = models.networks
    layer = networks["vae"].decoder.conv_out.conv if part == "vae" else networks["vocoder"].conv_out
    layer.bias.data.fill_(torch.nan)
    shape = models.card.shape
    with pytest.raises(InvalidOutput, match="picture" if part == "vae" else "sound"):
        if part == "vae":
            list(decode_video(models, torch.zeros(1, shape.latent_channels, 3, 2, 2)))
        else:
            audible(decode_audio(models, torch.zeros(1, 9, shape.audio_channels * shape.audio_bins)))
