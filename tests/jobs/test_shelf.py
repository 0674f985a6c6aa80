"""Files: what is published stands, what lost or is old goes, and nothing else is touched."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from ltx2.jobs.errors import NoSuchJob
from ltx2.jobs.job import Claim, Ending, Job
from ltx2.jobs.keeper import keep
from ltx2.jobs.shelf import Shelf
from ltx2.jobs.store import Store
from tests.jobs.asks import add, wait_for
from tests.jobs.conftest import MakeStore


def publish(store: Store, shelf: Shelf, worker: str = "w") -> Claim:
    """Make the next job by hand."""
    claim = store.claim(worker)
    assert claim
    shelf.draft(claim).write_bytes(b"film")
    assert shelf.publish(claim) == {"bytes": 4, "sha256": hashlib.sha256(b"film").hexdigest()}
    assert store.finish(claim, Ending("done")) == "done"
    return claim


def test_f6_every_file_and_name_is_on_disk_before_the_commit(
    store: Store, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File, draft folder, rename, job folder, shelf: in this order."""
    add(store)
    claim = store.claim("w")
    assert claim
    acts: list[str] = []
    rename = Path.rename
    monkeypatch.setattr("ltx2.jobs.shelf._sync", lambda path: acts.append(f"sync {path.relative_to(shelf.folder)}"))
    monkeypatch.setattr(Path, "rename", lambda self, to: [acts.append("rename"), rename(self, to)][1])
    shelf.draft(claim).write_bytes(b"film")
    shelf.publish(claim)
    number = claim.number
    assert acts == [f"sync {number}/1.part/out.mp4", f"sync {number}/1.part", "rename", f"sync {number}", "sync ."]


def test_files_go_before_the_record(open_store: MakeStore, shelf: Shelf) -> None:
    store = open_store(files=-1.0)
    job = add(store)
    publish(store, shelf)
    assert shelf.wither(store) == 1 and shelf.wither(store) == 0
    kept = store.get("ann", job.id)
    assert kept.state == "done" and kept.published is None and shelf.video(kept) is None
    assert not (shelf.folder / str(job.number)).exists()
    assert store.sweep().deleted == 0
    ancient = open_store(files=-1.0, rows=-1.0)
    assert ancient.sweep().deleted == 1
    with pytest.raises(NoSuchJob):
        store.get("ann", job.id)


def test_records_stay_while_their_files_stand(open_store: MakeStore, shelf: Shelf) -> None:
    store = open_store(rows=-1.0)
    job = add(store)
    publish(store, shelf)
    assert store.sweep().deleted == 0 and store.get("ann", job.id).published == 1


def test_a_removed_job_goes_with_its_files(store: Store, shelf: Shelf) -> None:
    job = add(store)
    claim = publish(store, shelf)
    store.remove("ann", job.id)
    assert shelf.wither(store) == 1
    assert store.standing([claim.number]) == {} and list(shelf.folder.iterdir()) == []


def test_numbers_of_removed_jobs_are_not_used_again(store: Store, shelf: Shelf) -> None:
    job = add(store)
    store.remove("ann", job.id)
    shelf.wither(store)
    assert add(store).number > job.number


def test_what_killed_workers_left_is_cleared_and_nothing_else(open_store: MakeStore, shelf: Shelf) -> None:
    store = open_store(lease=-1.0)
    twice, running, failed = add(store), add(store), add(store)
    lost = store.claim("w")
    assert lost
    shelf.draft(lost).write_bytes(b"half")
    shelf.publish(lost)
    store.sweep()
    publish(store, shelf)
    at_work = store.claim("w2")
    broken = store.claim("w3")
    assert at_work and broken and (at_work.number, broken.number) == (running.number, failed.number)
    shelf.draft(at_work).write_bytes(b"half")
    shelf.draft(broken).write_bytes(b"half")
    store.finish(broken, Ending.of("failed", "internal", "broke"))
    (shelf.folder / "9999" / "1").mkdir(parents=True)
    (shelf.folder / "notes.txt").write_text("not ours")
    assert shelf.clear(store) == 3
    names = sorted(str(path.relative_to(shelf.folder)) for path in shelf.folder.rglob("*") if path.is_file())
    assert names == [f"{twice.number}/2/out.mp4", f"{running.number}/1.part/out.mp4", "notes.txt"]


def test_a_draft_starts_empty(store: Store, shelf: Shelf) -> None:
    add(store)
    claim = store.claim("w")
    assert claim
    shelf.draft(claim).with_name("rest").write_bytes(b"of an earlier life")
    assert list(shelf.draft(claim).parent.iterdir()) == []


def test_the_keeper_sweeps_until_told_to_stop(open_store: MakeStore, shelf: Shelf) -> None:
    store = open_store(lease=-1.0)
    job: Job = add(store)
    store.claim("w")
    stop = threading.Event()
    thread = threading.Thread(target=keep, args=(store, shelf, stop, 0.02))
    thread.start()
    wait_for(lambda: store.get("ann", job.id).state == "queued")
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
