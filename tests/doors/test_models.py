"""`ltx2 models`, `ltx2 download` and `ltx2 doctor`, from the words to the exit codes, against a hub on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from ltx2.doors.cli import main
from ltx2.models import hub
from tests.data_files import hear_interrupts
from tests.doors.test_cli import modules_after
from tests.fake_hub import FakeHub, safetensors, serve
from tests.models.test_hub import point_to

NAME = "someone/small-distilled"
UPSAMPLER = "ltx-2-spatial-upscaler-x2-1.0.safetensors"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serve(FakeHub()) as state:
        point_to(state.endpoint, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "WAIT_SECONDS", 0.0)
        yield state


def upload(fake: FakeHub, folder: Path) -> None:
    fake.add(
        NAME, {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    )


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("words", [["models", "--help"], ["download", "--help"], ["doctor", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    assert modules_after(*words) == set()


def test_the_table_needs_no_torch() -> None:
    assert not modules_after("models") & {"torch", "diffusers", "transformers"}


def test_the_table(fake: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    tiny = next(line for line in lines if line.startswith("tiny"))
    assert "Apache-2.0" in tiny and tiny.endswith("here")
    fp8 = next(line for line in lines if line.startswith("ltx-2-dev-fp8")).split()
    assert fp8[1:7] == ["2.0", "dev", "27.1", "69", "/", "52"]
    assert "not offered: rotated int8" in next(line for line in lines if line.startswith("ltx-2.5-int8"))
    assert "not offered" not in next(line for line in lines if line.startswith("ltx-2-dev-fp4"))
    assert main(["models", "--json"]) == 0
    rows = report(capsys)["models"]
    assert isinstance(rows, list) and [row["name"] for row in rows if row["here"]] == ["tiny"]
    assert fake.log == []


def test_download_then_work_offline(
    fake: FakeHub, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(fake, checkpoint)
    assert main(["download", NAME]) == 2
    assert "--anyway" in capsys.readouterr().err
    assert main(["download", NAME, "--anyway"]) == 0
    captured = capsys.readouterr()
    assert captured.out.endswith(f"use it with --model {NAME}\n")
    assert "files of someone/small-distilled at" in captured.err
    fake.repositories.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["plan", "a cat", "--model", NAME, "--json"]) == 0
    assert report(capsys)["plan"]
    assert main(["download", NAME]) == 2
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err


def test_download_to_a_folder(
    fake: FakeHub, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upload(fake, checkpoint)
    folder = tmp_path / "here" / "model"
    words = ["download", NAME, "--folder", str(folder), "--anyway", "--json", "--quiet"]
    assert main(words) == 0
    captured = capsys.readouterr()
    first = json.loads(captured.out)
    assert captured.err == "" and first["use"] == f"--model {folder}" and first["fetched"] == first["bytes"] > 0
    assert main(words) == 0
    assert report(capsys)["fetched"] == 0
    assert main(["doctor", str(folder), "--json"]) == 0
    assert report(capsys)["ok"] is True
    assert main(["download", NAME, "--revision", "no-such-branch", "--anyway"]) == 2


def test_download_of_one_file(fake: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    fake.add("Lightricks/LTX-2", {UPSAMPLER: safetensors({"initial_conv.weight": (3,)})})
    assert main(["download", "ltx-2-upsampler"]) == 2
    assert "missing for 2.0" in capsys.readouterr().err
    assert main(["download", "ltx-2-upsampler", "--anyway", "--json"]) == 0
    place = Path(str(report(capsys)["path"]))
    assert place.name == UPSAMPLER and place.exists()
    assert main(["models", "--json"]) == 0
    rows = report(capsys)["models"]
    assert isinstance(rows, list)
    assert {row["name"]: row["here"] for row in rows if row["here"]}["ltx-2-upsampler"] == str(place)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["download"], "NAME"),
        (["download", "tiny"], "part of the package"),
        (["download", "ltx-9"], "ltx2 models"),
        (["download", "ltx-2.5-int8"], "rotated int8"),
        (["download", "nobody/nothing"], "no nobody/nothing on the hub"),
        (["doctor", "nobody/nothing"], "no nobody/nothing on the hub"),
        (["doctor", "ltx-9"], "ltx2 models"),
        (["models", "--width", "64"], "unknown flag --width"),
    ],
)
def test_refusals(fake: FakeHub, words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert part in capsys.readouterr().err


def test_doctor_finds_what_is_wrong(fake: FakeHub, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    upload(fake, checkpoint)
    assert main(["doctor", NAME]) == 1
    text = capsys.readouterr().out
    assert "WRONG  transformer" in text and "ok     hub" in text
    assert main(["doctor", "nobody/nothing", "--json"]) == 2
    assert report(capsys)["error"]


def test_doctor_of_the_machine(fake: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    answer = report(capsys)
    findings = answer["findings"]
    assert isinstance(findings, list)
    subjects = {finding["subject"]: finding["text"] for finding in findings}
    assert {"python", "packages", "disk", "hub", "memory", "tiny", "ltx-2", "ltx-2.3", "ltx-2.5"} <= subjects.keys()
    assert "torch" in subjects["packages"] and fake.endpoint in subjects["hub"]


def test_doctor_without_the_engine(
    fake: FakeHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ltx2.doors import doctor

    monkeypatch.setattr(doctor, "_version", lambda name: None)
    assert main(["doctor"]) == 1
    assert "pip install 'ltx2[engine]'" in capsys.readouterr().out


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL], ids=lambda stop: stop.name)
def test_an_interrupted_download_goes_on(stop: signal.Signals, tmp_path: Path) -> None:
    with serve(FakeHub(delay=0.02)) as fake:
        fake.add(NAME, {"x.safetensors": safetensors({"a": (2_000_000,)})})
        command = [sys.executable, "-m", "ltx2", "download", f"{NAME}/x.safetensors", "--anyway", "--json"]
        environment = os.environ | {"HF_ENDPOINT": fake.endpoint, "LTX2_CACHE": str(tmp_path / "cache")}
        environment.pop("HF_HUB_CACHE", None)
        running = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=hear_interrupts,
        )
        parts: list[Path] = []
        while not any(part.stat().st_size > 200_000 for part in parts):
            assert running.poll() is None, "it ended before it was stopped"
            time.sleep(0.02)
            parts = list(tmp_path.rglob("*.part"))
        running.send_signal(stop)
        assert running.wait(timeout=20) == (130 if stop == signal.SIGINT else -stop)
        fake.delay = 0
        fake.log.clear()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        answer = json.loads(done.stdout)
        assert 0 < answer["fetched"] <= answer["bytes"] - 200_000
        start = (fake.bodies()[0][1] or "").removeprefix("bytes=").split("-")[0]
        assert int(start) >= 200_000
        assert list(tmp_path.rglob("*.part")) == []
