"""The flags of `ltx2 serve`, `ltx2 worker` and `ltx2 tokens`; each is also a setting of the environment and of ltx2.toml."""

from __future__ import annotations

import argparse

from ltx2.doors.flags import MODEL, Flag, Parser, add_group
from ltx2.spec.service import FILE

PLACE = (
    Flag("--config", "FILE", f"settings in TOML (default: {FILE} in this folder, if there is one)"),
    Flag("--data", "FOLDER", "where videos, pictures and the SQLite database are kept (default: ~/.local/share/ltx2)"),
    Flag("--db", "URL", "postgresql://host/name, for several machines (default: SQLite in the --data folder)"),
    Flag("--log-level", "LEVEL", "debug, info, warning or error (default: info)"),
    Flag("--log-prompts", None, "write prompts to the log, where they are hidden otherwise"),
    Flag("--drain-timeout", "S", "seconds that the job under way has when told to stop (default: 25)"),
    Flag("--stall", "S", "seconds without a step after which a worker counts as hung (default: 300)"),
)
SERVER = (
    Flag("--host", "ADDRESS", "address to listen on (default: 127.0.0.1, this machine only; any other needs a token)"),
    Flag("--port", "N", "port to listen on (default: 8000)"),
    Flag("--root-path", "PATH", "path under which a proxy shows the service, as in /video"),
    Flag("--trusted-proxies", "A,B", "addresses of proxies whose X-Forwarded-For and -Proto are believed"),
    Flag(
        "--hosts",
        "A,B",
        "names by which it may be called, as in video.example.org (default: any; on 127.0.0.1 its own)",
    ),
    Flag("--origins", "A,B", "web pages of other sites that may call it, as in https://example.org"),
    Flag("--workers", "N", "workers to start (default: one for each GPU, or one on the CPU)"),
    Flag("--memory-gib", "N", "GPU memory of workers on other machines: what can never fit is refused at once"),
    Flag("--url-inputs", None, "let pictures be named by URL; only public https is fetched"),
    Flag("--receivers", "A,B", "internal origins that webhooks may reach, as in http://127.0.0.1:9000"),
    Flag("--adapter", None, "add the routes /enqueue, /status and /result for another gateway"),
)
LIMITS = (
    Flag("--rpm", "N", "new jobs a minute of one token (default: 600)"),
    Flag("--open-jobs", "N", "jobs of one token that wait or run (default: 1000)"),
    Flag("--depth", "N", "waiting jobs of all tokens (default: 10000)"),
    Flag("--min-free-gib", "N", "free disk space below which nothing new is taken (default: 2)"),
    Flag("--connections", "N", "open connections (default: 2000)"),
    Flag("--keep-files", "DAYS", "how long videos are kept (default: 7)"),
    Flag("--keep-records", "DAYS", "how long records of jobs are kept (default: 30)"),
)
# Of the machine, and for a service only.
SERVED = (
    Flag(
        "--warm-up",
        "SHAPES",
        "what a worker makes before its first job, as in default,768x512x97:classic; or none (default: default,original)",
    ),
    Flag(
        "--kernel-cache", "FOLDER", "where compiled kernels are kept for the next start (default: the compilers' own)"
    ),
)
# LoRAs belong to a request of the command line; a service has none.
PER_VIDEO = ("--lora", "--lora-strength")
ACTIONS = ("add", "list", "revoke", "rotate")
SETTINGS = """Most flags are settings, too: --stall 60 is LTX2_STALL=60 in the environment, and stall = 60 in ltx2.toml.
docs/05-deploy.md lists all settings, also those without a flag."""
SERVE = f"""a first video:
  ltx2 serve
  curl -o ball.mp4 "http://127.0.0.1:8000/generate_web?prompt=a+red+ball+bounces"
for other machines:
  ltx2 tokens add ann
  ltx2 serve --host 0.0.0.0 --model Lightricks/LTX-2

Ctrl-C lets the job under way end; a second one does not. docs/04-http.md has the API.
{SETTINGS}"""
WORKER = f"""beside `ltx2 serve --no-workers`, on each GPU:
  ltx2 worker --db postgresql://host/name --data /shared/ltx2 --model Lightricks/LTX-2 --device cuda:0

--db, --data and the model must be those of the server. `ltx2 serve` alone starts its workers itself.
{SETTINGS}"""
TOKENS = """examples:
  ltx2 tokens add ann --expires 90d      a new token, printed once
  ltx2 tokens add bob --running 1 --megapixel-frames 5000
                                         one job at a time, and so much in 24 hours
  ltx2 tokens list                       who has one, and what it may do
  ltx2 tokens rotate ann --grace 24h     another token; the old one works for a day
  ltx2 tokens revoke ann                 from now on refused

Scopes: generate (make, cancel, delete), read, metrics (/metrics), admin (priorities above 0).
A running server on the same folder or database hears of it within a second."""


def add_serve(parser: Parser) -> None:
    """Add the flags of `ltx2 serve`."""
    show_as(parser, "[FLAGS]", SERVE)
    add_group(parser, "place", PLACE)
    group = add_group(parser, "server", SERVER)
    group.add_argument(
        "--no-workers", action="store_true", help="take orders only; `ltx2 worker`, here or elsewhere, does the work"
    )
    add_group(parser, "limits", LIMITS)
    _add_model(parser)
    parser.add_argument("--print-config", action="store_true", help="show every setting, without secrets, and leave")


def add_worker(parser: Parser) -> None:
    """Add the flags of `ltx2 worker`."""
    show_as(parser, "[FLAGS]", WORKER)
    add_group(parser, "place", PLACE)
    _add_model(parser)
    parser.add_argument("--print-config", action="store_true", help="show every setting, without secrets, and leave")
    # Given by `serve`: the worker ends when its standard input does.
    parser.add_argument("--attached", action="store_true", help=argparse.SUPPRESS)


def add_tokens(parser: Parser) -> None:
    """Add the flags of `ltx2 tokens`."""
    show_as(parser, "ACTION [NAME] [FLAGS]", TOKENS)
    parser.add_argument("action", choices=ACTIONS, metavar="ACTION", help="add, list, revoke or rotate")
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="whose token; videos belong to the name, whatever token it has"
    )
    add_group(parser, "place", [flag for flag in PLACE if flag.name in ("--config", "--data", "--db")])
    parser.add_argument("--scopes", metavar="A,B", help="add: generate, read, admin, metrics (default: generate,read)")
    parser.add_argument(
        "--limit", metavar="N", help="add: jobs that wait or run at once (default: what the server allows)"
    )
    parser.add_argument("--rpm", metavar="N", help="add: new jobs a minute (default: what the server allows)")
    parser.add_argument("--running", metavar="N", help="add: jobs that run at once; its others wait (default: any)")
    parser.add_argument(
        "--megapixel-frames",
        metavar="N",
        help="add: width x height x frames / 1e6 of all its jobs in 24 hours (default: any)",
    )
    parser.add_argument("--expires", metavar="TIME", help="add: as in 90d, 12h or 30m (default: never)")
    parser.add_argument("--grace", metavar="TIME", help="rotate: how long the old token still works (default: 24h)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def show_as(parser: Parser, words: str, epilog: str) -> None:
    """Give a command with many flags a short usage, and examples below them."""
    parser.usage, parser.epilog = f"{parser.prog} {words}", epilog
    parser.formatter_class = argparse.RawDescriptionHelpFormatter


def _add_model(parser: Parser) -> None:
    flags = [*(flag for flag in MODEL if flag.name not in PER_VIDEO), *SERVED]
    group = add_group(parser, "model and machine", flags)
    group.add_argument("--engine", metavar="MODULE:FUNCTION", help="another engine, made by this function: for tests")


def model_words(values: argparse.Namespace) -> list[str]:
    """The flags of the model as they were given, for another process."""
    words: list[str] = []
    for flag in (*MODEL, *SERVED, Flag("--engine", "MODULE:FUNCTION", "")):
        value = getattr(values, flag.knob, None)
        if value not in (None, False):
            words += [flag.name] if flag.value is None else [flag.name, str(value)]
    return words
