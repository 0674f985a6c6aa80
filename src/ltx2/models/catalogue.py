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

Form = Literal["embedded", "folder", "file", "split", "upsampler", "lora", "text-encoder"]
LTX_LICENCE = "LTX-2 Community"
# What an engine run reads of a Diffusers-format repository. The text encoder of Lightricks/LTX-2 is stored twice.
FOLDER_FILES = ("*/config.json", "*/*.index.json", "*/*.safetensors", "scheduler/*", "tokenizer/*", "*distilled-lora*")
_UNUSED = (
    "text_encoder/diffusion_pytorch_model*", "diffusion_decoder/*", "duration_head/*", "prompt_enhancer/*", "processor/*",
)  # fmt: skip
FOLDER_IGNORED = (*_UNUSED, "transformer_full/*")
NEEDS_TEXT = ("ltx-2-text-encoder",)


@dataclass(frozen=True)
class Published:
    """One published model or part of one.

    `hub` is its repository, `files` and `ignored` are patterns of the files to take from it: folders take all, the form
    `split` one for each pattern and the transformer first, other forms one. `version` is None for parts that suit several
    versions. `size` in bytes (None for the embedded model, which is measured) is rounded or derived when `about`. `needs`
    names other entries. `gated` asks for an agreement and HF_TOKEN. `refused` says why this engine cannot run it; empty
    when it can.
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
_V20, _V23, _V25 = "Lightricks/LTX-2", "Lightricks/LTX-2.3", "Lightricks/LTX-2.5"

# Text encoder, video VAE, audio VAE with vocoder, and their bytes.
_PARTS25 = (
    "text_encoders/*-with-proj-*bf16.safetensors", "vae/*video-vae-conv-bf16.safetensors", "vae/*audio-vae-bf16.safetensors",
)  # fmt: skip
_SIZE25 = 26_263_858_182 + 1_452_269_922 + 364_866_540


def _split(name: str, transformer: str, kind: Kind, size: int) -> Published:
    return Published(
        name, "split", _V25, (f"diffusion_models/{transformer}.safetensors", *_PARTS25), version="2.5", kind=kind,
        size=size + _SIZE25, about=False, gated=True,
    )  # fmt: skip


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
    _folder("ltx-2.5", f"{_V25}-Diffusers", "2.5", "distilled", 71_050_000_000, gated=True),
    Published("ltx-2.5-dev-diffusers", "folder", f"{_V25}-Diffusers", (*FOLDER_FILES, "transformer_full/*"),
              (*_UNUSED, "transformer/*"), version="2.5", kind="dev", size=71_050_000_000, gated=True),
    _split("ltx-2.5-dev", "*-dev-transformer-bf16", "dev", 42_018_190_584),
    _split("ltx-2.5-distilled", "*-distilled-transformer-bf16", "distilled", 42_018_190_584),
    _split("ltx-2.5-distilled-nvfp4", "*-distilled*nvfp4*", "distilled", 18_721_548_408),
    Published("ltx-2.5-upsampler", "upsampler", _V25, ("latent_upscale_models/*spatial*.safetensors",), version="2.5",
              size=995_778_752, about=False, gated=True),
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
        parted = [entry.name for entry in CATALOGUE if entry.hub == hub and entry.form == "split"]
        if parted and not known:
            raise UnknownModel(
                f"model: {hub} holds several models", knob="model", hint=f"name one of {', '.join(parted)}"
            )
        return known or Published(hub, "folder", hub, FOLDER_FILES, FOLDER_IGNORED, licence="not known")
    raise UnknownModel(
        f"model: {name!r} is not published under this name", knob="model",
        hint="`ltx2 models` lists the names; a hub id such as owner/name works, too",
    )  # fmt: skip
