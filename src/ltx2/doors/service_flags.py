"""The flags of `ltx2 serve`, `ltx2 worker` and `ltx2 tokens`; each is also a setting of the environment and of ltx2.toml."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from ltx2.doors.flags import MODEL, Flag, Parser
from ltx2.spec.service import FILE

PLACE = (
    Flag("--config", "FILE", f"settings in TOML (default: {FILE} in this folder, if there is one)"),
    Flag("--data", "FOLDER", "videos, pictures and the SQLite database (default: ~/.local/share/ltx2)"),
    Flag("--db", "URL", "sqlite:///path, or postgresql://host/name for several machines"),
    Flag("--log-level", "LEVEL", "debug, info, warning or error"),
    Flag("--log-prompts", None, "write prompts to the log, too"),
    Flag("--drain-timeout", "S", "seconds that the job under way has when told to stop (default: 25)"),
    Flag("--stall", "S", "seconds without a step after which a worker counts as hung (default: 300)"),
)
SERVER = (
    Flag("--host", "ADDRESS", "where to listen (default: 127.0.0.1; anything else needs a token)"),
    Flag("--port", "N", "where to listen (default: 8000)"),
    Flag("--root-path", "PATH", "the path under which a proxy shows the service"),
    Flag("--trusted-proxies", "A,B", "addresses whose X-Forwarded-For and -Proto count"),
    Flag("--hosts", "A,B", "names by which the service may be called"),
    Flag("--origins", "A,B", "web pages of other sites that may call it, as in https://example.org"),
    Flag("--workers", "N", "worker processes to start (default: one for each GPU, or one on the CPU)"),
    Flag("--memory-gib", "N", "device memory of the workers, where they are on other machines"),
    Flag("--url-inputs", None, "let pictures be named by URL; only public https is fetched"),
    Flag("--receivers", "A,B", "internal origins that webhooks may reach, as in http://127.0.0.1:9000"),
    Flag("--adapter", None, "add the routes /enqueue, /status and /result"),
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
# LoRAs belong to a request of the command line; a service has none.
PER_VIDEO = ("--lora", "--lora-strength")
ACTIONS = ("add", "list", "revoke", "rotate")


def add_serve(parser: Parser) -> None:
    """Add the flags of `ltx2 serve`."""
    _add(parser, "place", PLACE)
    group = _add(parser, "server", SERVER)
    group.add_argument("--no-workers", action="store_true", help="take orders only; `ltx2 worker` does the work")
    _add(parser, "limits", LIMITS)
    _add_model(parser)
    parser.add_argument("--print-config", action="store_true", help="show every setting, without secrets, and leave")


def add_worker(parser: Parser) -> None:
    """Add the flags of `ltx2 worker`."""
    _add(parser, "place", PLACE)
    _add_model(parser)
    parser.add_argument("--print-config", action="store_true", help="show every setting, without secrets, and leave")
    # Given by `serve`: the worker ends when its standard input does.
    parser.add_argument("--attached", action="store_true", help=argparse.SUPPRESS)


def add_tokens(parser: Parser) -> None:
    """Add the flags of `ltx2 tokens`."""
    parser.add_argument("action", choices=ACTIONS, metavar="ACTION", help="add, list, revoke or rotate")
    parser.add_argument("name", nargs="?", metavar="NAME", help="whose token; jobs belong to the name")
    _add(parser, "place", [flag for flag in PLACE if flag.name in ("--config", "--data", "--db")])
    parser.add_argument("--scopes", metavar="A,B", help="generate, read, admin, metrics (default: generate,read)")
    parser.add_argument("--limit", metavar="N", help="jobs that wait or run at once")
    parser.add_argument("--rpm", metavar="N", help="new jobs a minute")
    parser.add_argument("--expires", metavar="TIME", help="as in 90d, 12h or 30m (default: never)")
    parser.add_argument("--grace", metavar="TIME", help="how long the old token works after rotate (default: 24h)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def _add(parser: Parser, title: str, flags: Iterable[Flag]) -> Any:
    group = parser.add_argument_group(title)
    for flag in flags:
        if flag.value is None:
            group.add_argument(flag.name, action="store_true", help=flag.help)
        else:
            group.add_argument(flag.name, metavar=flag.value, help=flag.help)
    return group


def _add_model(parser: Parser) -> None:
    group = _add(parser, "model and machine", [flag for flag in MODEL if flag.name not in PER_VIDEO])
    group.add_argument("--engine", metavar="MODULE:FUNCTION", help="another engine, made by this function: for tests")


def model_words(values: argparse.Namespace) -> list[str]:
    """The flags of the model as they were given, for another process."""
    words: list[str] = []
    for flag in (*MODEL, Flag("--engine", "MODULE:FUNCTION", "")):
        value = getattr(values, flag.knob, None)
        if value not in (None, False):
            words += [flag.name] if flag.value is None else [flag.name, str(value)]
    return words
