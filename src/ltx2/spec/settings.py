"""This machine, read once at a door from the environment; flags of a command line take precedence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ltx2.spec.errors import RefusedRequest
from ltx2.spec.shapes import WORDS, read_shapes

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "bf16", "fp32", "fp8")
TEXT_PRECISIONS = ("auto", "int8", "int4")
LORA_MODES = ("auto", "merged", "added")
ATTENTIONS = ("auto", "fp8")
ACTIVATION_SCALES = ("auto", "static")
# Of embedded prompts: about 16 MB each with the published models.
PROMPT_MEMORY_BYTES = 256 * 2**20
PROMPT_DISK_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Settings:
    """What does not belong to a video but to the machine that makes it.

    `model` is tiny, a folder, a file or a hub id (None: the embedded model, and the CLI says so). `device` auto means
    cuda if there is one; `precision` auto means bf16 on cuda and fp32 on a CPU, fp8 holds the transformer so. `cache` is
    the folder of downloaded models (None: the usual one of the Hugging Face hub). `price_per_hour` is the price of one
    GPU in dollars. `text_encoder_precision` auto means as `precision`, `text_encoder_device` auto means as `device`.
    `lora_mode` auto merges LoRAs into weights, but adds them at run time to fp8. `prompt_cache` is memory, off, or the
    folder where embedded prompts are kept. `fast` off is the plain path of the transformer: the same result, slower.
    `attention` fp8 is lossy and for Hopper GPUs: the self-attention of large pictures in float8; auto is exact.
    `activation_scales` static takes those of a published fp8 file; auto gives every row of activations its own.
    `warm_up` are the shapes that a worker makes before its first job (see `shapes`). `kernel_cache` is the folder of
    compiled kernels (None: that of each compiler, in the home folder).
    """

    model: str | None = None
    device: str = "auto"
    precision: str = "auto"
    cache: Path | None = None
    price_per_hour: float = 4.54
    text_encoder_precision: str = "auto"
    text_encoder_device: str = "auto"
    lora_mode: str = "auto"
    prompt_cache: str = "memory"
    fast: bool = True
    attention: str = "auto"
    activation_scales: str = "auto"
    warm_up: tuple[str, ...] = WORDS
    kernel_cache: Path | None = None

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """Read LTX2_MODEL, LTX2_DEVICE, LTX2_PRECISION, LTX2_CACHE, LTX2_PRICE_PER_HOUR, LTX2_TEXT_ENCODER_PRECISION,
        LTX2_TEXT_ENCODER_DEVICE, LTX2_LORA_MODE, LTX2_PROMPT_CACHE, LTX2_FAST, LTX2_ATTENTION,
        LTX2_ACTIVATION_SCALES, LTX2_WARM_UP and LTX2_KERNEL_CACHE; empty means unset.

        Raises RefusedRequest for a value that cannot be used.
        """
        given = {name[5:].lower(): text for name, text in environment.items() if name.startswith("LTX2_") and text}
        device, precision = given.get("device", cls.device), given.get("precision", cls.precision)
        # An index as in cuda:1 is fine.
        _check("LTX2_DEVICE", device.partition(":")[0], DEVICES)
        _check("LTX2_PRECISION", precision, PRECISIONS)
        cache = Path(given["cache"]).expanduser() if "cache" in given else None
        price = _price(given.get("price_per_hour", str(cls.price_per_hour)))
        text_precision = given.get("text_encoder_precision", cls.text_encoder_precision)
        text_device = given.get("text_encoder_device", cls.text_encoder_device)
        lora_mode = given.get("lora_mode", cls.lora_mode)
        _check("LTX2_TEXT_ENCODER_PRECISION", text_precision, TEXT_PRECISIONS)
        _check("LTX2_TEXT_ENCODER_DEVICE", text_device.partition(":")[0], DEVICES)
        _check("LTX2_LORA_MODE", lora_mode, LORA_MODES)
        fast = given.get("fast", "on")
        _check("LTX2_FAST", fast, ("on", "off"))
        attention = given.get("attention", cls.attention)
        _check("LTX2_ATTENTION", attention, ATTENTIONS)
        scales = given.get("activation_scales", cls.activation_scales)
        _check("LTX2_ACTIVATION_SCALES", scales, ACTIVATION_SCALES)
        return cls(
            given.get("model"), device, precision, cache, price,
            text_precision, text_device, lora_mode, given.get("prompt_cache", cls.prompt_cache), fast == "on", attention,
            scales, read_shapes(given.get("warm_up", ",".join(cls.warm_up)), "LTX2_WARM_UP"),
            Path(given["kernel_cache"]).expanduser() if "kernel_cache" in given else None,
        )  # fmt: skip


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RefusedRequest(f"{name}: there is no {value!r}", knob=name, hint="one of " + ", ".join(known))


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not 0 <= price < math.inf:
        raise RefusedRequest(
            f"LTX2_PRICE_PER_HOUR: {text!r} is not an amount in dollars", knob="LTX2_PRICE_PER_HOUR", hint="as in 4.54"
        )
    return price
