"""RGB to planes: the formula of BT.709, what swscale makes of the same pictures, and the same on every device."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from ltx2.pipeline.colour import yuv420

COLOURS = {
    "black": ((0, 0, 0), (16, 128, 128)),
    "white": ((255, 255, 255), (235, 128, 128)),
    "red": ((255, 0, 0), (63, 102, 240)),
    "green": ((0, 255, 0), (173, 42, 26)),
    "blue": ((0, 0, 255), (32, 240, 118)),
}


def _pictures() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(96), indexing="ij")
    waves = torch.stack([(127 + 100 * torch.sin((columns + shift * rows) / 9)) for shift in range(3)], -1)
    # Hard edges, of which one lies between two rows of colour and one runs along the edge of the picture.
    boxes = torch.zeros(64, 96, 3)
    boxes[13:37, 20:51, 0], boxes[-1:, :, 1], boxes[:, :1, 2] = 255, 255, 255
    noise = torch.randint(0, 256, (3, 64, 96, 3), generator=random)
    return {name: value.to(torch.uint8).reshape(-1, 64, 96, 3) for name, value in
            (("waves", waves), ("boxes", boxes), ("noise", noise))}  # fmt: skip


def _swscale(picture: Tensor) -> np.ndarray:
    frame = av.VideoFrame.from_ndarray(picture.contiguous().numpy(), format="rgb24")
    return frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG").to_ndarray()


@pytest.mark.parametrize("name", COLOURS)
def test_colours_of_the_standard(name: str) -> None:
    rgb, expected = COLOURS[name]
    planes = yuv420(torch.tensor(rgb, dtype=torch.uint8).expand(2, 8, 16, 3))[1]
    parts = planes[:8], planes[8:10], planes[10:]
    assert [part.unique().tolist() for part in parts] == [[value] for value in expected]


@pytest.mark.parametrize("name", ["waves", "boxes", "noise"])
def test_the_planes_are_those_of_swscale_within_one_level(name: str) -> None:
    frames = _pictures()[name]
    planes = yuv420(frames).numpy().astype(int)
    expected = np.stack([_swscale(picture) for picture in frames]).astype(int)
    assert planes.shape == expected.shape == (len(frames), 96, 96)
    assert np.abs(planes - expected).max() <= 1
    assert abs((planes - expected).mean()) < 0.05, "no shift of brightness or colour"


def test_luma_is_rounded_once() -> None:
    frames = _pictures()["noise"]
    exact = 16 + 219 / 255 * (frames.double() @ torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64))
    assert (yuv420(frames)[:, :64] - exact).abs().max() <= 0.502


def test_chunks_and_the_order_in_memory_change_nothing() -> None:
    frames = _pictures()["noise"]
    whole = yuv420(frames)
    assert torch.equal(torch.cat([yuv420(one) for one in frames.split(1)]), whole)
    planar = frames.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    assert not planar.is_contiguous() and torch.equal(yuv420(planar), whole)


@pytest.mark.gpu
def test_a_gpu_makes_the_same_planes() -> None:
    for frames in _pictures().values():
        assert torch.equal(yuv420(frames.cuda()).cpu(), yuv420(frames))
