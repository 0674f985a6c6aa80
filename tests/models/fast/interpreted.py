"""Run by test_kernels with TRITON_INTERPRET=1: a whole evaluation and a whole decode with the Triton kernels."""

from __future__ import annotations

import torch
from torch.nn import functional

from ltx2.models.fast import Stage, Twin
from ltx2.models.fast.decoder import decode
from ltx2.models.fast.kernels import TRITON
from ltx2.models.fast.ops import PLAIN
from ltx2.models.small import small
from ltx2.models.velocity import velocities
from tests.data_files import largest_difference
from tests.models.fast.test_forward import WEAK, _random_streams, _small


@torch.inference_mode()
def main() -> None:
    for version, levels in (("2.0", False), ("2.3", True)):
        transformer = _small(version)
        video, audio = _random_streams(transformer, 2, levels)
        ours = Stage(Twin(transformer, TRITON))(video, audio, WEAK["all"])
        slow = velocities(transformer, video, audio, WEAK["all"])
        worst = max(
            largest_difference(a, b) for one, two in zip(ours, slow, strict=True) for a, b in zip(one, two, strict=True)
        )
        print(f"{version} {worst:.2e}", flush=True)
        lossy = [Stage(Twin(transformer, ops, fp8_from=1))(video, audio)[0][0] for ops in (TRITON, PLAIN)]
        # The interpreter forgets some carries of e4m3, which halves those values.
        distance = 1 - functional.cosine_similarity(*(one.flatten() for one in lossy), dim=0)
        print(f"lossy {version} {float(distance):.2e}", flush=True)
    vae = small("2.0").networks["vae"]
    latent = torch.randn(1, vae.config.latent_channels, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = vae.decode(latent, return_dict=False)[0]
    for piece in (None, 1):
        ours = torch.cat([*decode(vae, latent, TRITON, piece)], 2)
        print(f"decode {largest_difference(ours, expected) / float(expected.abs().max()):.2e}")


if __name__ == "__main__":
    main()
