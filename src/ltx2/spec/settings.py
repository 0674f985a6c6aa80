"""This machine, read once at a door from the environment; flags of a command line take precedence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ltx2.spec.errors import RefusedRequest

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "bf16", "fp32")


@dataclass(frozen=True)
class Settings:
    """What does not belong to a video but to the machine that makes it.

    `model` is tiny, a folder, a file or a hub id (None: the embedded model, and the CLI says so). `device` auto means
    cuda if there is one; `precision` auto means bf16 on cuda and fp32 on a CPU. `cache` is the folder of downloaded
    models (None: the usual one of the Hugging Face hub). `price_per_hour` is the price of one GPU in dollars.
    """

    model: str | None = None
    device: str = "auto"
    precision: str = "auto"
    cache: Path | None = None
    price_per_hour: float = 4.54

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """Read LTX2_MODEL, LTX2_DEVICE, LTX2_PRECISION, LTX2_CACHE and LTX2_PRICE_PER_HOUR; empty means unset.

        Raises RefusedRequest for a value that cannot be used.
        """
        given = {name[5:].lower(): text for name, text in environment.items() if name.startswith("LTX2_") and text}
        device, precision = given.get("device", cls.device), given.get("precision", cls.precision)
        # An index as in cuda:1 is fine.
        _check("LTX2_DEVICE", device.partition(":")[0], DEVICES)
        _check("LTX2_PRECISION", precision, PRECISIONS)
        cache = Path(given["cache"]).expanduser() if "cache" in given else None
        price = _price(given.get("price_per_hour", str(cls.price_per_hour)))
        return cls(given.get("model"), device, precision, cache, price)


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
