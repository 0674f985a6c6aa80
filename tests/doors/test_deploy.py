"""What the deployment files and their page say is what the program knows."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from ltx2.doors import flags
from ltx2.doors.cli import build_parsers
from ltx2.spec.service import FROM_FILE, KNOBS, MACHINE, ServiceSettings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "05-deploy.md").read_text()
UNIT = (ROOT / "deploy" / "ltx2.service").read_text()
MANIFESTS: list[dict[str, Any]] = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text()))
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def check_command(words: list[str]) -> None:
    parser, parsers = build_parsers()
    values, extra = parser.parse_known_args(words)
    flags.refuse_unknown(parsers[values.command], extra)


@pytest.mark.parametrize(
    "line", [row for block in re.findall(r"^```console\n(.*?)^```", PAGE, re.M | re.S) for row in block.splitlines()]
)
def test_the_pages_commands_are_spelt_right(line: str) -> None:
    words = shlex.split(line)
    assert words[0] == "ltx2"
    check_command(words[1:])


def test_the_page_lists_every_setting_with_its_default() -> None:
    table = re.search(r"^\| setting \|.*\n\|[- |]+\|\n((?:\|.*\n)+)", PAGE, re.M)
    assert table
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")][:2] for line in table[1].splitlines()]
    shown = {None: "", (): "", "": ""}
    expected = [[field.name, shown.get(field.default, str(field.default))] for field in fields(ServiceSettings)]
    assert sorted(rows) == sorted(expected)


def test_the_unit_starts_what_there_is() -> None:
    (start,) = re.findall(r"^ExecStart=\S+/ltx2 (.*)$", UNIT, re.M)
    check_command(shlex.split(start))
    for name in re.findall(r"\bLTX2_(\w+)=", UNIT.replace("LTX2_NAME", "")):
        assert name.lower() in {*KNOBS, *MACHINE}


def test_the_manifests_start_what_there_is() -> None:
    kinds = [manifest["kind"] for manifest in MANIFESTS]
    assert kinds.count("Deployment") == 2 and "ScaledObject" in kinds
    claims = {manifest["metadata"]["name"] for manifest in MANIFESTS if manifest["kind"] == "PersistentVolumeClaim"}
    for manifest in MANIFESTS:
        if manifest["kind"] != "Deployment":
            continue
        pod = manifest["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        check_command(container["args"])
        for variable in container["env"]:
            assert variable["name"].removeprefix("LTX2_").lower() in {*KNOBS, *MACHINE, *FROM_FILE}
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert {volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]} <= claims
        if "--drain-timeout" in container["args"]:
            drain = float(container["args"][container["args"].index("--drain-timeout") + 1])
            assert drain + 30 < pod["terminationGracePeriodSeconds"]


def test_the_page_shows_the_query_of_the_scaler() -> None:
    (scaler,) = [manifest for manifest in MANIFESTS if manifest["kind"] == "ScaledObject"]
    assert scaler["spec"]["triggers"][0]["metadata"]["query"] in PAGE


def test_the_image_copies_what_there_is_and_starts_what_there_is() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.M):
        *sources, _ = shlex.split(line)
        for source in sources:
            assert (ROOT / source).exists() and source.removeprefix("./") in allowed, source
    starts = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.M)
    assert len(starts) == 2
    for start in starts:
        check_command(yaml.safe_load(start))
    project = (ROOT / "pyproject.toml").read_text()
    for extra in set(re.findall(r"'\.\[(.*?)\]'", DOCKERFILE)):
        assert all(f"\n{name} = [" in project for name in extra.split(","))
