"""The rest of the house: doctor, prices, weights, sweep, and the jobs in a database."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import modal.exception
import pytest
from huggingface_hub import constants

from ltx2.doors.cli import main
from ltx2.doors.http import logs
from ltx2.doors.modal import doctor, weights
from ltx2.doors.modal.boot import Boot, gpu_here, precision_for
from ltx2.doors.modal.database import Hand, StoreQueue, open_queue, sweep_store
from ltx2.doors.modal.deploy import Place
from ltx2.doors.modal.errors import SpendCapReached
from ltx2.doors.modal.hands import Hands
from ltx2.doors.modal.ledger import Ledger
from ltx2.doors.modal.outputs import Outputs
from ltx2.doors.modal.prices import PROFILES, costs, profiled, table
from ltx2.doors.modal.queue import DictQueue
from ltx2.doors.modal.sweep import sweep
from ltx2.jobs.job import Ending, Rules
from ltx2.jobs.store import Store
from ltx2.models import checkup, hub
from ltx2.models.describe import Source, read_card
from ltx2.spec.deployment import Deployment
from ltx2.spec.errors import CheckpointError, NotOffered
from ltx2.spec.events import Event, Finished, Progress
from ltx2.spec.plan import Plan, resolve
from ltx2.spec.request import request
from tests.doors.modal.conftest import Deployed
from tests.doors.modal.fakes import MemoryCalls, MemoryDict, MemoryVolume, board
from tests.fake_hub import FakeHub, serve
from tests.fake_modal.machine import ROOT
from tests.jobs.asks import ask
from tests.models.test_hub import point_to

PAGE = (ROOT / "docs" / "06-modal.md").read_text()


def test_the_table_of_prices_in_the_page_is_fresh():
    assert table() in PAGE
    assert set(re.findall(r"^\| (cheap|balanced|always warm) \|", PAGE, re.MULTILINE)) == {p.name for p in PROFILES}


def test_a_clip_alone_pays_its_start_and_the_idle_time_after_it():
    base, card = Deployment(gpus=("H200",)), read_card(Source("ltx-2", weights="random"))
    plan = resolve(request(prompt="x", preset="classic"), card)
    cheap, balanced, warm = (costs(profiled(base, profile), card, plan, cold=100) for profile in PROFILES)
    assert cheap.alone - cheap.warm == pytest.approx(160 * 0.001261)
    assert balanced.alone - cheap.alone == pytest.approx(240 * 0.001261) and warm.alone == warm.warm


def findings(service: Deployed, **more: str) -> tuple[int, dict[str, tuple[bool, str]]]:
    # Nobody asks the real hub.
    done = service.machine.on_host(
        "-m", "ltx2", "modal", "doctor", "--json", HF_HUB_OFFLINE="1", **service.settings | more
    )
    assert done.stdout, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    return done.returncode, {item["subject"]: (item["ok"], item["text"]) for item in report.get("findings", [])}


def test_J5_the_doctor_names_what_is_missing(declared: Deployed, tmp_path: Path):
    code, seen = findings(declared)
    assert declared.web.url in seen["service"][1]
    assert code == 0 and seen["secret enter-token"][0] and seen["account"][0] and "$" in seen["a clip"][1], seen
    kept = declared.machine.cloud.secrets.pop("huggingface-secret")
    declared.machine.cloud.volumes["ltx2-video-weights"].folder = tmp_path
    (tmp_path / "ltx-2" / "0123abc").mkdir(parents=True)
    (tmp_path / "ltx-2" / "pin.json").write_text("{}")
    more = {"LTX2_MODAL_MODEL": "ltx-2", "LTX2_MODAL_REVISION": "fff", "LTX2_MODAL_GPUS": "H200,T4"}
    try:
        code, seen = findings(declared, **more)
    finally:
        declared.machine.cloud.secrets["huggingface-secret"] = kept
    there, text = seen["secret huggingface-secret"]
    assert code == 1 and not there and "modal secret create huggingface-secret HF_TOKEN=" in text
    assert seen["H200"][0] and not seen["T4"][0] and "do not hold" in seen["T4"][1]
    there, text = seen["weights ltx-2"]
    assert not there and "there is 0123abc, the settings pin fff" in text and "::download" in text
    # The hub does not answer here, and would say 401 without a token.
    assert not seen["hub ltx-2"][0]


def test_the_doctor_makes_no_volume_by_looking_for_it(declared: Deployed):
    before = {*declared.machine.cloud.volumes}
    code, seen = findings(declared, LTX2_MODAL_MODEL="ltx-2", LTX2_MODAL_APP="elsewhere", LTX2_MODAL_GPUS="H200")
    assert code == 1 and "not there: " in seen["weights ltx-2"][1]
    assert {*declared.machine.cloud.volumes} == before


@pytest.mark.parametrize(
    ("held", "there", "says"),
    [
        ({"pin.json", "0123abc"}, True, "there, at 0123abc"),
        ({"0123abc"}, False, "::download"),
        (set(), False, "::download"),
    ],
)
def test_the_doctor_reads_the_volume(monkeypatch: pytest.MonkeyPatch, held: set[str], there: bool, says: str):
    monkeypatch.setattr(doctor, "_names", lambda volume, entry: held)
    (finding,) = doctor._weights(Deployment(model="ltx-2"))
    assert finding.ok is there and says in finding.text


def test_J5_the_doctor_refuses_a_gpu_that_there_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("LTX2_MODAL_GPUS", "H2OO")
    assert main(["modal", "doctor"]) == 2 and "did you mean H200" in capsys.readouterr().err


def test_weights_are_served_at_the_pinned_commit_only(tmp_path: Path):
    settings = Deployment(model="ltx-2-distilled-fp8", root=str(tmp_path))
    root, entries = settings.folder("weights"), weights.parts(settings)
    assert [entry.name for entry in entries] == ["ltx-2-distilled-fp8", "ltx-2-text-encoder"]
    with pytest.raises(CheckpointError, match="not on the volume"):
        weights.source_of(settings)
    for entry in entries:
        weights.place_of(root, entry).mkdir(parents=True)
        weights.write_pin(root, entry, weights.Pin(entry.name, "abc", f"/x/{entry.name}", 1, 2))
    source = weights.source_of(settings)
    assert (source.model, source.kind, source.text_encoder) == (
        "/x/ltx-2-distilled-fp8",
        "distilled",
        Path("/x/ltx-2-text-encoder"),
    )
    assert weights.trouble(settings) is None
    with pytest.raises(CheckpointError, match="settings say def"):
        weights.source_of(Deployment(model="ltx-2-distilled-fp8", root=str(tmp_path), revision="def"))
    with pytest.raises(NotOffered):
        weights.parts(Deployment(model="ltx-2.5-int8"))


def test_precision_follows_the_gpu_that_came():
    settings, source = Deployment(preset="classic"), Source("ltx-2", weights="random")
    assert precision_for(settings, source, 141 * 10**9) == "bf16"
    assert precision_for(settings, source, 60 * 10**9) == "fp8"
    assert precision_for(Deployment(precision="fp8"), source, 141 * 10**9) == "fp8"
    assert precision_for(settings, source, None) == "auto"
    # The doctor says the same: an H100 holds the default video in fp8.
    seen = {finding.subject: finding for finding in doctor._settings(Deployment())}
    assert "in fp8" in seen["H100"].text and "in bf16" in seen["H200"].text and seen["H100"].ok


@pytest.mark.parametrize("precision", ["auto", "fp8"])
def test_the_doctor_knows_which_gpus_compute_in_fp8(precision: str):
    (older,) = [
        finding
        for finding in doctor._settings(Deployment(model="ltx-2", gpus=("A100-80GB",), precision=precision))
        if finding.subject == "A100-80GB"
    ]
    assert not older.ok and "no fp8 units" in older.text


@pytest.mark.parametrize(
    ("gpus", "name", "found"),
    [
        (("A10", "A100-80GB"), "NVIDIA A100-SXM4-80GB", "A100-80GB"),
        (("A100-80GB", "A10"), "NVIDIA A10G", "A10"),
        (("L4", "L40S"), "NVIDIA L40S", "L40S"),
        (("H200", "B200", "H100!"), "NVIDIA H100 80GB HBM3", "H100!"),
        (("H200", "B200"), "NVIDIA something new", "B200"),
    ],
)
def test_the_gpu_that_came_is_known_by_its_name(
    monkeypatch: pytest.MonkeyPatch, gpus: tuple[str, ...], name: str, found: str
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: name)
    assert gpu_here(Deployment(gpus=gpus)) == found


def test_a_container_warms_up_what_requests_get_that_name_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[Plan] = []

    def engine(plan: Plan, out: Path) -> Iterator[Event]:
        made.append(plan)
        yield Finished(out, plan.seed, 1.0, 0)

    monkeypatch.setattr("ltx2.engine.factory.make", lambda given: engine)
    monkeypatch.setattr("ltx2.doors.inspection.inspect", lambda plan, path: ())
    boot = Boot(Deployment(model="tiny", preset="distilled-two-stage", warm_up=("default", "64x128x17")))
    boot.load_model()
    assert list(boot.phases) == ["weights", "warm-up default", "warm-up 64x128x17"]
    served = resolve(request(prompt="x", preset="distilled-two-stage"), weights.card_of(boot.deployment))
    first, second = made
    assert (second.width, second.height, second.frames) == (64, 128, 17)
    assert (first.width, first.height, first.frames, len(first.stages)) == (
        served.width,
        served.height,
        served.frames,
        2,
    )
    for short, whole in zip(first.stages, served.stages, strict=True):
        # Enough to compile, to record and to replay; the same kinds of passes on the same shapes.
        assert short.steps == 3 <= whole.steps and short.sigmas[-1] == 0
        assert replace(short, sigmas=whole.sigmas) == whole


def test_a_container_that_cannot_load_is_paid_and_counted(monkeypatch: pytest.MonkeyPatch):
    shared = MemoryDict()
    monkeypatch.setattr(Place, "ledger", lambda self: shared)
    boot = Boot(Deployment(model="tiny"))
    monkeypatch.setattr(boot, "load_model", lambda: (_ for _ in ()).throw(CheckpointError("not on the volume")))
    with pytest.raises(CheckpointError):
        Hands(Place(boot.deployment, ""), boot).load()
    (cost,) = (value for _, value in shared.items())
    assert cost > 0


def test_after_a_restore_the_money_counts_from_there(monkeypatch: pytest.MonkeyPatch):
    boot = Boot(Deployment(model="tiny"), loading=time.time() - 5)
    monkeypatch.setenv("MODAL_ENABLE_SNAP_RESTORE", "1")
    assert time.time() - boot.meter(MemoryDict(), "ta").begun == pytest.approx(5, abs=1)
    boot.deployment = replace(boot.deployment, snapshot="gpu")
    assert time.time() - boot.meter(MemoryDict(), "ta").begun < 2


def test_the_sweep_ends_lost_jobs_and_deletes_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ltx2.doors.modal.sweep.YOUNG", 0.0)
    calls, outputs = MemoryCalls(), Outputs(tmp_path, MemoryVolume())
    queue = DictQueue(board(), calls, lambda asked, promised: 0.0)
    jobs = [queue.submit(ask(prompt=str(number))).job for number in range(4)]
    calls.looks["fc-1"] = "expired"
    calls.looks["fc-2"] = Ending.of("failed", "worker_crashed", "it died")
    for job, age in ((jobs[2], 0.0), (jobs[3], 200.0)):
        queue.board.end(job.number, Ending("done", result={}), 2)
        ending = queue.board.ending(job.number)
        assert ending is not None
        queue.board.jobs.put(f"ending/{job.number}", ending | {"at": time.time() - age})
        for attempt in (1, 2):
            outputs.place(job.number, attempt).parent.mkdir(parents=True)
            outputs.place(job.number, attempt).write_bytes(b"x")
    # Of a job that was removed long ago.
    outputs.place(1, 1).parent.mkdir(parents=True)
    counts = sweep(queue, outputs, Ledger(MemoryDict(), 0.0), keep=100.0)
    assert counts == {"settled": 2, "forgotten": 1, "files": 3}  # a lost attempt, a removed job's, an unknown one's
    queue._seen.clear()
    states = [queue.get("ann", job.id).state for job in jobs[:3]]
    assert states == ["failed", "failed", "done"] and not queue.board.open()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [outputs.place(jobs[2].number, 2)]


def engine(plan: Plan, out: Path) -> Iterator[Event]:
    yield Progress("stage 1", 1, 1)
    out.write_bytes(b"video of " + plan.prompt.encode())
    yield Finished(out, plan.seed, 1.0, 0)


class InDatabase:
    """The parts of a deployment whose jobs are in a database; SQLite stands for PostgreSQL."""

    def __init__(self, tmp_path: Path, rules: Rules | None = None):
        self.url, self.calls, self.money = f"sqlite:///{tmp_path / 'jobs.db'}", MemoryCalls(), 0.0
        self.board, self.outputs = board(), Outputs(tmp_path / "outputs", MemoryVolume())
        queue, self.tokens = open_queue(self.url, rules or Rules(), self.board, self.calls, self._admit)
        assert isinstance(queue, StoreQueue)
        self.queue = queue
        self.hand = Hand(Store(self.url, rules or Rules()), self.board, engine, lambda plan, path: (), self.outputs, 3)

    def _admit(self, asked: object, promised: float) -> float:
        if promised + 1.0 > 3.0:
            raise SpendCapReached("no more")
        return 1.0


def test_with_a_database_each_job_begins_a_call_and_tokens_take_turns(tmp_path: Path):
    place = InDatabase(tmp_path)
    first = [place.queue.submit(ask("ann", f"a{number}")).job for number in range(2)]
    other = place.queue.submit(ask("bob", "b")).job
    assert len(place.calls.begun) == 3 and place.tokens() == []
    # A call does not belong to a job: the store says who is next.
    for call in ("fc-1", "fc-2"):
        assert place.hand.make_next(call)["state"] == "ended"
    assert place.queue.get("bob", other.id).state == "done" and place.queue.get("ann", first[1].id).state == "queued"
    assert place.hand.make_next("fc-3")["state"] == "ended" and place.hand.make_next("fc-4") == {"state": "nothing"}
    assert place.outputs.volume.commits == 3  # type: ignore[attr-defined]
    assert len(list(place.outputs.folder.rglob("out.mp4"))) == 3


def test_with_a_database_no_job_waits_for_a_call_that_is_over(tmp_path: Path):
    place = InDatabase(tmp_path)
    jobs = [place.queue.submit(ask("ann", f"a{number}", running=1)).job for number in range(2)]
    assert place.hand.store.claim("fc-1") is not None
    assert place.hand.make_next("fc-2")["state"] == "ended", "how many run at once is not for the token to say here"
    assert [job.most_running for job in jobs] == [None, None]


def test_with_a_database_a_call_that_is_begun_anew_finds_its_own_job(tmp_path: Path):
    place = InDatabase(tmp_path)
    job = place.queue.submit(ask()).job
    claim = place.hand.store.claim("fc-1")  # its container died here
    assert claim is not None and place.hand.make_next("fc-2") == {"state": "nothing"}
    assert place.hand.make_next("fc-1")["state"] == "ended"
    assert place.queue.get("ann", job.id).state == "done"


def test_with_a_database_what_may_not_cost_money_leaves_no_job(tmp_path: Path):
    place = InDatabase(tmp_path)
    for number in range(3):
        place.queue.submit(ask(prompt=str(number), key=str(number)))
    with pytest.raises(SpendCapReached):
        place.queue.submit(ask(prompt="3"))
    assert len(place.queue.page("ann")) == 3 and len(place.calls.begun) == 3
    # A repeated request costs nothing, and is answered.
    assert place.queue.submit(ask(prompt="0", key="0")).replayed


def test_with_a_database_the_sweep_calls_again_for_jobs_of_dead_containers(tmp_path: Path):
    place = InDatabase(tmp_path, Rules(lease=0.05))
    place.queue.submit(ask())
    assert place.hand.store.claim("fc-1") is not None
    time.sleep(0.2)
    swept = sweep_store(place.hand.store, place.outputs, place.calls)
    assert swept["lost"] == 1 and len(place.calls.begun) == 2
    assert place.hand.make_next("fc-2")["state"] == "ended"


NAME = "someone/small-distilled"


@pytest.fixture
def hub_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub on this machine with the embedded model, as somebody's."""
    checkpoint = ROOT / "src" / "ltx2" / "models" / "tiny"
    with serve(FakeHub()) as state:
        point_to(state.endpoint, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "WAIT_SECONDS", 0.0)
        files = [file for file in checkpoint.rglob("*") if file.is_file()]
        state.add(NAME, {file.relative_to(checkpoint).as_posix(): file.read_bytes() for file in files})
        yield state


def test_a_download_pins_what_it_fetched_last_of_all(
    hub_here: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = Deployment(model=NAME, root=str(tmp_path / "root"))
    # The small checkpoint is none of the published ones, and nothing is fetched of it until it is said to be.
    with pytest.raises(CheckpointError, match="not what it should be"):
        weights.fetch(settings, lambda text: None)
    assert not list((tmp_path / "root").rglob("*.safetensors"))
    monkeypatch.setattr(checkup, "check_remote", lambda entry, repository: [])
    (pin,) = weights.fetch(settings, lambda text: None)
    assert len(pin.revision) == 40 and pin.path.endswith(pin.revision)
    source = weights.source_of(settings)
    assert source.model == pin.path and weights.card_of(settings).name == NAME
    assert weights.card_of(settings).revision == pin.revision
    # Once more: all of it is there, and is verified.
    before = {path: path.stat().st_mtime_ns for path in Path(pin.path).rglob("*.safetensors")}
    assert weights.fetch(settings, lambda text: None) == [pin]
    assert {path: path.stat().st_mtime_ns for path in Path(pin.path).rglob("*.safetensors")} == before


def test_the_doctor_goes_on_without_an_account(monkeypatch: pytest.MonkeyPatch):
    def refused() -> list[checkup.Finding]:
        raise modal.exception.AuthError("Token missing. Then run `modal token new`.\nMore.")

    monkeypatch.setattr(doctor, "_account", refused)
    monkeypatch.setattr(doctor, "_hub", lambda deployment: [checkup.Finding("hub ltx-2", True, "")])
    seen = {finding.subject: finding for finding in doctor.examine(Deployment())}
    assert not seen["account"].ok and seen["account"].text.endswith("`modal token new`.")
    assert seen["hub ltx-2"].ok and seen["H200"].ok and not any(name.startswith("secret") for name in seen)


@pytest.mark.parametrize("there", [True, False])
def test_the_hub_is_asked_only_for_what_is_not_on_the_volume(monkeypatch: pytest.MonkeyPatch, there: bool):
    asked: list[Deployment] = []
    monkeypatch.setattr(doctor, "_account", lambda: [checkup.Finding("account", True, "")])
    monkeypatch.setattr(doctor, "_weights", lambda deployment: [checkup.Finding("weights ltx-2", there, "")])
    for name in ("_secrets", "_service"):
        monkeypatch.setattr(doctor, name, lambda deployment: [])
    monkeypatch.setattr(doctor, "_hub", lambda deployment: asked.append(deployment) or [])
    list(doctor.examine(Deployment()))
    assert len(asked) == int(not there)


def test_J5_the_doctor_names_a_hub_that_refuses(hub_here: FakeHub):
    seen = {finding.subject: finding for finding in doctor.examine(Deployment(model="someone/not-there"))}
    assert not seen["hub someone/not-there"].ok


def test_a_gpu_container_asks_the_hub_for_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logs, "configure", lambda: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    seen: list[str | None] = []
    monkeypatch.setattr(Boot, "load_code", lambda self: seen.append(os.environ.get("HF_HUB_OFFLINE")))
    Place(Deployment(model="tiny"), "").begin()
    assert seen == ["1"]
