"""Leases, beats, the fence, and the ends of jobs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from ltx2.jobs.job import Ending
from ltx2.jobs.store import Store
from tests.jobs.asks import HOOK, add, letters
from tests.jobs.conftest import MakeStore

DONE = Ending("done", result={"bytes": 1})


def test_parallel_workers_never_share_a_job(store: Store) -> None:
    jobs = {add(store).number for _ in range(12)}
    with ThreadPoolExecutor(6) as pool:
        claims = list(pool.map(lambda index: store.claim(f"w{index}"), range(16)))
    taken = [claim.number for claim in claims if claim]
    assert len(taken) == len(set(taken))
    # SKIP LOCKED may leave a worker with nothing while another's claim is being written; the next look finds it.
    while claim := store.claim(f"late{len(taken)}"):
        taken.append(claim.number)
    assert set(taken) == jobs and len(taken) == 12


def test_a_beat_renews_the_lease_and_shows_progress(store: Store) -> None:
    job = add(store)
    claim = store.claim("w")
    assert claim
    before = store.get("ann", job.id)
    assert store.beat(claim, {"phase": "stage 1", "step": 2, "steps": 8}) == "go"
    after = store.get("ann", job.id)
    assert after.progress == {"phase": "stage 1", "step": 2, "steps": 8}
    assert after.version == before.version + 1
    assert (after.lease_until or 0) >= (before.lease_until or 0)
    assert store.beat(claim) == "go"
    assert store.get("ann", job.id).progress == after.progress


def test_a_beat_tells_the_wish_to_cancel_and_a_passed_deadline(store: Store) -> None:
    wanted, late = add(store), add(store, deadline=2.0)
    first, second = store.claim("w"), store.claim("w2")
    assert first and second
    store.cancel("ann", wanted.id)
    assert store.beat(first) == "cancel"
    while store.beat(second) == "go":
        pass
    assert store.beat(second) == "late"
    assert late.deadline is not None


def test_d9_a_queued_job_past_its_deadline_is_never_started(store: Store) -> None:
    job = add(store, deadline=-0.001, webhook=HOOK)
    assert store.claim("w") is None
    assert store.sweep().expired == 1
    ended = store.get("ann", job.id)
    assert ended.state == "expired" and ended.error and ended.error["code"] == "deadline_exceeded"
    assert ended.started is None and len(letters(store, ended)) == 1


def test_the_fence_keeps_an_old_attempt_out(open_store: MakeStore) -> None:
    store = open_store(lease=-1.0)
    job = add(store, webhook=HOOK)
    old = store.claim("w")
    assert old and store.sweep().lost == 1
    # Queued again: the old claim is void before anybody else has the job.
    assert store.beat(old) == "lost" and store.finish(old, DONE) is None and store.give_back(old) is None
    new = store.claim("w2")
    assert new and new.attempt == old.attempt + 1
    assert store.beat(old) == "lost" and store.finish(old, DONE) is None and store.give_back(old) is None
    assert store.finish(new, DONE) == "done"
    assert store.finish(old, Ending.of("failed", "internal", "too late")) is None
    ended = store.get("ann", job.id)
    assert (ended.state, ended.published, ended.result) == ("done", 2, {"bytes": 1})
    assert len(letters(store, job)) == 1


def test_bug_3_finish_recognises_its_own_commit(store: Store) -> None:
    job = add(store, webhook=HOOK)
    claim = store.claim("w")
    assert claim and store.finish(claim, DONE) == "done"
    assert store.finish(claim, DONE) == "done"
    assert len(letters(store, job)) == 1


def test_an_ending_by_the_house_is_not_an_own_commit(open_store: MakeStore) -> None:
    store = open_store(lease=-1.0, attempts=1)
    add(store)
    claim = store.claim("w")
    assert claim and store.sweep().lost == 1
    assert store.finish(claim, DONE) is None


def test_a_lost_answer_to_a_claim_does_not_leave_a_job_behind(store: Store) -> None:
    add(store), add(store)
    first = store.claim("w")
    assert store.claim("w") == first
    second = store.claim("other")
    assert first and second and second.number != first.number


def test_bug_4_a_cancel_accepted_during_the_last_step_wins(store: Store) -> None:
    job = add(store, webhook=HOOK)
    claim = store.claim("w")
    assert claim and store.beat(claim) == "go"
    store.cancel("ann", job.id)
    assert store.finish(claim, DONE) == "cancelled"
    ended = store.get("ann", job.id)
    assert (ended.state, ended.published, ended.result) == ("cancelled", None, None)
    assert '"video.failed"' in letters(store, job)[0].body


def test_e3_a_job_whose_workers_die_twice_fails_by_name(open_store: MakeStore) -> None:
    store = open_store(lease=-1.0)
    job, next_job = add(store), add(store)
    for index in range(2):
        assert (claim := store.claim(f"w{index}")) and claim.number == job.number
        assert store.sweep().lost == 1
    ended = store.get("ann", job.id)
    assert ended.state == "failed" and ended.error and ended.error["code"] == "worker_crashed"
    claim = store.claim("w3")
    assert claim and claim.number == next_job.number and store.finish(claim, DONE) == "done"


def test_a_worker_that_is_told_to_stop_does_not_use_up_an_attempt(store: Store) -> None:
    job = add(store)
    for index in range(4):
        claim = store.claim(f"w{index}")
        assert claim and claim.attempt == index + 1
        assert store.give_back(claim) == "queued"
    assert store.get("ann", job.id).tries == 0


def test_a_broken_attempt_counts(store: Store) -> None:
    job = add(store)
    for index, state in enumerate(["queued", "failed"]):
        claim = store.claim(f"w{index}")
        assert claim and store.give_back(claim, counted=True) == state
    assert (store.get("ann", job.id).error or {})["code"] == "worker_crashed"


def test_a_cancelled_job_of_a_dead_worker_is_cancelled_not_tried_again(open_store: MakeStore) -> None:
    store = open_store(lease=-1.0)
    job = add(store)
    store.claim("w")
    store.cancel("ann", job.id)
    store.sweep()
    assert store.get("ann", job.id).state == "cancelled"


def test_a_job_keeps_its_place_when_it_is_tried_again(store: Store) -> None:
    first = add(store)
    add(store)
    claim = store.claim("w")
    assert claim and store.give_back(claim) == "queued"
    again = store.claim("w2")
    assert again and again.number == first.number
