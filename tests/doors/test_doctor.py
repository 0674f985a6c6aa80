"""The verdicts of `ltx2 doctor` in every state of a machine: packages, disk, GPUs, what fits, and the service."""

from __future__ import annotations

import argparse
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch
from sqlalchemy import text

from ltx2.doors import doctor, hardware, verdict
from ltx2.doors.cli import main
from ltx2.jobs.store import Store
from ltx2.models.checkup import Finding
from ltx2.models.describe import Source
from ltx2.spec.errors import RefusedRequest
from ltx2.spec.precision import Held
from ltx2.spec.settings import Settings

GIB = 2**30


class Space(NamedTuple):
    total: int
    used: int
    free: int


def said(finding: Finding) -> str:
    return verdict._verdict(finding)


def test_a_verdict_for_each_and_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    fine, doubtful = Finding("a", True, "x"), Finding("bbb", True, "y", note=True)
    assert verdict.tell([fine, doubtful], False) == 0
    assert capsys.readouterr().out == "ok     a    x\nnote   bbb  y\n"
    assert verdict.tell([fine, Finding("c", False, "z", note=True)], False) == 1
    assert "WRONG  c  z" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("version", "verdict_", "part"),
    [
        ("0.42.1", "ok", "diffusers 0.42.1"),
        ("0.99.0", "WRONG", "diffusers<0.43,>=0.42.1 is needed: pip install"),
        (None, "WRONG", "diffusers missing; pip install 'ltx2[engine]'"),
    ],
)
def test_packages_of_another_version_are_wrong(version: str | None, verdict_: str, part: str) -> None:
    finding = doctor._packages({"torch": torch.__version__, "diffusers": version})
    assert said(finding) == verdict_ and part in finding.text


def test_packages_are_taken_as_they_are_where_nobody_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    assert said(doctor._packages({"diffusers": "0.99.0"})) == "ok"


@pytest.mark.parametrize(("free", "verdict_"), [(500 * GIB, "ok"), (GIB, "note"), (0, "note")])
def test_a_disk_without_room_is_told(monkeypatch: pytest.MonkeyPatch, free: int, verdict_: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Space(free, 0, free))
    disk, hub = doctor._disk_and_hub()
    assert said(disk) == verdict_ and ("no room for a published model" in disk.text) == (verdict_ == "note")
    assert said(hub) == "note", "nobody asked the hub"


def test_a_folder_that_cannot_be_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert said(doctor._disk("disk", tmp_path / "file" / "hub", 0, "", True)) == "WRONG"
    assert said(doctor._disk("disk", tmp_path / "new" / "hub", 0, "", True)) == "ok"
    (tmp_path / "loop").symlink_to(tmp_path / "nowhere")
    assert said(doctor._disk("disk", tmp_path / "loop" / "hub", 0, "", True)) == "WRONG"


Ends = subprocess.CompletedProcess[str]


def driver(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], Ends] | None) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None if answer is None else "/usr/bin/nvidia-smi")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer and answer())


def hung() -> Ends:
    raise subprocess.TimeoutExpired("nvidia-smi", 20)


BROKEN = Ends([], 9, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n\n", "")


@pytest.mark.parametrize(
    ("answer", "device", "verdict_", "part"),
    [
        (None, "auto", "note", "none found: the CPU works"),
        (lambda: Ends([], 0, "570.86\n", ""), "auto", "WRONG", "driver (570.86) is there, but torch"),
        (lambda: Ends([], 0, "570.86\n", ""), "cpu", "note", "sees no GPU: "),
        (lambda: BROKEN, "auto", "WRONG", "couldn't communicate"),
        (lambda: BROKEN, "cpu", "note", "couldn't communicate"),
        (hung, "auto", "WRONG", "nvidia-smi does not answer"),
        (lambda: Ends([], 6, "", ""), "auto", "WRONG", "nvidia-smi fails: nothing"),
    ],
)
def test_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[], Ends] | None, device: str, verdict_: str, part: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    driver(monkeypatch, answer)
    memory, gpu = hardware.look(device)
    assert said(memory) == "ok" and said(gpu) == verdict_ and part in gpu.text


@pytest.mark.parametrize(
    ("capability", "known", "verdict_"),
    [
        ((9, 0), ["sm_80", "sm_90a"], "ok"),
        ((8, 9), ["sm_75", "sm_86", "sm_120"], "ok"),
        ((12, 1), ["sm_90", "compute_90"], "ok"),
        ((6, 1), ["sm_75", "sm_120", "compute_120"], "WRONG"),
        ((10, 3), ["sm_90", "sm_120"], "WRONG"),
    ],
)
def test_a_gpu_that_torch_has_kernels_for(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], known: list[str], verdict_: str
) -> None:
    gpus: dict[str, Any] = {
        "is_available": lambda: True, "device_count": lambda: 1, "mem_get_info": lambda _: (GIB, 2 * GIB),
        "get_device_capability": lambda _: capability, "get_device_name": lambda _: "a GPU",
        "get_arch_list": lambda: known,
    }  # fmt: skip
    for name, answer in gpus.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    driver(monkeypatch, lambda: Ends([], 0, "570.86\n", ""))
    _, gpu = hardware.look("auto")
    assert said(gpu) == verdict_ and "1.0 GiB of 2.0 GiB free, driver 570.86" in gpu.text
    assert ("has kernels for" in gpu.text) == (verdict_ == "WRONG")

    def lost(_: int) -> None:
        raise RuntimeError("CUDA error: device is busy\nmore")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lost)
    _, gpu = hardware.look("auto")
    assert said(gpu) == "WRONG" and gpu.text.startswith("it does not answer: CUDA error: device is busy;")


@pytest.mark.parametrize(
    ("free", "embedded", "published"),
    [(1000 * GIB, "ok", "ok"), (150 * GIB, "ok", "ok"), (8 * GIB, "ok", "note"), (GIB // 10, "WRONG", "note")],
)
def test_what_fits(monkeypatch: pytest.MonkeyPatch, free: int, embedded: str, published: str) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: argparse.Namespace(available=free))
    held = Held("fp32", fast=False)
    tiny = hardware.fits("tiny", Source("tiny"), "cpu", held, needed=True)
    large = hardware.fits("ltx-2", Source("ltx-2", "random"), "cpu", held, needed=False)
    assert (said(tiny), said(large)) == (embedded, published)
    assert ("does not fit" in large.text) == (published == "note")
    # What does not fit beside what does is named with its own need.
    assert ("would take" in large.text) == (free == 150 * GIB)


def test_the_model_that_is_named_must_be_there_and_fit(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    def model(name: str) -> Finding:
        return next(iter(doctor._models(argparse.Namespace(), Settings(model=name, device="cpu"))))

    assert said(model(str(checkpoint))) == "ok"
    assert said(model("/no/such/model")) == "WRONG"
    monkeypatch.setattr(psutil, "virtual_memory", lambda: argparse.Namespace(available=1000))
    assert said(model(str(checkpoint))) == "WRONG"


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (Settings(device="cuda:7"), "there is no cuda:7 here (cpu works)"),
        (Settings(device="cpu", text_encoder_device="cuda:7"), "text_encoder_device: there is no cuda:7"),
        (Settings(device="cpu", attention="fp8"), "attention: no fp8 here"),
        (Settings(device="cpu", activation_scales="static"), "static goes with fp8 only"),
        (Settings(device="cpu", precision="fp8", lora_mode="merged"), "cannot be merged into fp8"),
    ],
)
def test_settings_that_no_model_can_be_loaded_with(settings: Settings, part: str) -> None:
    (finding,) = doctor._models(argparse.Namespace(), settings)
    assert said(finding) == "WRONG" and part in finding.text


def service(monkeypatch: pytest.MonkeyPatch, data: Path, **more: str) -> dict[str, Finding]:
    for name, value in ({"data": str(data)} | more).items():
        monkeypatch.setenv(f"LTX2_{name.upper()}", value)
    return {finding.subject: finding for finding in doctor._service()}


def test_the_service_and_its_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    assert service(monkeypatch, data) == {}, "there is none"
    data.mkdir()
    found = service(monkeypatch, data)
    assert (said(found["service"]), said(found["database"])) == ("ok", "note") and not list(data.iterdir())
    store = Store(f"sqlite:///{data}/jobs.db")
    assert said(service(monkeypatch, data)["database"]) == "ok"
    for version, verdict_, part in ((2, "note", "brings to"), (99, "WRONG", "schema version 99")):
        row = text("update ltx2_schema set version = :version")
        store.database.write(lambda connection, v=version, row=row: connection.execute(row, {"version": v}))
        database = service(monkeypatch, data)["database"]
        assert said(database) == verdict_ and part in database.text
    store.close()
    with sqlite3.connect(data / "jobs.db") as connection:
        assert connection.execute("select version from ltx2_schema").fetchone() == (99,), "nothing was changed"
    (data / "jobs.db").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    assert said(service(monkeypatch, data)["database"]) == "WRONG"
    full = service(monkeypatch, data, min_free_gib="1e9")["service"]
    assert said(full) == "WRONG" and "nothing new is taken below 1e+09 GiB" in full.text


@pytest.mark.parametrize("url", ["postgresql://127.0.0.1:1/x", "postgresql://h:abc/x", "mysql://x/y", "nonsense"])
def test_a_database_that_cannot_be_reached_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ltx2.jobs.database.peek.__defaults__", (0.1,))
    monkeypatch.chdir(tmp_path)
    found = service(monkeypatch, tmp_path, db=url)["database"]
    assert said(found) == "WRONG" and "\n" not in found.text
    if url == "nonsense":
        assert main(["tokens", "list"]) == 2
        assert "the database's URL cannot be read" in capsys.readouterr().err


def test_wrong_settings_of_the_service_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ltx2.toml").write_text('prot = "8000"\n')
    (finding,) = doctor._service()
    assert said(finding) == "WRONG" and "did you mean port" in finding.text


def test_a_model_that_is_nowhere_is_refused() -> None:
    with pytest.raises(RefusedRequest):
        doctor.check_model("ltx-9", None)
