"""A given first frame: read, cut to size, made to look like the training data, encoded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ltx2.pipeline.latents import tokens_from_video
from ltx2.spec.errors import RefusedRequest

if TYPE_CHECKING:
    from ltx2.models.components import Models

MAX_PIXELS = 100_000_000
MIN_SIDE = 16


def open_image(path: str | Path) -> Image.Image:
    """Read an image as RGB, upright. Raises RefusedRequest for a missing, unreadable or absurd file.

    Its words go to clients of a service, too, so they tell the file's name and not its folder.
    """
    name = Path(path).name
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS or min(image.size) < MIN_SIDE:
                raise RefusedRequest(
                    f"image: {image.width}x{image.height} pixels cannot be a first frame",
                    knob="image", hint=f"sides from {MIN_SIDE} pixels, at most {MAX_PIXELS // 1_000_000} megapixels",
                )  # fmt: skip
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise RefusedRequest(f"image: there is no file {name}", knob="image") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        why = (
            "no known format"
            if isinstance(error, UnidentifiedImageError)
            else getattr(error, "strerror", None) or error
        )
        raise RefusedRequest(f"image: {name} cannot be read as an image ({why})", knob="image") from None


@torch.inference_mode()
def first_frame(models: Models, path: str, size: tuple[int, int], crf: int | None) -> Tensor:
    """Normalised latent tokens [1, h*w, C] of an image, resized to cover `size` = (width, height) and centre-cropped.

    With `crf` it is encoded and decoded once as a one-frame H.264 video, to look like the training data.
    """
    image = ImageOps.fit(open_image(path), size, Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    if crf is not None:
        pixels = _recompress(pixels, crf)
    with models.use("vae") as vae:
        frame = torch.from_numpy(pixels.copy()).to(vae.device).float().div(127.5).sub(1)
        frame = frame.permute(2, 0, 1)[None, :, None].to(vae.dtype)
        latent = vae.encode(frame).latent_dist.mode()
        latent = (latent - vae.latents_mean.view(1, -1, 1, 1, 1)) / vae.latents_std.view(1, -1, 1, 1, 1)
    return tokens_from_video(latent)


def _recompress(pixels: np.ndarray, crf: int) -> np.ndarray:
    """One RGB frame [H, W, 3] uint8 through H.264 at the given constant rate factor and back."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=1, options={"crf": str(crf), "preset": "veryfast"})
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer, "r") as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")
