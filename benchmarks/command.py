"""How every benchmark begins and what it leaves: its command line, and a file of JSON lines that keeps what is done even
when a later part fails. Loads no torch, since `start.py` measures how long that takes."""

from __future__ import annotations

import argparse
import json
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def arguments(doc: str | None, names: Iterable[str] = (), rehearsal: str = "") -> argparse.ArgumentParser:
    """A parser for the results' file, which of `names` are wanted, and `--tiny`, with `rehearsal` as its help."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    if known := [*names]:
        parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(known)}; all when none is named")
    if rehearsal:
        parser.add_argument("--tiny", action="store_true", help=rehearsal)
    return parser


def parse(
    parser: argparse.ArgumentParser, words: Sequence[str] | None, names: Iterable[str] = (), gpu: bool = False
) -> argparse.Namespace:
    """The values; ends the process for a name that there is not, and with `gpu` for full size without one."""
    values, known = parser.parse_args(words), [*names]
    if unknown := [name for name in getattr(values, "names", ()) if name not in known]:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(known)}")
    if gpu and not values.tiny:
        import torch

        if not torch.cuda.is_available():
            parser.error("full size needs a GPU; --tiny works here")
    return values


def append(results: Path, line: dict[str, Any]) -> None:
    """One line of the file, and of the screen."""
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def failure(error: BaseException) -> dict[str, str]:
    """What the line of a failed measurement says; to be asked where the error is handled."""
    return {"error": f"{type(error).__name__}: {error}"[:1000], "trace": traceback.format_exc()[-1500:]}
