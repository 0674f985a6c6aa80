"""What each way of holding weights costs: fp8 against bf16, LoRAs merged against added, the text encoder in fewer bits.

`python benchmarks/weights.py RESULTS.jsonl [fp8 lora text ...] [--device cuda] [--layers 48] [--model ltx-2]`

Full-size random weights; nothing is downloaded. Every line of the results is one measurement: seconds are medians of
`--repeats` runs after one that does not count, bytes are those of the device.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ltx2.doors.origin import origin
from ltx2.models.describe import HERE, folder_configs
from ltx2.models.holding import Hold, layers, quantise_network
from ltx2.models.lora import added, merged
from ltx2.models.precision import dequantise, fp8_linears
from ltx2.models.randoms import draw_lora, fill_randomly
from ltx2.models.velocity import Stream, velocity
from ltx2.models.weights import build
from ltx2.spec.geometry import grid

DTYPE = torch.bfloat16
TEXT_TOKENS = 1024
SIZE = (768, 512, 97)


def main(words: list[str]) -> None:
    """Run the named measurements, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("names", nargs="*", default=[*BENCHES])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", type=int, help="fewer layers, for small runs")
    parser.add_argument("--model", default="ltx-2", choices=("ltx-2", "ltx-2.3", "ltx-2.5"))
    parser.add_argument("--size", type=int, nargs=3, default=SIZE, metavar=("WIDTH", "HEIGHT", "FRAMES"))
    parser.add_argument("--repeats", type=int, default=5)
    values = parser.parse_args(words)
    for name in values.names:
        for report in BENCHES[name](values):
            line = {"bench": f"weights-{name}", "model": values.model, **origin(values.device), **report}
            with values.results.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


@torch.inference_mode()
def fp8(values: argparse.Namespace) -> list[dict[str, Any]]:
    """One forward in bf16, in fp8, and in bf16 with the weights that the fp8 ones stand for."""
    device = torch.device(values.device)
    network = transformer(values)
    video, audio = streams(network, values)
    reports = [{"form": "bf16", "held_bytes": held(network), **timed(lambda: velocity(network, video, audio), values)}]
    before = velocity(network, video, audio)
    begin = time.perf_counter()
    quantise_network(network, "fp8")
    settle(device)
    seconds = time.perf_counter() - begin
    fast = timed(lambda: velocity(network, video, audio), values)
    ours = velocity(network, video, audio)
    reports.append({"form": "fp8", "held_bytes": held(network), "quantise_seconds": seconds, **fast})
    for name, layer in list(fp8_linears(network)):
        linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        linear.weight = nn.Parameter(dequantise(layer.weight, layer.scale), requires_grad=False)
        linear.bias = layer.bias
        network.set_submodule(name, linear)
    theirs = velocity(network, video, audio)
    # Of the activations' rounding alone, and of both roundings together.
    for name, other in (("dequantised", theirs), ("bf16", before)):
        for side, one, truth in zip(("video", "audio"), ours, other, strict=True):
            reports[1] |= {f"cosine_{side}_to_{name}": cosine(one, truth), f"error_{side}_to_{name}": error(one, truth)}
    return reports


@torch.inference_mode()
def lora(values: argparse.Namespace) -> list[dict[str, Any]]:
    """The distilled LoRA's rank on every linear: switching on and off, one forward, and memory, for each way."""
    device = torch.device(values.device)
    network = transformer(values)
    video, audio = streams(network, values)
    drawn = draw_lora(network, device=device)
    plain = timed(lambda: velocity(network, video, audio), values)
    reports: list[dict[str, Any]] = [{"form": "none", **plain}]
    results: dict[str, tuple[Tensor, Tensor]] = {}
    for name, way in {"merged": merged, "added": added}.items():
        reset(device)
        on: list[float] = []
        off: list[float] = []
        for _ in range(values.repeats + 1):
            begin = time.perf_counter()
            with way(network, [(drawn, 0.8)]):
                settle(device)
                on.append(time.perf_counter() - begin)
                begin = time.perf_counter()
            settle(device)
            off.append(time.perf_counter() - begin)
        with way(network, [(drawn, 0.8)]):
            forward = timed(lambda: velocity(network, video, audio), values)
            results[name] = velocity(network, video, audio)
        reports.append({"form": name, "on_seconds": median(on[1:]), "off_seconds": median(off[1:]), **forward})
    reports[-1]["cosine_to_merged"] = cosine(results["added"][0], results["merged"][0])
    reports[-1]["lora_bytes"] = sum(a.nbytes + b.nbytes for a, b in drawn.layers["transformer"].values())
    return reports


@torch.inference_mode()
def text(values: argparse.Namespace) -> list[dict[str, Any]]:
    """Gemma 3 12B over one padded prompt: bf16, int8 and int4 on the device, and bf16 on the CPU."""
    reports: list[dict[str, Any]] = []
    truth: Tensor | None = None
    ways: list[tuple[Hold, str]] = [("plain", values.device), ("int8", values.device), ("int4", values.device)]
    if values.device != "cpu":
        ways.append(("plain", "cpu"))
    for hold, where in ways:
        device = torch.device(where)
        reset(torch.device(values.device))
        config = folder_configs(HERE / "configs" / values.model)["text_encoder"]
        if values.layers:
            config["text_config"]["num_hidden_layers"] = values.layers
            config["text_config"].pop("layer_types", None)
        # Drawn on the measured device for all, so that all have the same weights.
        encoder: Any = fill_randomly(
            build("text_encoder", config), dtype=DTYPE, device=torch.device(values.device), seed=0
        )
        count = len(layers(encoder, hold))
        quantise_network(encoder, hold)
        encoder = encoder.to(device)
        ids = torch.randint(10, 1000, (1, TEXT_TOKENS), generator=torch.Generator().manual_seed(0)).to(device)
        mask = torch.ones_like(ids)
        mask[:, : TEXT_TOKENS // 2] = 0
        few = argparse.Namespace(
            **{**vars(values), "repeats": 1 if where == "cpu" else values.repeats, "device": where}
        )

        def encode(encoder: Any = encoder, ids: Tensor = ids, mask: Tensor = mask) -> Tensor:
            found = encoder.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
            return torch.stack(found, dim=-1)[mask.bool()]

        report = {
            "form": hold,
            "on": where,
            "held_bytes": held(encoder),
            "quantised": count,
            **timed(encode, few),
        }
        states = encode().cpu()
        truth = states if truth is None else truth
        reports.append(report | {"cosine_to_bf16": cosine(states, truth), "error_to_bf16": error(states, truth)})
        del encoder, encode
    return reports


BENCHES: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {"fp8": fp8, "lora": lora, "text": text}


def transformer(values: argparse.Namespace) -> nn.Module:
    """A random one of the published shape."""
    reset(torch.device(values.device))
    config = folder_configs(HERE / "configs" / values.model)["transformer"]
    if values.layers:
        config["num_layers"] = values.layers
    return fill_randomly(build("transformer", config), dtype=DTYPE, device=torch.device(values.device), seed=0)


def streams(network: Any, values: argparse.Namespace) -> tuple[Stream, Stream]:
    """Noise at sigma 0.7 and random text, of the size that is measured."""
    from fractions import Fraction

    from ltx2.pipeline.latents import audio_positions, video_positions

    device, config = torch.device(values.device), network.config
    shape = grid(values.size[0], values.size[1], values.size[2], Fraction(24))
    generator = torch.Generator(device).manual_seed(1)

    def noise(tokens: int, channels: int) -> Tensor:
        return torch.empty(1, tokens, channels, device=device, dtype=DTYPE).normal_(generator=generator)

    newer = not config.use_prompt_embeddings
    wide = config.num_attention_heads * config.attention_head_dim if newer else config.caption_channels
    narrow = config.audio_num_attention_heads * config.audio_attention_head_dim if newer else config.caption_channels
    sigma = torch.full((1,), 0.7, device=device)
    positions = (video_positions(shape.video, Fraction(24), device), audio_positions(shape.audio, device))
    sizes = ((shape.video_tokens, config.in_channels, wide), (shape.audio_tokens, config.audio_in_channels, narrow))
    made = [
        Stream(noise(tokens, channels), sigma.expand(1, tokens), sigma, where, noise(TEXT_TOKENS, context))
        for (tokens, channels, context), where in zip(sizes, positions, strict=True)
    ]
    return made[0], made[1]


def timed(work: Callable[[], Any], values: argparse.Namespace) -> dict[str, Any]:
    """Median seconds, and the device's peak beyond what it held before."""
    device = torch.device(values.device)
    work()
    settle(device)
    before = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    seconds: list[float] = []
    for _ in range(values.repeats):
        begin = time.perf_counter()
        work()
        settle(device)
        seconds.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else None
    return {"seconds": median(seconds), "runs": seconds, "extra_bytes": peak}


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def held(network: nn.Module) -> int:
    """Bytes of all weights and buffers."""
    return sum(tensor.nbytes for tensor in {t.data_ptr(): t for t in network.state_dict().values()}.values())


def cosine(one: Tensor, other: Tensor) -> float:
    return float(nn.functional.cosine_similarity(one.double().flatten(), other.double().flatten(), dim=0))


def error(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


if __name__ == "__main__":
    main(sys.argv[1:])
