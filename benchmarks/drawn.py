"""Networks with random weights of realistic scale, and the forms that weights are held in, for `weights.py`.

`values` are its command line's: `model`, and `layers` and `width` where they are to be fewer than the published ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ltx2.models.describe import HERE, folder_configs
from ltx2.models.holding import Hold, layers, quantise_network
from ltx2.models.precision import E4M3_MAX, FP8, Fp8Linear, dequantise, fp8_linears
from ltx2.models.randoms import fill_randomly
from ltx2.models.velocity import Stream, velocity
from ltx2.models.weights import build

DTYPE = torch.bfloat16
TEXT_TOKENS = 1024
# Weights of realistic scale: Student's t with 5 degrees of freedom gives a linear of 4096 x 4096 a largest magnitude of
# 0.6, as the published example of a weight_scale does (0.0013 * 448), and one input channel of 512 is 8 times as large.
FREEDOM, SPIKE_EVERY, SPIKE = 5, 512, 8.0


def transformer(device: torch.device, values: argparse.Namespace, drawn: str = "normal") -> nn.Module:
    """A random one of the published shape; `heavy` ones have weights of realistic scale."""
    config = folder_configs(HERE / "configs" / values.model)["transformer"]
    config["num_layers"] = values.layers or config["num_layers"]
    if values.width:
        heads = config["num_attention_heads"]
        config |= {"attention_head_dim": values.width // heads, "cross_attention_dim": values.width}
        config |= {"audio_attention_head_dim": values.width // heads // 2}
        config |= {"audio_cross_attention_dim": values.width // 2}
    network = fill_randomly(build("transformer", config), dtype=DTYPE, device=device, seed=0)
    if drawn == "heavy":
        _make_heavy(network, torch.Generator(device).manual_seed(3))
    return network


def _make_heavy(network: nn.Module, generator: torch.Generator) -> None:
    """Redraw the blocks' linears with heavy tails and a few large input channels; the deviation stays as it was."""
    for name, module in network.named_modules():
        if not (isinstance(module, nn.Linear) and name.startswith("transformer_blocks.")):
            continue
        weight = module.weight
        spread = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for _ in range(FREEDOM):
            spread += torch.empty_like(spread).normal_(generator=generator).square_()
        value = torch.empty_like(spread).normal_(generator=generator).mul_(spread.div_(FREEDOM).rsqrt_())
        value *= (weight.shape[1] * FREEDOM / (FREEDOM - 2)) ** -0.5
        value[:, ::SPIKE_EVERY] *= SPIKE
        weight.copy_(value)


def text_encoder(device: torch.device, values: argparse.Namespace, hold: Hold) -> tuple[Any, int]:
    """Gemma 3 12B with seeded random weights in the form `hold`, and how many linears that changed."""
    config = folder_configs(HERE / "configs" / "ltx-2")["text_encoder"]
    if values.layers:
        config["text_config"]["num_hidden_layers"] = values.layers
        config["text_config"].pop("layer_types", None)
    if values.width:
        config["text_config"] |= {
            "hidden_size": values.width,
            "intermediate_size": 4 * values.width,
            "vocab_size": 2048,
        }
        config["image_token_index"] = 2047
        config["vision_config"]["num_hidden_layers"] = 1
    encoder = fill_randomly(build("text_encoder", config), dtype=DTYPE, device=device, seed=0)
    count = len(layers(encoder, hold))
    quantise_network(encoder, hold)
    return encoder, count


def encode(encoder: Any, device: torch.device) -> Tensor:
    """All hidden states of the real half of a padded prompt, [T, D, layers + 1]."""
    ids = torch.randint(10, 1000, (1, TEXT_TOKENS), generator=torch.Generator().manual_seed(0)).to(device)
    mask = torch.ones_like(ids)
    mask[:, : TEXT_TOKENS // 2] = 0
    found = encoder.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    return torch.stack(found, dim=-1)[mask.bool()]


def calibrate(network: nn.Module, inputs: tuple[Stream, Stream]) -> None:
    """Put static fp8 layers in the place of linears; the largest activation of these inputs becomes 448."""
    largest: dict[str, Tensor] = {}
    names = layers(network, "fp8")

    def watch(name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
            largest[name] = given[0].float().abs().max()

        return keep

    handles = [network.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    velocity(network, *inputs)
    for handle in handles:
        handle.remove()
    for name in names:
        linear: Any = network.get_submodule(name)
        scale = linear.weight.float().abs().max() / E4M3_MAX
        held = (linear.weight.float() / scale).to(FP8)
        rows = scale.expand(held.shape[0]).contiguous()
        network.set_submodule(name, Fp8Linear(held, rows, linear.bias, largest[name] / E4M3_MAX))


def dequantise_network(network: nn.Module) -> None:
    """Put linears with the weights that the fp8 ones stand for in their place."""
    for name, layer in list(fp8_linears(network)):
        linear: Any = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        linear.weight = nn.Parameter(dequantise(layer.weight, layer.scale, DTYPE), requires_grad=False)
        linear.bias = layer.bias
        network.set_submodule(name, linear)
