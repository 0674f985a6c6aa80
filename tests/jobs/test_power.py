"""The power goes (row F6): what was acknowledged is there when it comes back, whatever of the rest reached the disk.

A process works on a queue and a shelf while power.c writes down its acts; they are played back up to many moments, and
what a disk owes us by then is opened again. Without what syncs the files, the same check must find losses.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from ltx2.jobs.shelf import Shelf
from ltx2.jobs.store import Store
from tests.jobs.power import ACKS, Act, Disk, acts
from tests.jobs.server import Server

HERE = Path(__file__).parent
MOMENTS = 12
SCRIPT = """
import os, sys
from pathlib import Path
import ltx2.jobs.database as database
from ltx2.jobs.job import Ending
from ltx2.jobs.shelf import Shelf
from ltx2.jobs.store import Store
from tests.jobs.asks import HOOK, add

root, lax = Path(sys.argv[1]), sys.argv[2]
if lax == "database":
    strict = database._set_pragmas
    def pragmas(connection, record):
        strict(connection, record)
        connection.execute("PRAGMA synchronous=OFF")
    database._set_pragmas = pragmas
if lax == "files":
    sync, os.fsync = os.fsync, lambda descriptor: None
store, shelf = Store(f"sqlite:///{root / 'jobs.db'}"), Shelf(root / "shelf")
acks = open(root / "acks", "ab", buffering=0)
for number in range(6):
    job = add(store, prompt=f"cat {number}", webhook=HOOK, megapixel_frames=1e6)
    acks.write(f"queued {job.id} -\\n".encode())
for number in range(3):
    claim = store.claim(f"w{number}")
    draft = shelf.draft(claim)
    draft.write_bytes(f"film {claim.number}".encode() * 2000)
    published = shelf.publish(claim)
    store.finish(claim, Ending("done", result=published))
    acks.write(f"done {store.standing([claim.number])[claim.number].id} {published['sha256']}\\n".encode())
"""


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler and Linux: install Debian's package gcc")
    library = tmp_path_factory.mktemp("power") / "power.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "power.c", "-ldl", "-pthread"], check=True
    )
    return library


@pytest.fixture
def quick(sqlite_file: Path) -> Path:
    """A folder in memory, where there is one."""
    return sqlite_file.parent


def recorded(folder: Path, recorder: Path, lax: str = "") -> list[Act]:
    """What the script does to its folder."""
    root, log = folder / "root", folder / "log"
    (root / "shelf").mkdir(parents=True)
    more = {"LD_PRELOAD": str(recorder), "POWER_ROOT": str(root), "POWER_LOG": str(log)}
    environment = os.environ | more | {"PYTHONPATH": str(HERE.parents[1])}
    subprocess.run([sys.executable, "-c", SCRIPT, str(root), lax], env=environment, check=True, timeout=60)
    empty = PurePosixPath()
    there = [Act("d", PurePosixPath("shelf"), empty, 0, b""), Act("s", empty, empty, 0, b"")]
    return [*there, *acts(log, root)]


def losses(folder: Path, seen: list[Act]) -> Iterator[str]:
    """What was acknowledged and is not there, right after each acknowledgement and at other moments between them."""
    told = [number for number, act in enumerate(seen, 1) if act.path.name == ACKS and act.kind == "w"]
    assert len(told) == 9
    chance = random.Random(7)
    moments = {*told, *chance.sample(range(told[0], len(seen)), MOMENTS)}
    disk, known = Disk(), list[list[str]]()
    for number, act in enumerate(seen, 1):
        disk.do(act)
        if number in told:
            known.append(act.data.decode().split())
        for kept in (None, chance) if number in moments else ():
            place = folder / f"{number}-{kept is None}"
            yield from (f"act {number}: {what}" for what in missing(place, disk.state(kept), known))
            shutil.rmtree(place)


def missing(place: Path, state: dict[PurePosixPath, bytes | None], known: list[list[str]]) -> list[str]:
    """Opens what the disk has, and looks for everything that was acknowledged."""
    for path, content in state.items():
        if content is None:
            (place / path).mkdir(parents=True)
        else:
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(content)
    try:
        store = Store(f"sqlite:///{place / 'jobs.db'}", patience=0.1)
        jobs = {job.id: job for job in store.page("ann", limit=100)}
        letters = store.undelivered()
        store.close()
    except Exception as error:  # whatever it is, nothing can be read
        return [f"{type(error).__name__}: {error}"]
    found = [f"{name} is gone" for _, name, _ in known if name not in jobs]
    done = [(jobs[name], digest) for what, name, digest in known if what == "done" and name in jobs]
    for job, digest in done:
        video = Shelf(place / "shelf").video(job)
        content = video.read_bytes() if video is not None and video.is_file() else None
        if job.state != "done" or content is None or (job.result or {}).get("sha256") != digest:
            found.append(f"{job.id} was done")
        elif content != f"film {job.number}".encode() * 2000:
            found.append(f"the file of {job.id} is not whole")
    return found + ["a webhook is gone"] * (letters < len(done))


def test_f6_nothing_that_was_acknowledged_is_lost(quick: Path, recorder: Path) -> None:
    seen = recorded(quick, recorder)
    assert sum(act.kind == "s" for act in seen) > 30
    assert list(losses(quick, seen)) == []


@pytest.mark.parametrize(
    ("lax", "loss"), [("database", r"is gone|database|was done"), ("files", "is not whole|was done")]
)
def test_f6_the_check_sees_a_loss(quick: Path, recorder: Path, lax: str, loss: str) -> None:
    assert re.search(loss, next(losses(quick, recorded(quick, recorder, lax)), ""))


def test_f6_postgresql_is_told_to_wait_for_its_disk(server: Server) -> None:
    store = Store(server.fresh())
    show = "SHOW synchronous_commit"
    assert store.database.read(lambda connection: connection.exec_driver_sql(show).scalar_one()) == "on"
    store.close()
