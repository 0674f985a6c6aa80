"""Random weights of any published config at full size, made in place on the device: for benchmarks and memory tests.

Speed and memory do not depend on what the weights are, so the full-size path can be measured without any download.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltx2.models.lora import Lora
from ltx2.models.precision import Fp8Linear
from ltx2.models.weights import assign, cast, tied


def fill_randomly(network: nn.Module, *, dtype: torch.dtype, device: torch.device, seed: int) -> nn.Module:
    """Fill a network built on meta with seeded random values of realistic scale, directly on the device.

    Matrices and kernels get a standard deviation of 1/sqrt(fan in), norms one, biases and tables stay small, so
    outputs are finite in bfloat16. The same seed, device and torch give the same weights.
    """
    generator = torch.Generator(device).manual_seed(seed)
    buffers = {name for name, _ in network.named_buffers()}
    zero_norms = _zero_centred_norms(network)
    state: dict[str, Tensor] = {}
    shared = tied(network)
    for name, tensor in network.state_dict().items():
        if name in shared:
            continue
        if name in buffers and not _is_basis(name):
            state[name] = cast(name, tensor.to(device), dtype)
            continue
        value = torch.empty(tensor.shape, dtype=dtype, device=device)
        if name in zero_norms:
            state[name] = value.zero_()
        else:
            state[name] = _draw(name, value, generator)
    return assign(network, state, device)


def draw_lora(transformer: nn.Module, *, device: torch.device, rank: int = 384, seed: int = 0) -> Lora:
    """A LoRA for every linear of the transformer, of the published rank: min(rank, in, out) for each layer.

    Its additions are a few percent of the layers' outputs, so that values stay finite.
    """
    generator = torch.Generator(device).manual_seed(seed)
    layers: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear | Fp8Linear):
            into, out = module.in_features, module.out_features
            low = min(rank, into, out)
            down = torch.empty(low, into, dtype=torch.bfloat16, device=device)
            up = torch.empty(out, low, dtype=torch.bfloat16, device=device)
            down.normal_(0.0, into**-0.5, generator=generator)
            layers[name] = (down, up.normal_(0.0, 0.03 * low**-0.5, generator=generator))
    return Lora("random", {"transformer": layers}, {})


def _draw(name: str, value: Tensor, generator: torch.Generator) -> Tensor:
    leaf = name.rpartition(".")[2]
    if leaf == "learnable_registers":
        return value.normal_(0.0, 1.0, generator=generator)
    if "scale_shift_table" in leaf or "pos_embedding" in leaf:
        return value.normal_(0.0, 0.02, generator=generator)
    if value.ndim >= 2:
        return value.normal_(0.0, (value[0].numel()) ** -0.5, generator=generator)
    return value.fill_(1.0) if leaf == "weight" else value.zero_()


def _is_basis(name: str) -> bool:
    """Diffusers leaves the vocoder's STFT and mel matrices at zero until a checkpoint brings them."""
    return name.endswith("_basis")


def _zero_centred_norms(network: nn.Module) -> set[str]:
    """Gemma's norms multiply by 1 + weight: their neutral weight is zero."""
    return {f"{name}.weight" for name, module in network.named_modules() if type(module).__name__ == "Gemma3RMSNorm"}
