"""The log-mel spectrogram that the audio VAE encodes and the vocoder turns back into sound.

16 kHz, window and FFT of 1024 samples (Hann, centred, reflected at the ends), hop 160, magnitudes (not powers) through
a Slaney filter bank of unit area from 0 to 8 kHz, natural logarithm of the value clamped at 1e-5. Frame k is centred on
sample 160 k; the vocoder's block k of output samples begins there.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from training.networks import MEL_BINS, MEL_RATE

WINDOW = 1024
HOP = 160
FLOOR = 1e-5


def log_mel(waves: Tensor) -> Tensor:
    """Waveforms [N, 2, S] at 16 kHz -> log-mel [N, 2, 1 + S // 160, bins], float32, the layout of the audio VAE."""
    flat = waves.float().flatten(0, 1)
    window = torch.hann_window(WINDOW, device=waves.device)
    spectrum = torch.stft(flat, WINDOW, HOP, window=window, center=True, pad_mode="reflect", return_complex=True).abs()
    mel = spectrum.transpose(1, 2) @ filters(MEL_BINS).to(waves.device)
    return mel.clamp(min=FLOOR).log().unflatten(0, waves.shape[:2])


@cache
def filters(bins: int) -> Tensor:
    """Slaney's triangular mel filters: [WINDOW // 2 + 1, bins], each of unit area over Hz."""
    top = _mel(MEL_RATE / 2)
    edges = torch.tensor([_hertz(top * i / (bins + 1)) for i in range(bins + 2)], dtype=torch.float64)
    frequencies = torch.linspace(0, MEL_RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return (torch.minimum(rising, falling).clamp(min=0) * 2 / (edges[2:] - edges[:-2])).float()


def _mel(hertz: float) -> float:
    """Slaney's scale: linear below 1 kHz (200/3 Hz per mel), logarithmic above (27 mels per factor 6.4)."""
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def _hertz(mel: float) -> float:
    return 200 * mel / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)
