"""What each way of holding weights costs: fp8 against bf16, LoRAs merged against added, the text encoder in fewer bits.

    python benchmarks/weights.py RESULTS.jsonl [fp8 text lora cpu ...] [--seconds 150] [--model ltx-2]
    python benchmarks/weights.py RESULTS.jsonl --tiny        rehearsal with small networks, also without a GPU

Full-size random weights; nothing is downloaded. Each measurement is a line of JSON at once, in order of value; what does
not begin within `--seconds` is named in a last line. Seconds are medians of `--repeats` runs after one that does not
count, bytes are those of the device. A bench that fails leaves its error in the file, and the next one goes on.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ltx2.doors.origin import origin
from ltx2.models.describe import HERE, folder_configs
from ltx2.models.fast import forget, passes
from ltx2.models.holding import Hold, layers, quantise_network
from ltx2.models.lora import added, merged
from ltx2.models.precision import (
    E4M3_MAX,
    FP8,
    Fp8Linear,
    clamped_share,
    dequantise,
    fp8_linears,
    use_calibration,
)
from ltx2.models.randoms import draw_lora, fill_randomly
from ltx2.models.velocity import Stream, velocity
from ltx2.models.weights import build
from ltx2.pipeline.latents import audio_positions, video_positions
from ltx2.spec.geometry import grid

DTYPE = torch.bfloat16
TEXT_TOKENS = 1024
SIZE = (768, 512, 97)
# Weights of realistic scale: Student's t with 5 degrees of freedom gives a linear of 4096 x 4096 a largest magnitude of
# 0.6, as the published example of a weight_scale does (0.0013 * 448), and one input channel of 512 is 8 times as large.
FREEDOM, SPIKE_EVERY, SPIKE = 5, 512, 8.0

Velocities = tuple[Tensor, Tensor]
Report = dict[str, Any]


def main(words: list[str]) -> None:
    """Run the named measurements, or all."""
    values = _arguments(words)
    values.deadline = time.monotonic() + values.seconds
    common = {"model": values.model, "tiny": values.tiny, **origin(values.device)}
    left: list[str] = []
    for name in values.names:
        begin, line = time.monotonic(), {"bench": f"weights-{name}", **common}
        if begin > values.deadline:
            left.append(name)
            continue
        try:
            with torch.inference_mode():
                for report in BENCHES[name](values):
                    append(values.results, line | report)
        except Exception as error:
            # The traceback holds the networks.
            trace = traceback.format_exc()[-1500:]
            append(values.results, line | {"error": f"{type(error).__name__}: {error}", "trace": trace})
        reset(torch.device(values.device))
        append(values.results, {"bench": f"weights-{name}", "whole_seconds": time.monotonic() - begin})
    if left:
        append(values.results, {"bench": "weights", "left_out": left})


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHES)}; all when none is named")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", default="ltx-2", choices=("ltx-2", "ltx-2.3", "ltx-2.5"))
    parser.add_argument("--layers", type=int, help="fewer layers, for small runs")
    parser.add_argument(
        "--width", type=int, help="fewer channels, a multiple of 256; the default is the published width"
    )
    parser.add_argument("--size", type=int, nargs=3, metavar=("WIDTH", "HEIGHT", "FRAMES"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=600.0, help="begin nothing later than this")
    parser.add_argument("--tiny", action="store_true", help="8 layers of 256 channels at 128x64x9")
    values = parser.parse_args(words)
    if unknown := set(values.names) - BENCHES.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    values.names = values.names or [*BENCHES]
    if values.tiny:
        values.layers, values.width, values.repeats = values.layers or 8, values.width or 256, 1
    values.size = values.size or ((128, 64, 9) if values.tiny else SIZE)
    return values


def append(results: Path, line: Report) -> None:
    """One line of the file, and of the screen."""
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def fp8(values: argparse.Namespace) -> Iterator[Report]:
    """Forwards in bf16, in fp8, in bf16 with what the fp8 weights stand for, and with static scales, on both paths.

    `cosine_*_to_dequantised` is of the activations' rounding alone, `cosine_*_to_bf16` of both roundings together.
    """
    for drawn in ("heavy", "normal"):
        network = transformer(values, drawn)
        inputs = streams(network, values)
        first = drawn == "heavy"
        common: Report = {"drawn": drawn}
        before = {name: way(network)(*inputs) for name, way in WAYS.items()}
        report = common | {"form": "bf16", **compare(before["fast"], before["plain"], "plain")}
        yield report | (times(network, inputs, values) if first else {})

        begin = time.perf_counter()
        forget(network)
        quantise_network(network, "fp8")
        settle(torch.device(values.device))
        report = common | {"form": "fp8", "quantise_seconds": time.perf_counter() - begin}
        ours = {name: way(network)(*inputs) for name, way in WAYS.items()}
        for name in WAYS:
            report |= {f"{name}_{key}": value for key, value in compare(ours[name], before[name], "bf16").items()}
        report |= times(network, inputs, values) if first else {}
        dequantise_network(network)
        for name, way in WAYS.items():
            theirs = way(network)(*inputs)
            report |= {f"{name}_{key}": value for key, value in compare(ours[name], theirs, "dequantised").items()}
        yield report
        del network

    yield from _static(values)


def _static(values: argparse.Namespace) -> Iterator[Report]:
    """As published files have it: one scale a weight, and one for the activations, calibrated on other inputs."""
    network = transformer(values, "heavy")
    inputs, others = streams(network, values), streams(network, values, seed=2, sigma=0.9)
    truth = velocity(network, *inputs)
    _calibrate(network, others)
    for static in (False, True):
        use_calibration(network, static)
        found = velocity(network, *inputs)
        report: Report = {"drawn": "heavy", "form": "fp8-static" if static else "fp8-per-tensor"}
        report |= compare(found, truth, "bf16")
        if static:
            shares = clamped_share(network)
            report |= {"clamped_share": sum(shares.values()) / len(shares), "clamped_worst": max(shares.values())}
            report |= timed(lambda: velocity(network, *inputs), values)
        yield report


def _calibrate(network: nn.Module, inputs: tuple[Stream, Stream]) -> None:
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
        linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        linear.weight = nn.Parameter(dequantise(layer.weight, layer.scale, DTYPE), requires_grad=False)
        linear.bias = layer.bias
        network.set_submodule(name, linear)


def text(values: argparse.Namespace) -> Iterator[Report]:
    """Gemma 3 12B over one padded prompt in bf16, int8 and int4, all with the same weights."""
    device = torch.device(values.device)
    truth: Tensor | None = None
    for hold in ("plain", "int8", "int4"):
        encoder, count = text_encoder(values, hold)
        report = {"form": hold, "on": values.device, "held_bytes": held(encoder), "quantised": count}
        report |= timed(lambda encoder=encoder: encode(encoder, device), values)
        states = encode(encoder, device)
        truth = states if truth is None else truth
        yield report | {"cosine_to_bf16": cosine(states, truth), "error_to_bf16": error(states, truth)}
        del encoder
        reset(device)


def cpu(values: argparse.Namespace) -> Iterator[Report]:
    """The same in bf16 on the CPU: one run."""
    encoder, _ = text_encoder(values, "plain")
    begin = time.perf_counter()
    encoder = encoder.to("cpu")
    moved = time.perf_counter() - begin
    begin = time.perf_counter()
    encode(encoder, torch.device("cpu"))
    yield {"form": "plain", "on": "cpu", "seconds": time.perf_counter() - begin, "move_seconds": moved}


def lora(values: argparse.Namespace) -> Iterator[Report]:
    """The distilled LoRA's rank on every linear: switching on and off, one forward, and memory, for each way."""
    device = torch.device(values.device)
    network = transformer(values)
    inputs = streams(network, values)
    drawn = draw_lora(network, device=device)
    size = sum(a.nbytes + b.nbytes for a, b in drawn.layers["transformer"].values())
    yield {"form": "none", "lora_bytes": size, **times(network, inputs, values)}
    results: dict[str, Velocities] = {}
    for name, way in {"added": added, "merged": merged}.items():
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
        report: Report = {"form": name, "on_seconds": median(on[1:]), "off_seconds": median(off[1:])}
        with way(network, [(drawn, 0.8)]):
            report |= times(network, inputs, values)
            results[name] = velocity(network, *inputs)
        if name == "merged":
            report |= compare(results["added"], results["merged"], "merged", "added_")
        yield report


BENCHES: dict[str, Callable[[argparse.Namespace], Iterator[Report]]] = {
    "fp8": fp8,
    "text": text,
    "lora": lora,
    "cpu": cpu,
}


def _fast(network: nn.Module) -> Callable[[Stream, Stream], Velocities]:
    stage = passes(network)
    return lambda video, audio: stage(video, audio, ())[0]


def _plain(network: nn.Module) -> Callable[[Stream, Stream], Velocities]:
    return lambda video, audio: velocity(network, video, audio)


# As a stage of denoising has it: what the fast path remembers of a prompt is kept from one forward to the next.
WAYS = {"fast": _fast, "plain": _plain}


def transformer(values: argparse.Namespace, drawn: str = "normal") -> nn.Module:
    """A random one of the published shape; `heavy` ones have weights of realistic scale."""
    device = torch.device(values.device)
    reset(device)
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


def text_encoder(values: argparse.Namespace, hold: Hold) -> tuple[Any, int]:
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
    encoder = fill_randomly(build("text_encoder", config), dtype=DTYPE, device=torch.device(values.device), seed=0)
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


def streams(network: Any, values: argparse.Namespace, seed: int = 1, sigma: float = 0.7) -> tuple[Stream, Stream]:
    """Noise and random text, of the size that is measured."""
    device, config = torch.device(values.device), network.config
    shape = grid(values.size[0], values.size[1], values.size[2], Fraction(24))
    generator = torch.Generator(device).manual_seed(seed)

    def noise(tokens: int, channels: int) -> Tensor:
        return torch.empty(1, tokens, channels, device=device, dtype=DTYPE).normal_(generator=generator)

    newer = not config.use_prompt_embeddings
    wide = config.num_attention_heads * config.attention_head_dim if newer else config.caption_channels
    narrow = config.audio_num_attention_heads * config.audio_attention_head_dim if newer else config.caption_channels
    level = torch.full((1,), sigma, device=device)
    positions = (video_positions(shape.video, Fraction(24), device), audio_positions(shape.audio, device))
    sizes = ((shape.video_tokens, config.in_channels, wide), (shape.audio_tokens, config.audio_in_channels, narrow))
    # One timestep for all tokens, as the loop passes it where no first frame is given.
    made = [
        Stream(noise(tokens, channels), level.expand(1, 1), level, where, noise(TEXT_TOKENS, context))
        for (tokens, channels, context), where in zip(sizes, positions, strict=True)
    ]
    return made[0], made[1]


def times(network: nn.Module, inputs: tuple[Stream, Stream], values: argparse.Namespace) -> Report:
    """Seconds and memory of one forward on each path, and the bytes of the weights."""
    report: Report = {"held_bytes": held(network)}
    for name, way in WAYS.items():
        step = way(network)
        found = timed(lambda step=step: step(*inputs), values)
        report |= {f"{name}_{key}": value for key, value in found.items()}
    forget(network)
    return report


def timed(work: Callable[[], Any], values: argparse.Namespace) -> Report:
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


def compare(found: Velocities, truth: Velocities, name: str, before: str = "") -> Report:
    """Cosine and relative error of both streams against `truth`, which is called `name`."""
    report: Report = {}
    for side, one, other in zip(("video", "audio"), found, truth, strict=True):
        report |= {f"{before}cosine_{side}_to_{name}": cosine(one, other)}
        report |= {f"{before}error_{side}_to_{name}": error(one, other)}
    return report


def cosine(one: Tensor, other: Tensor) -> float:
    return float(nn.functional.cosine_similarity(one.double().flatten(), other.double().flatten(), dim=0))


def error(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


if __name__ == "__main__":
    main(sys.argv[1:])
