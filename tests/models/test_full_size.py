"""The full-size transformer on a GPU: memory of a forward, no autograd, finite values. Needs about 40 GiB."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from ltx2.models.describe import Source, folder_configs, locate
from ltx2.models.randoms import fill_randomly
from ltx2.models.velocity import Stream, velocity
from ltx2.models.weights import build
from ltx2.pipeline.latents import audio_positions, video_positions
from ltx2.spec.geometry import grid

pytestmark = pytest.mark.gpu
GIB = 2**30


@pytest.mark.parametrize("model", ["ltx-2", "ltx-2.3"])
def test_a_forward_at_768x512x97_peaks_under_37_gib(model: str) -> None:
    device = torch.device("cuda")
    config = folder_configs(locate(Source(model, "random")).path)["transformer"]
    transformer = fill_randomly(build("transformer", config), dtype=torch.bfloat16, device=device, seed=0)
    cells = grid(768, 512, 97, Fraction(24))
    places = (video_positions(cells.video, 24, device), audio_positions(cells.audio, device))
    widths = (3840, 3840) if model == "ltx-2" else (4096, 2048)
    streams = [
        Stream(
            torch.randn(1, place.shape[2], 128, device=device, dtype=torch.bfloat16),
            torch.ones(1, 1, device=device),  # as the loop passes it where no token is given
            torch.ones(1, device=device),
            place,
            torch.randn(1, 1024, width, device=device, dtype=torch.bfloat16),
        )
        for place, width in zip(places, widths, strict=True)
    ]
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        with torch.inference_mode():
            results = velocity(transformer, *streams)
    assert all(torch.isfinite(result).all() and result.grad_fn is None for result in results)
    peak = torch.cuda.max_memory_allocated() / GIB
    print(f"{model}: peak {peak:.1f} GiB")
    assert peak < 37
