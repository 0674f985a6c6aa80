"""The command `ltx2`: generate, plan, bench, serve and the others below. Help and errors import nothing heavy.

Exit codes: 0 done, 1 failed, 2 refused, 3 does not fit this machine, 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from ltx2 import __version__
from ltx2.doors import flags, service_flags
from ltx2.doors.modal import add_modal
from ltx2.spec.errors import Ltx2Error, RefusedRequest
from ltx2.spec.settings import Settings

COMMANDS = {
    "generate": "make a video with sound from a prompt",
    "plan": "show what would be done and what it costs: no weights, no GPU",
    "bench": "measure this machine, or the quality of the embedded model",
    "models": "list what is published: sizes, licences, what each needs, what is here",
    "download": "fetch a published model: verified, resumable, only the files that are used",
    "doctor": "check this machine, or a model before it is downloaded",
    "serve": "a video service over HTTP, with a worker for each GPU",
    "worker": "make the jobs of a service, on this machine",
    "tokens": "say who may use a service: add, list, revoke, rotate",
    "modal": "look at a deployment on Modal, try it out, price it",
}
# The commands that make a request; the others have flags of their own.
REQUESTS = ("generate", "plan", "bench")
INTERRUPTED = 130
# What the base package does without: help, plans and refusals need none of it.
SERVE = {"fastapi", "starlette", "uvicorn", "sqlalchemy", "tenacity", "structlog", "prometheus_client", "multipart"}
ENGINE = {"torch", "diffusers", "transformers", "safetensors", "huggingface_hub", "av", "numpy", "PIL", "psutil"}


def entry() -> NoReturn:
    """The console script."""
    # A polite stop is a Ctrl-C: the run is cancelled and leaves no partial file.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = main(sys.argv[1:])
    _let_go()
    sys.exit(code)


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; every error is one line on stderr, or one JSON object on stdout."""
    as_json = "--json" in arguments
    try:
        return _run(arguments)
    except Ltx2Error as error:
        return _report(error, as_json)
    except KeyboardInterrupt:
        print("ltx2: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone, as in `ltx2 plan ... | head -1`.
        return 1
    except Exception as error:
        return _report(_explained(error), as_json)


def _let_go() -> None:
    """Where a reader has gone, drop what is still to be written: at its exit the interpreter would complain with code 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(arguments: Sequence[str]) -> int:
    parser, parsers = build_parsers()
    first = next((word for word in arguments if not word.startswith("-")), None)
    if first is not None and arguments[0] == first and first not in COMMANDS:
        near = difflib.get_close_matches(first, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "one of " + ", ".join(COMMANDS)
        raise RefusedRequest(f"there is no command {first!r}", hint=hint)
    values, extra = parser.parse_known_args(arguments)
    if values.command is None:
        flags.refuse_unknown(parser, extra)
        parser.print_help()
        return 0
    flags.refuse_unknown(parsers[values.command], extra)
    return _command(values.command)(values, Settings.read(os.environ))


def _command(name: str) -> Callable[[argparse.Namespace, Settings], int]:
    module = importlib.import_module(f"ltx2.doors.{'generate' if name == 'plan' else name}")
    return getattr(module, f"{name}_command")


def build_parsers() -> tuple[flags.Parser, dict[str, flags.Parser]]:
    """The parser of the command line, and those of its commands by name."""
    parser = flags.Parser(
        prog="ltx2", description="Video with sound from a prompt, with the LTX-2 family of models.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"ltx2 {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=flags.Parser)
    parsers: dict[str, flags.Parser] = {}
    for name, about in COMMANDS.items():
        sub = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        if name in REQUESTS:
            flags.add(sub, flags.GROUPS)
        parsers[name] = sub
    for name in ("generate", "plan"):
        parsers[name].add_argument("prompt", nargs="?", metavar="PROMPT", help="what the video shows and sounds like")
        parsers[name].add_argument("-o", "--output", metavar="FILE", help="the .mp4 to write (plan ignores it)")
        parsers[name].add_argument(
            "--from",
            dest="source",
            metavar="FILE",
            help="make a video again from its own metadata (--image and --lora say where those files are now)",
        )
    flags.add_bench(parsers["bench"])
    flags.add_models(parsers["models"])
    flags.add_download(parsers["download"])
    flags.add_doctor(parsers["doctor"])
    service_flags.add_serve(parsers["serve"])
    service_flags.add_worker(parsers["worker"])
    service_flags.add_tokens(parsers["tokens"])
    add_modal(parsers["modal"])
    return parser, parsers


def _explained(error: Exception) -> Ltx2Error:
    """An error that nobody raised on purpose: a missing package by name, anything else with its traceback."""
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and package in ENGINE:
        return Ltx2Error(f"{package} is not installed", hint="pip install 'ltx2[engine]'")
    if isinstance(error, ModuleNotFoundError) and package in SERVE:
        return Ltx2Error(f"{package} is not installed", hint="pip install 'ltx2[serve]'")
    if isinstance(error, ModuleNotFoundError) and package == "modal":
        return Ltx2Error(f"{package} is not installed", hint="pip install 'ltx2[modal,serve]'")
    traceback.print_exc()
    return Ltx2Error(f"{type(error).__name__}: {error}", hint="this is a bug; the lines above say where")


def _report(error: Ltx2Error, as_json: bool) -> int:
    if as_json:
        fields = {"code": error.code, "message": error.message, "knob": error.knob, "hint": error.hint}
        print(json.dumps({"error": fields}))
    print(f"ltx2: error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return error.exit_code
