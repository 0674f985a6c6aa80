"""benchmarks/README.md names every script, with names and flags that it has."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.benchmarks.conftest import SCRIPTS

TEXT = (SCRIPTS / "README.md").read_text()
ROWS = [line for line in TEXT.splitlines() if line.startswith("|")][2:]


def test_every_script_is_there() -> None:
    named = set(re.findall(r"^\| `(\w+)\.py`", TEXT, flags=re.MULTILINE))
    assert named == {file.stem for file in SCRIPTS.glob("*.py") if '__name__ == "__main__"' in file.read_text()}


def test_flags_exist() -> None:
    shared = (SCRIPTS / "command.py").read_text()
    script = ""
    for row in ROWS:
        found = re.match(r"\| `(\w+\.py)`", row)
        script = found[1] if found else script
        source = (SCRIPTS / script).read_text() + shared
        for flag in re.findall(r"--[a-z-]+", row):
            assert f'"{flag}"' in source, (script, flag)


def test_names_exist(script: Callable[[str], Any]) -> None:
    for name, table in {"speed": "PARTS", "load": "PARTS", "weights": "BENCHES", "h200": "NAMES"}.items():
        asked = [words for call in re.findall(rf"`{name}\.py R ([^`]*)`", TEXT) for words in _names(call)]
        assert asked and {*asked} <= {*getattr(script(name), table)}


def _names(call: str) -> list[str]:
    return re.sub(r"[\[\]]", "", call.partition("--")[0]).split()
