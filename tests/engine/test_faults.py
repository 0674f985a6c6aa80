"""Faults inside the engine: memory that runs out once and twice, a full disk, a lost device."""

from __future__ import annotations

import errno
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import ltx2.engine.engine as engine_module
from ltx2.engine import faults
from ltx2.engine.engine import Engine
from ltx2.engine.memory import Fit
from ltx2.models.components import Models
from ltx2.models.fast import Stage, passes
from ltx2.models.holding import Holding
from ltx2.models.residency import Residency
from ltx2.models.small import small
from ltx2.spec.errors import (
    DoesNotFit,
    GenerationFailed,
    InvalidOutput,
    Ltx2Error,
    OutOfMemory,
    OutOfRoom,
    WorkerCrashed,
)
from ltx2.spec.events import Event, Finished, Progress, Retrying
from ltx2.spec.plan import Plan, resolve
from ltx2.spec.request import request
from tests.small_disk import small_disk


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(small("2.0"))


@pytest.fixture(scope="module")
def plan(engine: Engine) -> Plan:
    wish = request(prompt="a cat", preset="distilled", seed=1, width=64, height=64, frames=9)
    return resolve(wish, engine.models.card)


class Failing:
    """Stands in for `generate`: the first `times` runs raise an error after a step, later ones are real."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception], times: int):
        self.error, self.times = error, times
        self.real = engine_module.generate
        self.tiled: list[bool] = []
        self.alive: list[bool] = []
        self.last: weakref.ref[torch.Tensor] | None = None
        monkeypatch.setattr(engine_module, "generate", self)

    def __call__(self, models: Any, plan: Plan, out: Path, tiled: bool, *how: Any) -> Iterator[Progress]:
        self.alive.append(self.last is not None and self.last() is not None)
        self.tiled.append(tiled)
        if len(self.tiled) > self.times:
            yield from self.real(models, plan, out, tiled, *how)
            return
        large = torch.zeros(1000)
        self.last = weakref.ref(large)
        yield Progress("text", 1, 1)
        # Made here, for an error that is kept keeps the frames that it went through.
        raise self.error()


def run(engine: Engine, plan: Plan, out: Path) -> list[Event]:
    return list(engine.generate(plan, out))


ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory"),
        lambda: RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        lambda: RuntimeError(ALLOCATOR),
        lambda: RuntimeError("Triton Error [CUDA]: out of memory"),
        lambda: RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        MemoryError,
    ],
    ids=["cuda", "graph", "cpu", "triton", "cudnn", "python"],
)
def test_e4_memory_that_runs_out_is_tried_once_more_frugally(
    engine: Engine, plan: Plan, error: Callable[[], Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(monkeypatch, error, 1)
    gc.disable()
    try:
        events = run(engine, plan, tmp_path / "clip.mp4")
    finally:
        gc.enable()
    retrying = [number for number, event in enumerate(events) if isinstance(event, Retrying)]
    assert retrying == [1] and isinstance(events[-1], Finished) and (tmp_path / "clip.mp4").exists()
    assert failing.tiled == [False, True]
    assert failing.alive == [False, False], "the tensors of the first try are gone when the second begins"


def test_e4_memory_that_runs_out_twice_has_its_name_and_the_next_run_works(
    engine: Engine, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(monkeypatch, lambda: torch.OutOfMemoryError("CUDA out of memory"), 2)
    with pytest.raises(OutOfMemory, match="64x64, 9 frames") as caught:
        run(engine, plan, tmp_path / "clip.mp4")
    assert caught.value.code == "out_of_memory" and caught.value.exit_code == 3 and len(failing.tiled) == 2
    assert not list(tmp_path.iterdir())
    assert isinstance(run(engine, plan, tmp_path / "clip.mp4")[-1], Finished)


def test_what_the_fast_path_keeps_gives_way_to_a_plan_that_needs_the_room(
    engine: Engine, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = engine.models.networks
    passes(networks["transformer"])
    # As the graphs of the text encoder on a GPU.
    networks["text_encoder"].__dict__["_ltx2_twin"] = object()
    seen: list[bool] = []

    def fit(*_: Any, **__: Any) -> Fit:
        kept = {"_ltx2_twin" in networks[name].__dict__ for name in ("transformer", "text_encoder")}
        assert len(kept) == 1, "both or none"
        seen.append(kept == {True})
        if seen[-1]:
            raise DoesNotFit("too small")
        return Fit(tiled=True)

    monkeypatch.setattr("ltx2.engine.memory.check", fit)
    assert engine.check_fits(plan).tiled and seen == [True, False]
    assert engine.check_fits(plan).tiled and seen == [True, False, False], "there was nothing more to drop"


def test_a_video_on_the_slow_path_says_so(
    engine: Engine, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(engine, plan, tmp_path / "clip.mp4")[-1].warnings == ()
    monkeypatch.setattr("ltx2.models.fast.unsupported", lambda _transformer: "of another kind")
    warning = "the transformer took its slow path: of another kind"
    assert run(engine, plan, tmp_path / "clip.mp4")[-1].warnings == (warning,)


def test_frugal_sends_the_networks_home_and_brings_them_back() -> None:
    models = small("2.0")
    # There is one device here: `meta` stands for the one with too little memory, so only its policy is seen.
    before = models.residency
    with faults.frugal(models):
        assert models.residency is before, "on a CPU there is nowhere to go"
    models.device = torch.device("meta")
    models.residency = before = Residency("resident", models.device)
    stage = passes(models.networks["transformer"])
    assert isinstance(stage, Stage)
    twin = weakref.ref(stage.twin)
    del stage
    moved: list[str] = []
    for name, network in models.networks.items():
        network.to = lambda home, name=name: moved.append(f"{name} {home}")
    with pytest.raises(ValueError), faults.frugal(models):
        assert models.residency.policy == "staged" and models.residency.home.type == "cpu"
        assert not models.fast_passes and twin() is None, "graphs and text keys are gone before the second try begins"
        assert moved == [f"{name} cpu" for name in models.networks]
        raise ValueError
    assert models.fast_passes
    assert models.residency is before and moved[len(models.networks) :] == [f"{name} meta" for name in models.networks]


def test_a_text_encoder_with_a_device_of_its_own_stays_there() -> None:
    models = small("2.0")
    models.device = torch.device("meta")
    models.residency = Residency("resident", models.device)
    models.holding = Holding(text_device=torch.device("cpu"))
    moved: list[str] = []
    for name, network in models.networks.items():
        network.to = lambda _home, name=name: moved.append(name)
    with faults.frugal(models):
        pass
    assert "text_encoder" not in moved and len(moved) == 2 * (len(models.networks) - 1)


def test_e4_networks_are_home_before_an_error_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: Plan
) -> None:
    """While it is told its frames live on: a decoder that went home only after them would be sent away from a device
    to which it had just been brought back."""
    models = small("2.0")
    left: list[str] = []

    class Watching(Residency):
        @contextmanager
        def at_work(self, network: torch.nn.Module) -> Iterator[None]:
            try:
                with super().at_work(network):
                    yield
            finally:
                left.append(type(network).__name__)

    models.residency = Watching("resident", models.device)

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("ltx2.pipeline.mux.Muxer.frames", refuse)
    with pytest.raises(GenerationFailed) as caught:
        run(Engine(models), plan, tmp_path / "clip.mp4")
    assert caught.value.__traceback__ and left[-1] == type(models.networks["vae"]).__name__


class Crowded:
    """Stands for a device without room for every network: `to` runs out there from the second one on."""

    def __init__(self, models: Models, error: Exception | None = None):
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")
        self.room, self.at = 1, dict.fromkeys(models.networks, "cpu")
        for name, network in models.networks.items():
            network.to = lambda home, name=name: self.move(name, str(home))

    def move(self, name: str, home: str) -> None:
        self.at[name] = "half way"
        if home == "meta" and list(self.at.values()).count("meta") >= self.room:
            raise self.error
        self.at[name] = home


@pytest.mark.parametrize("error", [None, RuntimeError("CUDA error: out of memory")], ids=["torch", "cuda"])
def test_e4_networks_that_find_no_room_stay_away_until_there_is_some(error: Exception | None) -> None:
    models = small("2.0")
    models.device = torch.device("meta")
    models.residency = meant = Residency("resident", models.device)
    device = Crowded(models, error)
    with faults.frugal(models):
        pass
    assert models.residency.policy == "staged" and models.fast_passes
    assert set(device.at.values()) == {"cpu"}, "none is left half way"
    faults.bring_back(models, meant)
    assert models.residency.policy == "staged" and set(device.at.values()) == {"cpu"}
    device.room = len(device.at)
    faults.bring_back(models, meant)
    assert models.residency is meant and set(device.at.values()) == {"meta"}


def test_e4_a_job_is_not_refused_because_the_networks_were_sent_away(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them at once did not fit either when the job before was made."""
    models, counted = small("2.0"), []

    def check(*given: Any) -> Fit:
        counted.append("activations" if given[4] else "all networks")
        return Fit(tiled=False)

    monkeypatch.setattr("ltx2.engine.memory.check", check)
    engine, meant = Engine(models), models.residency
    models.residency = Residency("staged", models.device)
    engine.check_fits(plan)
    models.residency = meant
    engine.check_fits(plan)
    models.residency = Residency("staged", models.device)
    Engine(models).check_fits(plan)
    assert counted == ["activations", "activations", "all networks"]


def test_e4_networks_without_room_on_the_cpu_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    models = small("2.0")
    models.device = torch.device("meta")
    models.residency = meant = Residency("resident", models.device)
    device = Crowded(models)
    device.room, device.at = len(device.at), dict.fromkeys(device.at, "meta")
    move = device.move

    def full(name: str, home: str) -> None:
        move(name, home)
        if home == "cpu" and list(device.at.values()).count("cpu") > 2:
            device.at[name] = "half way"
            raise RuntimeError(ALLOCATOR)

    monkeypatch.setattr(device, "move", full)
    with pytest.raises(OutOfMemory, match="nor the CPU"), faults.frugal(models):
        raise AssertionError("nothing may be tried with half of a model")
    assert models.residency is meant and models.fast_passes and set(device.at.values()) == {"meta"}


def test_networks_that_cannot_come_back_for_another_reason_are_an_error() -> None:
    models = small("2.0")
    models.device = torch.device("meta")
    models.residency = Residency("staged", models.device)
    Crowded(models, RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        faults.bring_back(models, Residency("resident", models.device))


def test_e4_a_network_without_room_goes_home_and_can_work_later() -> None:
    models = small("2.0")
    models.device = torch.device("meta")
    models.residency = Residency("staged", models.device)
    device, name = Crowded(models), "transformer"
    device.room = 0
    with pytest.raises(torch.OutOfMemoryError), models.residency.at_work(models.networks[name]):
        raise AssertionError("it never came to work")
    assert device.at[name] == "cpu"
    device.room = 1
    with models.residency.at_work(models.networks[name]):
        assert device.at[name] == "meta"
    assert device.at[name] == "cpu"


@pytest.mark.parametrize(
    ("error", "lost", "kind"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered\nmore"), True, WorkerCrashed),
        (RuntimeError("shapes do not match"), False, GenerationFailed),
        (InvalidOutput("not finite"), True, InvalidOutput),
        (OSError(errno.ENOSPC, "No space left on device"), False, OutOfRoom),
        (OSError(errno.EACCES, "Permission denied"), False, GenerationFailed),
    ],
    ids=["lost", "bug", "own", "full", "refused"],
)
def test_e5_f1_errors_get_their_names(
    engine: Engine, plan: Plan, error: Exception, lost: bool, kind: type[Ltx2Error], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    Failing(monkeypatch, lambda: error, 1)
    monkeypatch.setattr(faults, "is_lost", lambda device: lost)
    with pytest.raises(Ltx2Error) as caught:
        run(engine, plan, tmp_path / "clip.mp4")
    assert type(caught.value) is kind
    if kind is WorkerCrashed:
        assert str(caught.value).startswith("the device was lost: CUDA error: an illegal memory access")


def test_e5_giving_memory_back_does_not_hide_that_the_device_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "empty_cache", fails)
    faults.release(torch.device("cuda"))


def test_e5_a_device_that_was_lost_before_the_job_ends_the_process(
    engine: Engine, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr("ltx2.engine.memory.check", fails)
    monkeypatch.setattr(faults, "is_lost", lambda _device: True)
    with pytest.raises(WorkerCrashed, match="the device was lost"):
        run(engine, plan, tmp_path / "clip.mp4")


def test_e5_a_cpu_is_never_lost() -> None:
    assert not faults.is_lost(torch.device("cpu"))


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("CUDA error: out of memory"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
    ],
)
def test_e5_a_device_without_room_is_not_lost(monkeypatch: pytest.MonkeyPatch, error: Exception, lost: bool) -> None:
    def fails(_device: torch.device) -> None:
        raise error

    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    assert faults.is_lost(torch.device("cuda")) == lost


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB with 64 KiB left."""
    with small_disk(tmp_path / "full", 4) as folder:
        (folder / "filler").write_bytes(b"x" * ((4 << 20) - (64 << 10)))
        yield folder


def test_f1_a_full_disk_is_named_leaves_nothing_and_passes(engine: Engine, full: Path) -> None:
    wish = request(prompt="a cat", preset="distilled", seed=1, width=256, height=256, frames=17)
    plan = resolve(wish, engine.models.card)
    with pytest.raises(OutOfRoom) as caught:
        run(engine, plan, full / "clip.mp4")
    assert caught.value.code == "storage_full" and str(full) not in str(caught.value)
    assert [path.name for path in full.iterdir()] == ["filler"]
    (full / "filler").unlink()
    assert isinstance(run(engine, plan, full / "clip.mp4")[-1], Finished)
