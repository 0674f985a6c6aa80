"""The vocoder that was taught one ear and laid out twice."""

from __future__ import annotations

import torch

from training import vocoder
from training.networks import MEL_BINS


def test_both_ears_hear_what_one_ear_was_taught():
    torch.manual_seed(3)
    ear = vocoder.one_ear(None).eval()
    mel = 3 * torch.randn(2, 2, 20, MEL_BINS) - 6
    with torch.no_grad():
        alone = ear(mel.flatten(0, 1)[:, None])[:, 0].unflatten(0, (2, 2))
        both = vocoder.both_ears(ear).eval()(mel)
    assert torch.allclose(both, alone, atol=1e-6)
    assert (both[:, 0] - both[:, 1]).abs().max() > 1e-3


def test_training_goes_on_from_the_left_half():
    torch.manual_seed(4)
    ear = vocoder.one_ear(None).eval()
    again = vocoder.one_ear(vocoder.both_ears(ear)).eval()
    mel = 3 * torch.randn(2, 1, 20, MEL_BINS) - 6
    with torch.no_grad():
        assert torch.allclose(again(mel), ear(mel), atol=1e-6)
