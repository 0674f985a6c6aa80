"""Sigma schedules as pure arithmetic, in float64, without torch.

`official` shifts with a constant mu of 2.05 (the value at 4096 tokens), as the official one- and two-stage pipelines
do; with a token count it shifts as their `hq` pipeline does. `diffusers` takes mu from the real token count of every
stage. Both stretch the list so that its last non-zero sigma is 0.1.
"""

from __future__ import annotations

import math

BASE_TOKENS, BASE_MU = 1024, 0.95
MAX_TOKENS, MAX_MU = 4096, 2.05
TERMINAL = 0.1


def shifted_sigmas(steps: int, tokens: int = MAX_TOKENS) -> tuple[float, ...]:
    """`steps` + 1 sigmas from 1 down to 0, exponentially shifted by mu(tokens) and stretched to the terminal 0.1.

    A single step is [1, 0]: there is nothing to stretch between.
    """
    if steps == 1:
        return (1.0, 0.0)
    mu = BASE_MU + (MAX_MU - BASE_MU) * (tokens - BASE_TOKENS) / (MAX_TOKENS - BASE_TOKENS)
    shift = math.exp(mu)
    plain = [1 - step / steps for step in range(steps)]
    curved = [shift / (shift + 1 / sigma - 1) for sigma in plain]
    stretch = (1 - curved[-1]) / (1 - TERMINAL)
    return (*(1 - (1 - sigma) / stretch for sigma in curved), 0.0)
