"""What is published of the LTX-2 family: names, places, sizes, licences, and what this engine can do with each.

Sizes are those of the files that a download takes, in bytes; no file was opened to write this table, so sizes marked
`about` come from published shapes or rounded figures. Revisions are not pinned here, because none was seen to be
complete: a download pins the commit that it finds, and says which.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from ltx2.spec.card import Kind, Version
from ltx2.spec.errors import UnknownModel

Form = Literal["embedded", "folder", "file", "upsampler", "lora", "text-encoder"]
LTX_LICENCE = "LTX-2 Community"
# What an engine run reads of a Diffusers-format repository. The text encoder of Lightricks/LTX-2 is stored twice.
FOLDER_FILES = ("*/config.json", "*/*.index.json", "*/*.safetensors", "scheduler/*", "tokenizer/*", "*distilled-lora*")
FOLDER_IGNORED = (
    "text_encoder/diffusion_pytorch_model*", "transformer_full/*", "diffusion_decoder/*", "duration_head/*",
)  # fmt: skip
NEEDS_TEXT = ("ltx-2-text-encoder",)


@dataclass(frozen=True)
class Published:
    """One published model or part of one.

    `hub` is its repository, `files` and `ignored` are patterns of the files to take from it (forms other than folders
    take exactly one). `version` is None for parts that suit every version. `size` in bytes (None for the embedded
    model, which is measured) is rounded or derived when `about`. `needs` names other entries. `gated` asks for an
    agreement and HF_TOKEN. `refused` says why this engine cannot run it; empty when it can.
    """

    name: str
    form: Form
    hub: str = ""
    files: tuple[str, ...] = FOLDER_FILES
    ignored: tuple[str, ...] = ()
    version: Version | None = None
    kind: Kind | None = None
    size: int | None = None
    about: bool = True
    licence: str = LTX_LICENCE
    gated: bool = False
    revision: str | None = None
    needs: tuple[str, ...] = ()
    refused: str = ""

    def wants(self, path: str) -> bool:
        """Whether a file of the repository belongs to this entry."""
        taken = any(fnmatchcase(path, pattern) for pattern in self.files)
        return taken and not any(fnmatchcase(path, pattern) for pattern in self.ignored)


def _folder(name: str, hub: str, version: Version, kind: Kind, size: int | None, **more: object) -> Published:
    return Published(
        name, "folder", hub, FOLDER_FILES, FOLDER_IGNORED, version=version, kind=kind, size=size, **more  # pyright: ignore[reportArgumentType]
    )  # fmt: skip


_INT8 = "rotated int8 weights are not supported"
_GEMMA4 = "its Gemma 4 text encoder is not supported yet"
_V20, _V23, _V25 = "Lightricks/LTX-2", "Lightricks/LTX-2.3", "Lightricks/LTX-2.5"

CATALOGUE = (
    Published("tiny", "embedded", version="2.0", licence="Apache-2.0"),
    _folder("ltx-2", _V20, "2.0", "dev", 100_740_000_000),
    Published("ltx-2-dev", "file", _V20, ("ltx-2-19b-dev.safetensors",), version="2.0", kind="dev",
              size=43_300_000_000, needs=NEEDS_TEXT),
    Published("ltx-2-dev-fp8", "file", _V20, ("ltx-2-19b-dev-fp8.safetensors",), version="2.0", kind="dev",
              size=27_078_716_018, about=False, needs=NEEDS_TEXT),
    Published("ltx-2-dev-fp4", "file", _V20, ("ltx-2-19b-dev-fp4.safetensors",), version="2.0", kind="dev",
              size=20_000_000_000, needs=NEEDS_TEXT),
    Published("ltx-2-distilled", "file", _V20, ("ltx-2-19b-distilled.safetensors",), version="2.0", kind="distilled",
              size=43_300_000_000, needs=NEEDS_TEXT),
    Published("ltx-2-distilled-fp8", "file", _V20, ("ltx-2-19b-distilled-fp8.safetensors",), version="2.0",
              kind="distilled", size=27_078_716_346, about=False, needs=NEEDS_TEXT),
    Published("ltx-2-distilled-lora", "lora", _V20, ("ltx-2-19b-distilled-lora-384.safetensors",), version="2.0",
              size=7_674_558_424, about=False),
    Published("ltx-2-upsampler", "upsampler", _V20, ("ltx-2-spatial-upscaler-x2-1.0.safetensors",), version="2.0",
              size=995_765_578, about=False),
    Published("ltx-2-text-encoder", "text-encoder", _V20, ("text_encoder/*", "tokenizer/*"),
              ("text_encoder/diffusion_pytorch_model*",), size=48_790_000_000, licence="Gemma"),
    _folder("ltx-2.3", "diffusers/LTX-2.3-Diffusers", "2.3", "dev", 71_500_000_000),
    _folder("ltx-2.3-distilled-diffusers", "diffusers/LTX-2.3-Distilled-Diffusers", "2.3", "distilled", 71_500_000_000),
    Published("ltx-2.3-dev", "file", _V23, ("*-dev.safetensors",), version="2.3", kind="dev", size=46_149_315_961,
              needs=NEEDS_TEXT),
    Published("ltx-2.3-distilled", "file", _V23, ("*-distilled.safetensors",), version="2.3", kind="distilled",
              size=46_149_315_961, needs=NEEDS_TEXT),
    Published("ltx-2.3-dev-fp8", "file", f"{_V23}-fp8", ("*-dev*.safetensors",), version="2.3", kind="dev",
              size=29_145_431_166, about=False, needs=NEEDS_TEXT),
    Published("ltx-2.3-distilled-fp8", "file", f"{_V23}-fp8", ("*-distilled*.safetensors",), version="2.3",
              kind="distilled", size=29_531_884_062, about=False, needs=NEEDS_TEXT),
    Published("ltx-2.3-dev-nvfp4", "file", f"{_V23}-nvfp4", ("*-dev*.safetensors",), version="2.3", kind="dev",
              size=21_700_000_000, needs=NEEDS_TEXT),
    Published("ltx-2.3-distilled-lora", "lora", _V23, ("*-distilled-lora-384.safetensors",), version="2.3",
              size=7_605_507_256, about=False),
    Published("ltx-2.3-upsampler", "upsampler", _V23, ("*-spatial-upscaler-x2-1.0.safetensors",), version="2.3",
              size=995_743_504, about=False),
    _folder("ltx-2.5", "Lightricks/LTX-2.5-Diffusers", "2.5", "distilled", 74_000_000_000, gated=True, refused=_GEMMA4),
    Published("ltx-2.5-distilled-nvfp4", "file", _V25, ("diffusion_models/*nvfp4*.safetensors",), version="2.5",
              kind="distilled", size=18_721_548_408, about=False, gated=True, refused=_GEMMA4),
    Published("ltx-2.5-int8", "file", _V25, ("diffusion_models/*int8*.safetensors",), version="2.5",
              size=21_504_034_224, about=False, gated=True, refused=_INT8),
)  # fmt: skip
_BY_NAME = {entry.name: entry for entry in CATALOGUE}


def find(name: str) -> Published:
    """The entry of a name: one of the catalogue's, a hub id, or a hub id followed by the path of one file.

    Raises UnknownModel for anything else.
    """
    if name in _BY_NAME:
        return _BY_NAME[name]
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if owner and repository and not name.startswith((".", "~")):
        hub = f"{owner}/{repository}"
        if file:
            return next(
                (entry for entry in CATALOGUE if entry.hub == hub and entry.form != "folder" and entry.wants(file)),
                Published(name, "file", hub, (file,), licence="not known"),
            )
        known = next((entry for entry in CATALOGUE if entry.hub == hub and entry.form == "folder"), None)
        return known or Published(hub, "folder", hub, FOLDER_FILES, FOLDER_IGNORED, licence="not known")
    raise UnknownModel(
        f"model: {name!r} is not published under this name", knob="model",
        hint="`ltx2 models` lists the names; a hub id such as owner/name works, too",
    )  # fmt: skip
