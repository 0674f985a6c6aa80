"""How weights are held, and which linears in which form: fp8 in the transformer, int8 or int4 in the text encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ltx2.models.compact import GROUP, Int4Linear, Int8Linear
from ltx2.models.precision import Fp8Linear
from ltx2.spec.errors import RefusedRequest
from ltx2.spec.precision import fp8_blocks

Hold = Literal["plain", "fp8", "int8", "int4"]
FP8_CAPABILITY = (8, 9)
LoraMode = Literal["auto", "merged", "added"]
FORMS: dict[str, Any] = {"fp8": Fp8Linear, "int8": Int8Linear, "int4": Int4Linear}
# The linears of a block that fp8 holds. Gate logits, modulations and both ends of the network are small and sensitive.
_TRANSFORMER = re.compile(
    r"transformer_blocks\.(\d+)\.(?:.*\.(?:to_q|to_k|to_v|to_out\.0)|(?:audio_)?ff\.net\.(?:0\.proj|2))"
)
# The decoder layers of Gemma; embeddings and the vision tower stay.
_GEMMA = re.compile(r"model\.language_model\.layers\..*")
_BLOCK = re.compile(r"transformer_blocks\.\d+")


@dataclass(frozen=True)
class Holding:
    """How weights are held, beyond the dtype that everything computes in.

    `transformer` plain or fp8; `text_encoder` plain, int8 or int4, on `text_device` (None: where the rest is), where it
    then stays. `loras` merged into the transformer's weights for a stage, or added at run time; auto adds to fp8 weights
    and merges into others, which is faster while it is used and keeps the originals beside them.
    """

    transformer: Literal["plain", "fp8"] = "plain"
    text_encoder: Literal["plain", "int8", "int4"] = "plain"
    text_device: torch.device | None = None
    loras: LoraMode = "auto"

    @classmethod
    def named(
        cls, precision: str, text_encoder: str = "auto", text_device: str = "auto", loras: str = "auto"
    ) -> Holding:
        """The holding of a machine's settings, which spell `auto` for what is as the rest."""
        return cls(
            "fp8" if precision == "fp8" else "plain",
            "plain" if text_encoder == "auto" else text_encoder,  # pyright: ignore[reportArgumentType]
            None if text_device == "auto" else torch.device(text_device),
            loras,  # pyright: ignore[reportArgumentType]
        )

    def checked(self, device: torch.device) -> Holding:
        """The same, without a device of its own for the text encoder when that is the device itself.

        Raises RefusedRequest for LoRAs merged into fp8, and for fp8 on a GPU that cannot compute with it.
        """
        if self.transformer == "fp8" and self.loras == "merged":
            raise RefusedRequest(
                "lora_mode: a LoRA cannot be merged into fp8 weights", knob="lora_mode", hint="added works, or auto"
            )
        if (
            self.transformer == "fp8"
            and device.type == "cuda"
            and torch.cuda.get_device_capability(device) < FP8_CAPABILITY
        ):
            name = torch.cuda.get_device_name(device)
            raise RefusedRequest(
                f"precision: {name} has no fp8 units, which came with compute capability 8.9",
                knob="precision", hint="bf16 works",
            )  # fmt: skip
        same = self.text_device is not None and _place(self.text_device) == _place(device)
        return replace(self, text_device=None) if same else self

    def of(self, name: str) -> Hold:
        """The form of a network's linears."""
        return {"transformer": self.transformer, "text_encoder": self.text_encoder}.get(name, "plain")  # pyright: ignore[reportReturnType]

    @property
    def merges(self) -> bool:
        """Whether LoRAs are merged rather than added."""
        return self.loras == "merged" or (self.loras == "auto" and self.transformer == "plain")


PLAIN = Holding()


def layers(network: nn.Module, hold: Hold) -> list[str]:
    """Names of the linears that `hold` changes in this network, in their order."""
    linears = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    if hold == "plain":
        return []
    if hold == "fp8":
        blocks = fp8_blocks(sum(1 for name, _ in network.named_modules() if _BLOCK.fullmatch(name)))
        return [name for name in linears if (match := _TRANSFORMER.fullmatch(name)) and int(match[1]) in blocks]
    divides = {name for name, linear in linears.items() if hold == "int8" or linear.in_features % GROUP == 0}
    return [name for name in linears if name in divides and _GEMMA.fullmatch(name)]


def replace_layers(network: nn.Module, hold: Hold, held: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Put layers of the form `hold` with these tensors in the place of linears; the linears' biases move over."""
    for name, tensors in held.items():
        linear: Any = network.get_submodule(name)
        network.set_submodule(name, FORMS[hold](**tensors, bias=linear.bias))


def quantise_network(network: nn.Module, hold: Hold) -> None:
    """Quantise a filled network in place, one layer at a time."""
    for name in layers(network, hold):
        linear: Any = network.get_submodule(name)
        replace_layers(network, hold, {name: FORMS[hold].quantise(linear.weight)})


def _place(device: torch.device) -> tuple[str, int]:
    """cuda is cuda:0."""
    return device.type, device.index or 0
