"""Where a stage starts: noise, an earlier result, and a first frame that is given."""

from __future__ import annotations

import io
from dataclasses import dataclass
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


@dataclass(frozen=True)
class State:
    """One modality at the start of a stage: latent [B, T, C], denoise mask [B, T, 1] (1 = free) and clean [B, T, C]."""

    latent: Tensor
    mask: Tensor
    clean: Tensor

    def settle(self, latent: Tensor) -> Tensor:
        """Put the given part of the clean latent back: latent * mask + clean * (1 - mask)."""
        return (latent * self.mask + self.clean * (1 - self.mask)).to(latent.dtype)


def start(clean: Tensor, sigma: float, draw: Tensor, given: Tensor | None = None, strength: float = 1.0) -> State:
    """Noise `clean` [1, T, C] up to `sigma` with `draw` of the same shape.

    `given` [1, G, C] replaces the first G tokens and is held with `strength` (1 keeps them exactly as they are).
    """
    mask = torch.ones(*clean.shape[:2], 1, device=clean.device)
    if given is not None:
        count = given.shape[1]
        clean = torch.cat([given.to(clean), clean[:, count:]], dim=1)
        mask[:, :count] = 1 - strength
    share = mask * sigma
    latent = (draw.float() * share + clean.float() * (1 - share)).to(clean.dtype)
    return State(latent, mask, clean)


def open_image(path: str | Path) -> Image.Image:
    """Read an image as RGB, upright. Raises RefusedRequest for a missing, unreadable or absurd file."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS or min(image.size) < MIN_SIDE:
                raise RefusedRequest(
                    f"image: {image.width}x{image.height} pixels cannot be a first frame",
                    knob="image", hint=f"sides from {MIN_SIDE} pixels, at most {MAX_PIXELS // 1_000_000} megapixels",
                )  # fmt: skip
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise RefusedRequest(f"image: there is no file {path}", knob="image") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise RefusedRequest(f"image: {path} cannot be read as an image ({error})", knob="image") from None


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
    with av.open(buffer) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")
