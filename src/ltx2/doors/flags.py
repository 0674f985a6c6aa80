"""The flags of the command line as a table, and the Request that they make.

Values stay text until the Request checks them, so that a wrong value gets the same error at every door.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from ltx2.spec.errors import NotOffered, RefusedRequest
from ltx2.spec.presets import PRESETS

if TYPE_CHECKING:
    from ltx2.spec.request import Request


@dataclass(frozen=True)
class Flag:
    """One flag: `--like-this`, the placeholder of its value (None: a switch) and its help."""

    name: str
    value: str | None
    help: str
    repeat: bool = False

    @property
    def knob(self) -> str:
        """The name of the value in code: the flag without dashes."""
        return self.name.lstrip("-").replace("-", "_")


VIDEO = (
    Flag("--preset", "NAME", "recipe: " + ", ".join(PRESETS["2.0"]) + " (default: what suits the model)"),
    Flag("--width", "PIXELS", "a multiple of 32, of 64 with two stages"),
    Flag("--height", "PIXELS", "a multiple of 32, of 64 with two stages"),
    Flag("--frames", "N", "of the form 8k+1: 49, 97, 121, ..."),
    Flag("--seconds", "S", "instead of --frames: snapped to the nearest 8k+1 frames"),
    Flag("--fps", "RATE", "frames a second, exactly as written: 24, 23.976, 24000/1001"),
    Flag("--no-audio", None, "leave the sound out of the file"),
    Flag("--image", "FILE", "the first frame"),
    Flag("--image-strength", "0..1", "how strictly the first frame is kept (default: 1)"),
)
SAMPLING = (
    Flag("--negative-prompt", "TEXT", "what guidance steers away from"),
    Flag("--steps", "N", "denoising steps of the guided stage"),
    Flag("--seed", "N", "the same seed makes the same video; drawn and shown if left out"),
    Flag("--sampler", "NAME", "euler, euler-ancestral, res_2s, gradient-estimation (first stage)"),
    Flag("--schedule", "NAME", "official (constant shift) or diffusers (shift by token count)"),
    Flag(
        "--step-cache",
        "CHANGE",
        "lossy: skips steps that change less, euler only: 0.1 saves 24 %% of 30 steps' passes and moves the picture by 0.7 "
        "%%, 0.2 41 %% and 3.2 %% (embedded model)",
    ),
)
GUIDANCE = (
    Flag("--video-cfg", "SCALE", "prompt guidance of the picture; 1 is off"),
    Flag("--video-stg", "SCALE", "spatio-temporal guidance of the picture; 0 is off"),
    Flag("--video-modality", "SCALE", "guidance of the picture by the sound; 1 is off"),
    Flag("--video-rescale", "0..1", "how far guided picture is rescaled to the plain one's contrast; 0 is off"),
    Flag("--audio-cfg", "SCALE", "prompt guidance of the sound; 1 is off"),
    Flag("--audio-stg", "SCALE", "spatio-temporal guidance of the sound; 0 is off"),
    Flag("--audio-modality", "SCALE", "guidance of the sound by the picture; 1 is off"),
    Flag("--audio-rescale", "0..1", "rescaling of guided sound; 0 is off"),
    Flag("--stg-blocks", "N,N", "transformer blocks that spatio-temporal guidance perturbs"),
    Flag(
        "--guidance-interval",
        "FROM:TO",
        "lossy: guides in this share of the steps only: 0:0.75 saves 12 %% of two passes a step and moves the picture by "
        "13 %%, 0:0.5 25 %% and 18 %% (embedded model)",
    ),
)
MODEL = (
    Flag("--model", "NAME", "tiny (embedded), a folder, a .safetensors file or a hub id (LTX2_MODEL)"),
    Flag("--kind", "KIND", "dev or distilled, for a checkpoint whose name does not say it"),
    Flag("--weights", "KIND", "real, or random at full size, for benchmarks"),
    Flag("--text-encoder", "PATH", "folder of text encoder and tokenizer, for official files, or 2.5's one file"),
    Flag("--download", None, "allow fetching a hub id that is not in the local cache (tens of gigabytes)"),
    Flag("--lora", "FILE[:STRENGTH]", "a LoRA for every stage; may be given several times", repeat=True),
    Flag("--distilled-lora", "FILE", "the distilled LoRA of a dev checkpoint"),
    Flag("--lora-strength", "S", "strength of the distilled LoRA in the stages that use it"),
    Flag("--upsampler", "FILE", "the x2 latent upsampler, for two-stage recipes"),
    Flag("--device", "NAME", "cuda, cuda:1 or cpu (default: cuda if there is one; LTX2_DEVICE)"),
    Flag(
        "--precision",
        "NAME",
        "bf16, fp32, or fp8 for the transformer (lossy: velocities at a cosine of 0.9987 to bf16; default: bf16, fp32 on a "
        "CPU; LTX2_PRECISION)",
    ),
    Flag(
        "--text-encoder-precision",
        "NAME",
        "int8 or int4, to save memory (lossy: 0.9 and 8 %% off in a linear; LTX2_TEXT_ENCODER_PRECISION)",
    ),
    Flag("--text-encoder-device", "NAME", "cpu, to keep the text encoder off the GPU (LTX2_TEXT_ENCODER_DEVICE)"),
    Flag(
        "--attention",
        "NAME",
        "fp8: faster on Hopper GPUs, needs fa3-fwd (lossy: 5.5 %% off in an attention; default: auto, exact; LTX2_ATTENTION)",
    ),
    Flag(
        "--activation-scales",
        "NAME",
        "static: those of the fp8 file (lossy: clamps; at a cosine of 0.9986 to bf16; default: every row its own; "
        "LTX2_ACTIVATION_SCALES)",
    ),
    Flag("--lora-mode", "MODE", "merged (faster, more memory) or added (default: added with fp8; LTX2_LORA_MODE)"),
    Flag(
        "--prompt-cache", "WHERE", "memory, off, or a folder for embedded prompts (default: memory; LTX2_PROMPT_CACHE)"
    ),
)
OUTPUT = (
    Flag("--json", None, "print one JSON object on stdout"),
    Flag("--quiet", None, "no progress"),
)
GROUPS = {"video": VIDEO, "sampling": SAMPLING, "guidance": GUIDANCE, "model and machine": MODEL, "output": OUTPUT}
# Known to the model family, not to this engine: accepted only to be refused by name.
ABSENT = {
    "audio_input": "sound as an input is not offered yet",
    "decoder": "only the convolutional video decoder is offered; the diffusion decoder of 2.5 is not",
    "auto_duration": "the duration head of 2.5 is not offered; say --seconds",
}


class Parser(argparse.ArgumentParser):
    """argparse whose errors are refused requests, and which names the nearest flag or command."""

    def error(self, message: str) -> NoReturn:
        raise RefusedRequest(message, hint=f"{self.prog} --help lists every flag")

    def known(self) -> list[str]:
        """Every flag of this parser."""
        return [option for action in self._actions for option in action.option_strings if option.startswith("--")]


def add(parser: Parser, groups: Iterable[str]) -> None:
    """Add groups of flags; a flag that is not given leaves no attribute behind."""
    for title in groups:
        add_group(parser, title, GROUPS[title])
    for knob in ABSENT:
        parser.add_argument("--" + knob.replace("_", "-"), nargs="?", const="", help=argparse.SUPPRESS)


def add_group(parser: Parser, title: str, flags: Iterable[Flag]) -> Any:
    """Add flags under a title; returns the group."""
    group = parser.add_argument_group(title)
    for flag in flags:
        if flag.value is None:
            group.add_argument(flag.name, action="store_true", help=flag.help)
        else:
            action = "append" if flag.repeat else "store"
            group.add_argument(flag.name, metavar=flag.value, help=flag.help, action=action)
    return group


def refuse_unknown(parser: Parser, extra: Sequence[str]) -> None:
    """Raise RefusedRequest for what the parser did not understand, with the nearest flags."""
    if not extra:
        return
    word = extra[0].partition("=")[0]
    if not word.startswith("-"):
        raise RefusedRequest(f"{word!r} is one word too many", hint="put the prompt in quotes")
    near = difflib.get_close_matches(word, parser.known(), n=3, cutoff=0.5)
    hint = "did you mean " + " or ".join(near) + "?" if near else f"{parser.prog} --help lists every flag"
    raise RefusedRequest(f"unknown flag {word}", knob=word.lstrip("-"), hint=hint)


def given(values: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, by knob."""
    return {knob: value for knob, value in vars(values).items() if value not in (None, False)}


def to_request(values: argparse.Namespace) -> Request:
    """The Request of parsed flags. Raises RefusedRequest, naming the flag at fault."""
    from ltx2.spec.request import Request, request

    flags = given(values)
    for knob, why in ABSENT.items():
        if knob in flags:
            raise NotOffered(f"{knob}: {why}", knob=knob)
    fields = {knob: value for knob, value in flags.items() if knob in Request.model_fields}
    fields["prompt"] = values.prompt or ""
    fields["audio"] = not values.no_audio
    fields["loras"] = tuple(read_lora(text) for text in flags.get("lora", ()))
    if "stg_blocks" in flags:
        fields["stg_blocks"] = tuple(flags["stg_blocks"].split(","))
    return request(**fields)


def read_lora(text: str) -> dict[str, str]:
    """Path and, if it is given, strength of FILE[:STRENGTH]."""
    path, _, strength = text.rpartition(":")
    try:
        float(strength)
    except ValueError:
        return {"path": text}
    return {"path": path, "strength": strength} if path else {"path": text}


def add_bench(parser: Parser) -> None:
    """Add the flags that only `ltx2 bench` has; a prompt that was embedded before would not be measured."""
    parser.set_defaults(prompt_cache="off")
    group = parser.add_argument_group("measuring")
    group.add_argument("--prompt", metavar="TEXT", help="the prompt, which every run varies")
    group.add_argument(
        "--repeats",
        type=int,
        default=5,
        metavar="N",
        help="timed runs after the warm-up; the median counts (default: 5)",
    )
    group.add_argument("--warm-up-steps", type=int, metavar="N", help="a warm-up of fewer steps, with the same shapes")
    group.add_argument(
        "--picture",
        choices=("noise", "moving"),
        default="noise",
        help="with --weights random: encode the noise that they show (default), or in its place a moving picture with grain",
    )
    group.add_argument("--against", choices=("diffusers",), help="measure Diffusers' own pipeline in the same run")
    group.add_argument(
        "--against-repeats", type=int, default=3, metavar="N", help="timed runs of the other side (default: 3)"
    )
    group = parser.add_argument_group("quality of the embedded model")
    group.add_argument("--quality", action="store_true", help="judge videos of held-out prompts instead of timing")
    group.add_argument("--prompts", type=int, metavar="N", help="how many of the prompts (default: all)")
    group.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes that generate at once on a CPU (default: 1)"
    )
    group.add_argument("--sheet", metavar="FOLDER", help="write contact sheets of the first twelve videos there")


def add_models(parser: Parser) -> None:
    """Add the flags of `ltx2 models`."""
    _add_output(parser)


def add_download(parser: Parser) -> None:
    """Add the flags of `ltx2 download`."""
    parser.add_argument(
        "name", metavar="NAME", help="a name of `ltx2 models`, a hub id, or owner/name/file.safetensors"
    )
    parser.add_argument(
        "--revision", metavar="REV", help="branch, tag or commit (default: what the main branch is now)"
    )
    parser.add_argument("--folder", metavar="FOLDER", help="where to (default: the cache of the hub; LTX2_CACHE)")
    parser.add_argument("--anyway", action="store_true", help="also when `ltx2 doctor NAME` objects")
    _add_output(parser)


def add_doctor(parser: Parser) -> None:
    """Add the flags of `ltx2 doctor`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="a published model, a hub id, a folder or a file")
    parser.add_argument(
        "--revision", metavar="REV", help="branch, tag or commit (default: what the main branch is now)"
    )
    _add_output(parser)


def _add_output(parser: Parser) -> None:
    for flag in OUTPUT:
        parser.add_argument(flag.name, action="store_true", help=flag.help)
