"""Documents are true: README commands run, its tables and those of the request page are what the code says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ltx2.doors import flags
from ltx2.doors.cli import build_parsers, main
from ltx2.spec import errors
from ltx2.spec.card import Card
from ltx2.spec.plan import resolve
from ltx2.spec.presets import PRESETS
from ltx2.spec.request import Request, request
from ltx2.spec.service import MACHINE

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
REQUEST_PAGE = (ROOT / "docs" / "01-request.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands(language: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for block in blocks(language) for line in block.splitlines()]


def rows(text: str, header: str) -> list[list[str]]:
    """Cells of every table whose header line starts with `header`."""
    found: list[list[str]] = []
    for table in re.findall(rf"^{re.escape(header)}.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, flags=re.MULTILINE):
        found += [[_cell(text) for text in line.strip("|").split("|")] for line in table.splitlines()]
    return found


def _cell(text: str) -> str:
    text = text.strip()
    return text.strip("`") if text.count("`") == 2 else text


def test_readme_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in commands("sh"):
        assert main(words) == 0, words
    assert {path.name for path in tmp_path.iterdir()} == {"out.mp4", "star.mp4", "again.mp4"}
    assert (tmp_path / "star.mp4").read_bytes() == (tmp_path / "again.mp4").read_bytes()


def test_readme_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "square.mp4").stat().st_size > 1000


@pytest.mark.parametrize("words", commands("console"), ids=" ".join)
def test_readme_commands_that_need_more_are_spelt_right(words: list[str]) -> None:
    parser, parsers = build_parsers()
    values, extra = parser.parse_known_args(words)
    flags.refuse_unknown(parsers[values.command], extra)
    if values.command == "generate":
        assert flags.to_request(values).prompt == words[1]


def test_readme_presets() -> None:
    card = Card(name="LTX-2", distilled_lora=True, upsampler=True)
    table = rows(README, "| preset |")
    assert [row[0] for row in table] == list(PRESETS["2.0"])
    for name, _, size, steps, passes in table:
        plan = resolve(request(prompt="x", preset=name), card)
        assert size == f"{plan.width}x{plan.height}, {plan.frames} frames"
        assert steps == " + ".join(str(stage.steps) for stage in plan.stages)
        assert int(passes) == plan.evaluations


def test_readme_has_every_setting_of_the_machine() -> None:
    assert {row[0] for row in rows(README, "| variable |")} == {f"LTX2_{name.upper()}" for name in MACHINE}


def test_readme_names_the_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"setup", "demo", "test", "check", "fix", "bench"} <= targets
    assert set(re.findall(r"`?make (\w+)", README)) <= targets


def test_request_page_has_every_knob() -> None:
    table = rows(REQUEST_PAGE, "| knob |")
    assert {row[0] for row in table} == set(Request.model_fields)
    _, parsers = build_parsers()
    for knob, flag, *_ in table:
        assert flag == "PROMPT" or flag in parsers["generate"].known(), knob


def test_request_page_has_every_flag_of_the_machine() -> None:
    named = {row[0] for row in rows(REQUEST_PAGE, "| flag |")} | {row[1] for row in rows(REQUEST_PAGE, "| knob |")}
    listed = {flag.name for title, group in flags.GROUPS.items() if title != "output" for flag in group}
    assert named - {"PROMPT"} == listed


def test_request_page_values() -> None:
    values = {row[0]: row[2] for row in rows(REQUEST_PAGE, "| knob |")}
    for name in PRESETS["2.0"]:
        assert f"`{name}`" in values["preset"]
    for knob in ("sampler", "schedule"):
        options = re.findall(r"'([\w-]+)'", str(Request.model_fields[knob].annotation))
        assert options == re.findall(r"`([\w-]+)`", values[knob])


def test_request_page_has_every_error() -> None:
    def leaves(kind: type[errors.Ltx2Error]) -> set[tuple[str, str]]:
        below = set[tuple[str, str]]()
        for child in kind.__subclasses__():
            if child.__module__ != errors.__name__:
                continue  # a floor's own error, known to its own page
            below |= {(child.code, str(child.exit_code))} | leaves(child)
        return below

    assert {(row[0], row[1]) for row in rows(REQUEST_PAGE, "| code |")} == leaves(errors.Ltx2Error)
