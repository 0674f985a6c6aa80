"""From latents to frames and sound."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ltx2.models.fast import decoding
from ltx2.pipeline.latents import audio_from_tokens
from ltx2.spec.errors import InvalidOutput
from ltx2.spec.geometry import TEMPORAL

if TYPE_CHECKING:
    from ltx2.models.components import Models

CHUNK = 16
TILE, OVERLAP = 10, 3


@torch.inference_mode()
def decode_video(models: Models, latent: Tensor, tiled: bool = False) -> Generator[Tensor, None, None]:
    """Frames of a normalised latent [1, C, F, H, W] as chunks of uint8 [f, H, W, 3] on its device, in order.

    The fast path decodes piece by piece, exactly. The plain one decodes all at once, or, `tiled`, 10 latent frames at a
    time with 3 frames of blended overlap: less memory, about 50 dB from the untiled picture. Raises InvalidOutput after
    the last chunk when a value was not finite: asking earlier would make a GPU wait for the host at every piece.
    """
    with models.use("vae") as vae:
        mean, std = vae.latents_mean.view(1, -1, 1, 1, 1), vae.latents_std.view(1, -1, 1, 1, 1)
        raw = (latent.float() * std.float() + mean.float()).to(vae.dtype)
        pieces = decoding(vae, raw) if models.fast else None
        if pieces is None:
            pieces = _tiles(vae, raw) if tiled else iter([_plainly(vae, raw)])
        finite = torch.ones((), dtype=torch.bool, device=raw.device)
        for pixels in pieces:
            finite &= torch.isfinite(pixels.sum())
            for piece in pixels[0].split(CHUNK, dim=1):
                yield _to_bytes(piece).permute(1, 2, 3, 0)
        if not finite:
            raise InvalidOutput("the decoded picture has values that are not finite")


def _to_bytes(piece: Tensor) -> Tensor:
    return piece.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def _plainly(vae: Any, raw: Tensor) -> Tensor:
    return vae.decode(raw, return_dict=False)[0]


def _tiles(vae: Any, raw: Tensor) -> Iterator[Tensor]:
    """Decode in time: consecutive tiles overlap, and the overlap is a linear cross-fade."""
    total = raw.shape[2]
    begin, tail = 0, None
    while True:
        end = min(begin + TILE, total)
        pixels = _plainly(vae, raw[:, :, begin:end])
        # A later tile's first latent frame decodes to one frame only; the frames before it come from the tile before.
        if tail is not None:
            count = tail.shape[2]
            ramp = torch.linspace(0, 1, count + 2, device=pixels.device, dtype=pixels.dtype)[1:-1].view(1, 1, -1, 1, 1)
            blended = tail * (1 - ramp) + pixels[:, :, 1 : 1 + count] * ramp
            pixels = torch.cat([blended, pixels[:, :, 1 + count :]], dim=2)
        if end == total:
            yield pixels
            return
        held = (OVERLAP - 1) * TEMPORAL
        yield pixels[:, :, :-held]
        tail = pixels[:, :, -held:]
        begin = end - OVERLAP


@torch.inference_mode()
def decode_audio(models: Models, tokens: Tensor) -> Tensor:
    """Waveform [2, S] float32 on its device, as the vocoder gives it (see `audible`), from normalised audio tokens
    [1, T, C*bins]. Its sampling rate is the card's `output_sampling_rate`."""
    with models.use("audio_vae") as audio_vae:
        mean, std = audio_vae.latents_mean.float(), audio_vae.latents_std.float()
        raw = (tokens.float() * std + mean).to(audio_vae.dtype)
        mel = audio_vae.decode(audio_from_tokens(raw, models.card.shape.audio_channels), return_dict=False)[0]
    with models.use("vocoder") as vocoder:
        return vocoder(mel.to(vocoder.dtype))[0].float()


def audible(waveform: Tensor) -> Tensor:
    """The waveform in -1..1. Raises InvalidOutput when a value is not finite; so it is meant for one that is on the CPU."""
    if not torch.isfinite(waveform).all():
        raise InvalidOutput("the decoded sound has values that are not finite")
    return waveform.clamp(-1, 1)
