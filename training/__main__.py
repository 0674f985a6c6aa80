"""Commands of the training: one per stage, `all`, and what goes with them (export, reopen, check, plot, sheet, pack)."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

from training.loop import Run
from training.world import MOTIONS

# stage: function, seconds, the file that says that it is done
STAGES = {
    "video_vae": ("training.video_vae:train", 250.0, "vae.safetensors"),
    "audio_vae": ("training.audio_vae:train", 80.0, "audio_vae.safetensors"),
    "vocoder": ("training.vocoder:train", 140.0, "vocoder.safetensors"),
    "captions": ("training.latents:write_captions", 0.0, "local/captions.pt"),
    "latents": ("training.latents:train", 75.0, "local/latents.pt"),
    "transformer": ("training.transformer:train", 500.0, None),
    "upsampler": ("training.upsampler:train", 50.0, "latent_upsampler.safetensors"),
    "lora": ("training.lora:train", 110.0, "distilled_lora.safetensors"),
}
# stages of one row run one after the other, rows of one wave at the same time
WAVES = (
    (("video_vae",), ("audio_vae", "vocoder"), ("captions",)),
    (("latents",),),
    (("transformer",), ("upsampler",)),
    (("lora",),),
)
SMOKE_SECONDS = 1.0


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.command in STAGES:
        return _stage(arguments)
    if arguments.command == "all":
        return _all(arguments)
    return _other(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in (*STAGES, "all", "sheet"):
        command = commands.add_parser(name)
        command.add_argument("--out", type=Path, required=True, help="folder of the run")
        command.add_argument("--seconds", type=float, help="time for this stage")
        command.add_argument("--total", type=float, default=0.0, help="time of the transformer over all calls")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--scale", type=float, default=3.0, help="guidance of the LoRA's teacher and of the sheet")
        command.add_argument("--smoke", action="store_true", help="a few tiny steps on the CPU")
        command.add_argument("--lesson", choices=MOTIONS, default="", help="half of the clips show this motion")
        command.add_argument("--batch", type=float, default=1.0, help="factor of the batch sizes (a CPU: 0.125)")
        command.add_argument("--pace", type=float, default=1.0, help="factor of the learning rates")
        command.add_argument("--again", action="store_true", help="train even if the stage is finished")
    export = commands.add_parser("export")
    export.add_argument("run", type=Path)
    export.add_argument("--out", type=Path, required=True)
    check = commands.add_parser("check")
    check.add_argument("folder", type=Path)
    for name in ("plot", "pack", "unpack", "reopen"):
        command = commands.add_parser(name)
        command.add_argument("source", type=Path)
        command.add_argument("target", type=Path)
    return parser


def _stage(arguments: argparse.Namespace) -> int:
    place, seconds, product = STAGES[arguments.command]
    run = _run(arguments, arguments.seconds or (SMOKE_SECONDS if arguments.smoke else seconds))
    if product and (run.out / product).exists() and not arguments.again:
        print(json.dumps({"stage": arguments.command, "event": "already finished"}), flush=True)
        return 0
    module, function = place.split(":")
    getattr(importlib.import_module(module), function)(run)
    return 0


def _run(arguments: argparse.Namespace, seconds: float) -> Run:
    arguments.out.mkdir(parents=True, exist_ok=True)
    given = {name: getattr(arguments, name) for name in ("total", "smoke", "seed", "scale", "lesson", "batch", "pace")}
    return Run(arguments.out, seconds, **given)


def _all(arguments: argparse.Namespace) -> int:
    """Run every stage in its own process, wave by wave; stops at the first wave in which one fails."""
    shared = ["--out", str(arguments.out), "--seed", str(arguments.seed), "--scale", str(arguments.scale)]
    shared += [f"--{name}={getattr(arguments, name)}" for name in ("batch", "pace")]
    shared += [flag for flag in ("--smoke", "--again") if getattr(arguments, flag[2:])]
    for wave in WAVES:
        rows = [list(row) for row in wave]
        running: list[subprocess.Popen[bytes] | None] = [None] * len(rows)
        while any(rows) or any(running):
            for index, row in enumerate(rows):
                process = running[index]
                if process is not None and process.poll() is not None:
                    if process.returncode:
                        for other in filter(None, running):
                            other.terminate()
                        return process.returncode
                    running[index] = process = None
                if process is None and row:
                    running[index] = subprocess.Popen([sys.executable, "-m", "training", row.pop(0), *shared])
            time.sleep(0.2)
    return 0


def _other(arguments: argparse.Namespace) -> int:
    from training import export

    if arguments.command == "sheet":
        importlib.import_module("training.sheet").draw(_run(arguments, 0.0))
    elif arguments.command == "plot":
        importlib.import_module("training.plot").plot(arguments.source, arguments.target)
    elif arguments.command == "pack":
        print(*export.pack(arguments.source, arguments.target), sep="\n")
    elif arguments.command == "unpack":
        export.unpack(arguments.source, arguments.target)
    elif arguments.command == "reopen":
        export.reopen(arguments.source, arguments.target)
    elif arguments.command == "export":
        print(json.dumps({"bytes": export.export(arguments.run, arguments.out)}))
    else:
        print(json.dumps(export.check(arguments.folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
