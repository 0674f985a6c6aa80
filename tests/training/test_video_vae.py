"""What the video VAE is taught with, and that other shapes than the compiled one run eagerly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from training import video_vae
from training.loop import Run, uncompile
from training.world import HARD


def test_half_of_the_clips_move_hard():
    scenes = video_vae.draw_scenes(16, seed=3, hard=True)
    assert len(scenes) == 16
    assert [scene.motion in HARD for scene in scenes[:8]] == [True] * 8
    assert not all(scene.motion in HARD for scene in scenes[8:])


def test_every_third_lesson_is_small_and_clips_grow(tmp_path: Path):
    run = Run(tmp_path, seconds=1.0)
    assert [video_vae.lesson(run, step, 0.5).size for step in range(6)] == ["large", "large", "small"] * 2
    assert [video_vae.lesson(run, 0, share).frames for share in (0.0, 0.1, 0.5, 0.9)] == [1, 9, 25, 49]
    assert video_vae.lesson(run, 2, 0.5).clips == 4 * video_vae.lesson(run, 0, 0.5).clips


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.parametrize(("frames", "compiled"), [(25, True), (49, False)])
def test_only_the_compiled_shape_runs_compiled(tmp_path: Path, frames: int, compiled: bool):
    layer, seen = Double(), list[str]()

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]):
        seen.append("compiled")
        return graph.forward

    layer.compile(backend=backend)
    video = torch.zeros(1).expand(16, 3, frames, 192, 256)
    with video_vae._as_compiled(Run(tmp_path, seconds=1.0), video):  # pyright: ignore[reportPrivateUsage]
        layer(torch.zeros(1, 1))
    assert bool(seen) == compiled
    uncompile([layer])
    layer(torch.zeros(2, 1))
    assert len(seen) == int(compiled)
