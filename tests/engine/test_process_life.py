"""The life of an engine's process: loading, failing to load, restarts, its end with its parent, what it is told."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ltx2
from ltx2.engine.process import Limits, ProcessEngine
from ltx2.spec.errors import (
    CheckpointError,
    GenerationFailed,
    Ltx2Error,
    RefusedRequest,
    WorkerCrashed,
)
from ltx2.spec.events import Finished, Progress
from ltx2.spec.plan import Plan
from tests.engine.children import HERE, QUICK, Make, is_gone, run, works
from tests.import_path import ROOT
from tests.jobs.asks import plan, wait_for


def test_the_state_is_told_and_loading_beats(make: Make, tmp_path: Path) -> None:
    engine = make(load=1.5)
    assert engine.state == "STARTING" and engine.pid is None
    events = engine(plan(), tmp_path / "clip.mp4")
    assert next(events) == Progress("load", 0, 1)
    assert next(event for event in events if event != Progress("load", 0, 1)) == Progress("text", 1, 1)
    assert engine.state == "BUSY" and not engine.ready()
    with pytest.raises(RuntimeError, match="one video at a time"):
        run(engine, tmp_path / "other.mp4")
    events.close()
    assert engine.state == "READY" and engine.ready()


@pytest.mark.parametrize(
    ("fail", "kind", "message"),
    [
        ("checkpoint", CheckpointError, "model: a byte is wrong (download it again)"),
        ("unforeseen", GenerationFailed, "the engine broke: FileNotFoundError: /models/weights.safetensors"),
        ("die", WorkerCrashed, "the engine's process died while it loaded"),
        ("cry", WorkerCrashed, "the engine's process died while it loaded (its last words: no driver | no hope)"),
    ],
)
def test_e8_why_it_could_not_load_reaches_the_caller(
    make: Make, fail: str, kind: type[Ltx2Error], message: str, tmp_path: Path
) -> None:
    engine = make(fail=fail)
    assert engine.wait(30) == "FAILED" and engine.reason == message
    with pytest.raises(kind) as caught:
        run(engine, tmp_path / "clip.mp4")
    assert type(caught.value) is kind and str(caught.value) == message
    assert caught.value.knob == ("model" if fail == "checkpoint" else None)


def test_a_child_finds_what_its_parent_imports_from_relative_folders_without_an_installation(tmp_path: Path) -> None:
    script = """
from ltx2.engine.process import ProcessEngine
from tests.engine.children import FAULTY, HERE
with ProcessEngine({}, FAULTY, environment=HERE) as engine:
    assert engine.wait(60) == "READY", engine.reason
"""
    (tmp_path / "source").symlink_to(Path(ltx2.__file__).parents[1])
    (tmp_path / "root").symlink_to(ROOT)
    # Folders of PYTHONPATH are no sites: what an editable installation says there does not count.
    folders = ["source", "root", *(path for path in sys.path if path.endswith("-packages"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-c", script], cwd=tmp_path, env=environment, check=True, timeout=120)


def test_e8_a_load_that_works_the_second_time_is_ready(make: Make, tmp_path: Path) -> None:
    engine = make(fail="first", marker=str(tmp_path / "marker"))
    assert engine.wait(30) == "FAILED"
    wait_for(engine.ready)
    assert engine.reason is None
    works(engine, tmp_path)


def test_a_system_without_room_for_a_process_is_a_failed_start_that_is_tried_again(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_more: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    engine = make()
    with monkeypatch.context() as patch:
        patch.setattr("ltx2.engine.spawn.subprocess.Popen", refuse)
        assert engine.wait(30) == "FAILED" and "cannot be started: Resource temporarily" in (engine.reason or "")
    wait_for(engine.ready)
    works(engine, tmp_path)


def test_closing_at_any_moment_leaves_no_child(make: Make) -> None:
    for pause in (0.0, 0.001, 0.01, 0.05, 0.3):
        engine = make(load=1.0)
        engine.start()
        time.sleep(pause)
        pid = engine.pid
        engine.close()
        assert engine.pid is None and engine.state == "CLOSED" and (pid is None or is_gone(pid))
        with pytest.raises(WorkerCrashed, match="closed"):
            run(engine, Path("/nowhere/clip.mp4"))


def test_e8_a_load_that_takes_too_long_has_its_own_limit(make: Make) -> None:
    engine = make(Limits(start=1.0, kill=0.1, rest=60.0), load=60.0)
    assert engine.wait(30) == "FAILED"
    assert engine.reason == "the engine did not load within 1 s"
    wait_for(lambda: engine.pid is None)


def test_e10_failing_children_are_not_restarted_in_a_hot_loop(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make(Limits(start=30, rest=0.2, longest_rest=0.4), fail="die")
    begin = time.monotonic()
    assert not engine.defunct
    engine.start()
    wait_for(lambda: engine.defunct)
    assert time.monotonic() - begin > 0.2 + 0.4, "rests of 0.2 and 0.4 s lie between three deaths"


def test_e10_a_finished_video_forgives(make: Make, tmp_path: Path) -> None:
    engine = make(QUICK)
    for _ in range(2):
        with pytest.raises(WorkerCrashed):
            run(engine, tmp_path / "clip.mp4", "die")
    works(engine, tmp_path)
    with pytest.raises(WorkerCrashed):
        run(engine, tmp_path / "clip.mp4", "die")
    assert not engine.defunct


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_e11_a_child_dies_with_its_parent(busy: bool, how: signal.Signals, tmp_path: Path) -> None:
    script = f"""
import sys, time
from pathlib import Path
from ltx2.engine.process import ProcessEngine
from tests.jobs.asks import plan
engine = ProcessEngine({{"step": 60.0 if {busy} else 0.0}}, "tests.engine.faulty:make", None, {HERE!r})
events = engine(plan(), Path({str(tmp_path / "clip.mp4")!r}))
list(events) if not {busy} else next(event for event in events if event.phase == "text")
print(engine.pid, flush=True)
time.sleep(60)
"""
    environment = {**os.environ, **HERE}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert not is_gone(pid)
        parent.send_signal(how)
        begin = time.monotonic()
        wait_for(lambda: is_gone(pid), 5)
        print(f"the child was gone after {time.monotonic() - begin:.2f} s")


def test_e11_a_stopped_child_dies_with_its_parent_too(tmp_path: Path) -> None:
    # The parent-death signal alone reaches it: it reads no pipe any more.
    script = f"""
import os, signal, time
from ltx2.engine.process import ProcessEngine
engine = ProcessEngine({{}}, "tests.engine.faulty:make", None, {HERE!r})
assert engine.wait(30) == "READY"
os.kill(engine.pid, signal.SIGSTOP)
print(engine.pid, flush=True)
time.sleep(60)
"""
    environment = {**os.environ, **HERE}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        parent.kill()
        wait_for(lambda: is_gone(pid), 5)


def test_e13_a_device_that_is_not_there_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from ltx2.engine.factory import device_of

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert device_of("auto") == "cpu" and device_of("cpu") == "cpu"
    with pytest.raises(RefusedRequest, match="there is no cuda:0 here: ") as caught:
        device_of("cuda:0")
    assert caught.value.knob == "device" and caught.value.hint == "cpu works"
    if torch.version.cuda is None:
        assert "knows no CUDA" in str(caught.value)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(RefusedRequest, match="CUDA_VISIBLE_DEVICES hides"):
        device_of("cuda")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")

    def old() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update")

    monkeypatch.setattr(torch.cuda, "init", old)
    with pytest.raises(RefusedRequest, match="driver on your system is too old"):
        device_of("cuda")


def test_the_embedded_model_in_a_child_is_warm_when_it_is_ready(tmp_path: Path) -> None:
    from ltx2.engine.factory import options
    from ltx2.models.describe import Source, read_card
    from ltx2.pipeline.mux import read_plan
    from ltx2.spec.plan import resolve
    from ltx2.spec.request import request

    source = Source("tiny")
    wish = request(prompt="a red ball", seed=3, width=64, height=64, frames=9, steps=1, preset="dev")
    asked: Plan = resolve(wish, read_card(source))
    with ProcessEngine(options(source, "cpu", warm_up=[asked])) as engine:
        assert engine.wait(300) == "READY", engine.reason
        assert isinstance(list(engine(asked, tmp_path / "clip.mp4"))[-1], Finished)
        assert read_plan(tmp_path / "clip.mp4") == asked


def test_e8_a_model_that_is_not_there_is_a_failed_start(tmp_path: Path) -> None:
    from ltx2.engine.factory import options
    from ltx2.models.describe import Source

    with ProcessEngine(options(Source(str(tmp_path / "nothing.safetensors")))) as engine:
        assert engine.wait(60) == "FAILED" and engine.reason and "does not exist" in engine.reason
        wait_for(lambda: engine.pid is None)


def test_this_side_of_the_pipe_imports_no_torch() -> None:
    script = """
import sys
import ltx2.engine.process, ltx2.engine.factory
from ltx2.models.describe import Source
ltx2.engine.factory.options(Source("tiny"))
heavy = {"torch", "diffusers", "transformers", "numpy"} & sys.modules.keys()
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_nothing_is_pickled_anywhere() -> None:
    banned = ("pickle", "dill", "cloudpickle", "marshal", "shelve", "multiprocessing", "joblib")
    found = []
    # The bench's judges are a pool of this very process's making, on one machine, with nothing from outside in it.
    for path in {*(ROOT / "src").rglob("*.py")} - {ROOT / "src/ltx2/doors/quality.py"}:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            words = line.replace(",", " ").split()
            if words[:1] in (["import"], ["from"]) and {word.partition(".")[0] for word in words[1:]} & {*banned}:
                found.append(f"{path.relative_to(ROOT)}:{number}: {line}")
    assert found == []


def test_the_child_is_told_no_secret_and_holds_no_other_descriptor(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTER_TOKEN", "letmein")
    monkeypatch.setenv("LTX2_DB", "postgresql://user:word@host/db")
    ours, theirs = socket.socketpair()
    os.set_inheritable(ours.fileno(), True)
    with ours, theirs:
        engine = make()
        assert engine.wait(30) == "READY"
        told = Path(f"/proc/{engine.pid}/environ").read_bytes()
        assert b"letmein" not in told and b"LTX2_DB" not in told
        sockets = [str(path.readlink()) for path in Path(f"/proc/{engine.pid}/fd").iterdir()]
        assert sum(link.startswith("socket:") for link in sockets) == 1
