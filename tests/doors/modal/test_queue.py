"""Jobs in Dicts: accepted once, ended once, limited, listed, and asked for at Modal when the board cannot know."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from ltx2.doors.modal.board import Record
from ltx2.doors.modal.errors import CallGone, DoneElsewhere, SpendCapReached
from ltx2.doors.modal.ledger import Ledger, Meter, today
from ltx2.doors.modal.queue import ORPHANED, DictQueue
from ltx2.jobs.errors import Conflict, NoSuchJob, QueueFull, StoreUnavailable
from ltx2.jobs.job import Ending, Job, Rules
from ltx2.spec.errors import RefusedRequest
from tests.doors.modal.fakes import MemoryCalls, MemoryDict, board
from tests.jobs.asks import ask


@pytest.fixture
def calls() -> MemoryCalls:
    return MemoryCalls()


@pytest.fixture
def queue(calls: MemoryCalls) -> DictQueue:
    return DictQueue(board(), calls, lambda asked, promised: 0.5)


def add(queue: DictQueue, token: str = "ann", prompt: str = "a cat", **fields: Any) -> Job:
    return queue.submit(ask(token, prompt, **fields)).job


def aged(queue: DictQueue, job: Job, **fields: Any) -> None:
    """Rewrite a record, as if it had been accepted otherwise."""
    record = queue.board.record(job.token, job.id)
    assert record is not None
    queue.board.jobs.put(f"job/{job.token}/{job.id}", replace(record, **fields).__dict__)


def fresh(queue: DictQueue, job: Job) -> Job:
    queue._seen.clear()
    return queue.get(job.token, job.id)


def test_a_job_is_accepted_and_begins_one_call(queue: DictQueue, calls: MemoryCalls):
    job = add(queue)
    assert job.state == "queued" and job.open and calls.begun == [("ann", job.id)]
    assert queue.get("ann", job.id).plan == job.plan
    assert queue.counts() == {"queued": 1, "running": 0}


@pytest.mark.parametrize("how", [{"key": "k"}, {"id": "mine"}, {"retry": True}])
def test_a_repeated_ask_finds_its_job(queue: DictQueue, calls: MemoryCalls, how: dict[str, Any]):
    first = queue.submit(ask(**how))
    second = queue.submit(ask(**how))
    assert second.replayed and second.job.id == first.job.id and len(calls.begun) == 1


def test_an_ask_without_a_key_is_another_job(queue: DictQueue):
    assert add(queue).id != add(queue).id


@pytest.mark.parametrize("how", [{"key": "k"}, {"id": "mine"}])
def test_a_name_of_another_request_is_refused(queue: DictQueue, how: dict[str, Any]):
    add(queue, **how)
    with pytest.raises(Conflict):
        add(queue, prompt="a dog", **how)


def test_keys_and_ids_belong_to_their_token(queue: DictQueue):
    one, other = add(queue, "ann", key="k", id="x"), add(queue, "bob", prompt="a dog", key="k", id="x")
    assert one.number != other.number
    assert [job.number for job in queue.page("bob")] == [other.number]


def test_a_name_that_is_claimed_before_the_job_is_there_waits_for_it(queue: DictQueue):
    # Another web container has claimed the key, and writes its record a moment later.
    queue.board.claim_name("key", "ann", "k", "theirs")
    asked = ask(key="k")
    theirs = Record(7, "theirs", "ann", "k", asked.digest, asked.request, asked.plan.as_dict(), None, time.time(), 0.0)
    queue.board.accept(theirs)
    assert queue.submit(asked).job.number == 7


@pytest.mark.parametrize("field", [{"webhook": "https://x.test/hook"}, {"priority": 1}])
def test_what_needs_a_database_is_refused_with_501(queue: DictQueue, calls: MemoryCalls, field: dict[str, Any]):
    with pytest.raises(DoneElsewhere) as error:
        add(queue, **field)
    assert error.value.status == 501 and error.value.knob in field and "database_secret" in str(error.value)
    assert not calls.begun


@pytest.mark.parametrize("bad", [{"id": "../x"}, {"key": ""}, {"key": "k" * 256}])
def test_bad_names_are_refused(queue: DictQueue, bad: dict[str, Any]):
    with pytest.raises(RefusedRequest):
        add(queue, **bad)


def test_limits(queue: DictQueue):
    queue.rules = Rules(depth=2)
    add(queue)
    with pytest.raises(QueueFull, match="limit is 1"):
        add(queue, limit=1)
    add(queue, "bob")
    with pytest.raises(QueueFull, match="holds 2"):
        add(queue, "cid")


def test_a_call_that_modal_does_not_take_leaves_no_job(queue: DictQueue, calls: MemoryCalls):
    calls.fails = StoreUnavailable("Modal is away")
    with pytest.raises(StoreUnavailable):
        add(queue, key="k")
    assert not queue.board.open() and not list(queue.page("ann"))
    calls.fails = None
    assert not queue.submit(ask(key="k")).replayed


def test_pages_are_stable_and_know_no_strangers(queue: DictQueue):
    jobs = [add(queue, prompt=f"cat {number}") for number in range(5)]
    add(queue, "bob")
    assert [job.id for job in queue.page("ann")] == [job.id for job in reversed(jobs)]
    assert [job.id for job in queue.page("ann", after=jobs[3].id, limit=2)] == [jobs[2].id, jobs[1].id]
    assert [job.id for job in queue.page("ann", newest_first=False, limit=1)] == [jobs[0].id]
    assert queue.place(jobs[2]).ahead == 2
    with pytest.raises(NoSuchJob):
        queue.page("ann", after="nobody's")


def test_another_tokens_job_is_not_there(queue: DictQueue):
    job = add(queue)
    for act in (queue.get, queue.cancel, queue.remove):
        with pytest.raises(NoSuchJob):
            act("bob", job.id)


def test_progress_makes_a_job_running_and_its_version_grow(queue: DictQueue):
    job = add(queue)
    queue.board.post(job.number, {"attempt": 1, "count": 100_001, "at": time.time(), "started": 5.0, "worker": "ta"})
    running = fresh(queue, job)
    assert (running.state, running.attempt, running.progress, running.started) == ("running", 1, None, 5.0)
    steps = {"phase": "stage 1", "step": 2, "steps": 8}
    queue.board.post(
        job.number, {"attempt": 1, "count": 100_002, "at": time.time(), "started": 5.0, "worker": "ta", **steps}
    )
    later = fresh(queue, job)
    assert later.progress == steps and later.version > running.version > job.version
    assert queue.counts() == {"queued": 0, "running": 1}


def test_a_cancel_ends_an_open_job_at_once_and_the_ending_stays(queue: DictQueue, calls: MemoryCalls):
    job = add(queue)
    assert queue.cancel("ann", job.id).state == "cancelled"
    assert calls.cancelled == ["fc-1"]
    # The container was in its last step, and comes too late.
    assert not queue.board.end(job.number, Ending("done", result={}), 1)
    assert fresh(queue, job).state == "cancelled" and fresh(queue, job).published is None
    queue.cancel("ann", job.id)
    assert calls.cancelled == ["fc-1"]


def test_a_cancel_after_the_end_changes_nothing(queue: DictQueue, calls: MemoryCalls):
    job = add(queue)
    queue.board.end(job.number, Ending("done", result={"seconds": 1.0}), 2)
    assert queue.cancel("ann", job.id).state == "done" and not calls.cancelled
    assert fresh(queue, job).published == 2


def test_a_removed_job_is_gone_and_its_names_are_free(queue: DictQueue, calls: MemoryCalls):
    job = add(queue, id="mine", key="k")
    queue.remove("ann", "mine")
    assert calls.cancelled == ["fc-1"]
    with pytest.raises(NoSuchJob):
        queue.get("ann", "mine")
    assert add(queue, prompt="a dog", id="mine", key="k").number != job.number


def test_a_deadline_in_the_queue_expires_the_job(queue: DictQueue, calls: MemoryCalls):
    job = add(queue, deadline=30.0)
    aged(queue, job, deadline=time.time() - 1)
    late = fresh(queue, job)
    assert late.state == "expired" and late.error is not None and late.error["code"] == "deadline_exceeded"
    assert calls.cancelled == ["fc-1"]


def test_J6_a_call_that_modal_has_forgotten_is_410(queue: DictQueue, calls: MemoryCalls):
    job = add(queue)
    for look in ("expired", "unknown"):
        calls.looks["fc-1"] = look
        with pytest.raises(CallGone) as error:
            fresh(queue, job)
        assert error.value.status == 410 and error.value.code == "gone"


def test_J6_an_unknown_job_is_404(queue: DictQueue):
    with pytest.raises(NoSuchJob) as error:
        queue.get("ann", "fc-0123456789")
    assert error.value.status == 404


def test_an_error_of_the_container_reaches_the_client_as_a_failed_job(queue: DictQueue, calls: MemoryCalls):
    job = add(queue)
    calls.looks["fc-1"] = Ending.of("failed", "invalid_checkpoint", "ltx-2 is not on the volume")
    failed = fresh(queue, job)
    assert failed.state == "failed" and failed.error == {
        "code": "invalid_checkpoint",
        "message": "ltx-2 is not on the volume",
    }
    assert not queue.board.open()


def test_a_container_that_still_speaks_is_not_asked_for_at_modal(queue: DictQueue, calls: MemoryCalls):
    job = add(queue)
    calls.looks["fc-1"] = "expired"
    queue.board.post(job.number, {"attempt": 1, "count": 1, "at": time.time(), "started": 1.0, "worker": "ta"})
    assert fresh(queue, job).state == "running"


def test_a_job_whose_web_container_died_before_its_call_is_called_for(queue: DictQueue, calls: MemoryCalls):
    job = add(queue)
    queue.board.jobs.pop(f"call/{job.number}")
    fresh(queue, job)
    assert len(calls.begun) == 1  # young: its web container may still be at it
    aged(queue, job, created=time.time() - ORPHANED - 1)
    fresh(queue, job)
    assert calls.begun == [("ann", job.id)] * 2 and queue.board.call(job.number) == "fc-2"


def test_files_are_gone_after_their_time(queue: DictQueue):
    queue.rules = Rules(files=100.0)
    job = add(queue)
    queue.board.end(job.number, Ending("done", result={"seconds": 1.0}), 1)
    ending = queue.board.ending(job.number)
    assert ending is not None and fresh(queue, job).published == 1
    queue.board.jobs.put(f"ending/{job.number}", ending | {"at": time.time() - 101})
    assert fresh(queue, job).state == "done" and fresh(queue, job).published is None


def test_two_web_containers_see_the_same_job(queue: DictQueue, calls: MemoryCalls):
    """J3: nothing is kept in the process that accepted it."""
    other = DictQueue(queue.board, calls, lambda asked, promised: 0.5)
    job = add(queue, key="k")
    assert other.get("ann", job.id).number == job.number
    assert other.submit(ask(key="k")).replayed
    other.cancel("ann", job.id)
    assert fresh(queue, job).state == "cancelled"


def test_the_spend_cap_counts_what_is_spent_promised_and_asked_for(calls: MemoryCalls):
    shared = MemoryDict()
    ledger = Ledger(shared, cap=10.0)
    meter = Meter(shared, "ta-1", price=0.01, tail=60.0, begun=time.time() - 100)
    meter.note()
    assert ledger.spent() == pytest.approx(1.6, abs=0.05) or time.time() % 86_400 < 200

    def admit(asked: object, promised: float) -> float:
        ledger.check(promised, 3.0)
        return 3.0

    queue = DictQueue(board(), calls, admit)
    add(queue, prompt="1"), add(queue, prompt="2")
    with pytest.raises(SpendCapReached) as error:
        add(queue, prompt="3")
    assert error.value.status == 429 and error.value.code == "spend_cap_reached" and len(calls.begun) == 2
    # Another container's money, of yesterday and today.
    shared.put("2001-01-01 ta-0", 999.0)
    ledger._seen = (0.0, 0.0)
    assert ledger.spent() < 10
    ledger.clean()
    assert all(str(key).startswith(today()) for key in shared.keys())  # noqa: SIM118


def test_a_container_that_leaves_pays_no_idle_time(calls: MemoryCalls):
    shared = MemoryDict()
    meter = Meter(shared, "ta-1", price=1.0, tail=300.0, begun=time.time() - 10)
    meter.note()
    paid = shared.get(f"{today()} ta-1")
    meter.note(alive=False)
    assert paid - shared.get(f"{today()} ta-1") == pytest.approx(300.0, abs=2)


def test_a_container_tells_its_cost_while_it_idles_or_works():
    shared = MemoryDict()
    meter = Meter(shared, "ta-1", price=1.0, tail=300.0, begun=time.time() - 10)
    meter.start(pace=0.01)
    (page,) = shared.keys()
    paid, deadline = shared.get(page), time.monotonic() + 10
    while shared.get(page) <= paid:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    meter.stop()
    left = shared.get(page)
    time.sleep(0.05)
    assert shared.get(page) == pytest.approx(left, abs=1) and left < paid - 290


def test_without_a_cap_nothing_is_refused():
    Ledger(MemoryDict(), cap=0.0).check(1e9, 1e9)
