"""Submit, list, cancel and remove: accepted once, seen by the right token, fair to all."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from statistics import mean

import pytest

from ltx2.jobs.errors import Conflict, NoSuchJob, QueueFull
from ltx2.jobs.job import TRANSITIONS, Ending
from ltx2.jobs.store import Store
from ltx2.spec.errors import RefusedRequest
from ltx2.spec.plan import Plan
from tests.jobs.asks import HOOK, add, ask, letters, plan, wait_for
from tests.jobs.conftest import MakeStore


def test_a_job_keeps_what_was_asked(store: Store) -> None:
    made = add(store, prompt="ein Gerät — 猫", priority=3, deadline=60.0, webhook=HOOK)
    job = store.get("ann", made.id)
    assert job == made
    assert (job.state, job.priority, job.webhook, job.attempt, job.version) == ("queued", 3, HOOK, 0, 1)
    assert job.deadline == pytest.approx(job.created + 60)
    assert Plan.from_dict(job.plan) == plan("ein Gerät — 猫")


def test_d1_bug_1_fifty_parallel_submits_with_one_key_make_one_job(store: Store) -> None:
    with ThreadPoolExecutor(10) as pool:
        accepted = list(pool.map(lambda _: store.submit(ask(key="k")), range(50)))
    assert len({answer.job.id for answer in accepted}) == 1
    assert sorted(answer.replayed for answer in accepted) == [False] + [True] * 49
    assert store.counts() == {"queued": 1}


def test_d2_a_key_with_another_request_is_a_conflict(store: Store) -> None:
    add(store, key="k")
    with pytest.raises(Conflict):
        add(store, key="k", prompt="a dog")


def test_d3_a_retry_without_a_key_finds_its_first_try(store: Store) -> None:
    first = add(store)
    again = store.submit(ask(retry=True))
    assert again.replayed and again.job.id == first.id
    assert not store.submit(ask()).replayed
    assert not store.submit(ask("bob", retry=True)).replayed
    assert not store.submit(ask(prompt="a dog", retry=True)).replayed


def test_d3_an_old_first_try_is_not_found(open_store: MakeStore) -> None:
    store = open_store(twins=0.0)
    add(store)
    assert not store.submit(ask(retry=True)).replayed


def test_d4_a_key_belongs_to_its_token_and_is_forgotten(open_store: MakeStore) -> None:
    first = add(open_store(), key="k")
    assert add(open_store(), "bob", key="k").id != first.id
    forgetful = open_store(keys=0.0)
    later = forgetful.submit(ask(key="k", prompt="a dog"))
    assert not later.replayed
    assert forgetful.get("ann", first.id).key is None


def test_ids_chosen_by_clients_are_idempotent_and_scoped_to_the_token(store: Store) -> None:
    first = add(store, id="holiday-1")
    assert store.submit(ask(id="holiday-1")).replayed
    with pytest.raises(Conflict):
        add(store, id="holiday-1", prompt="a dog")
    other = add(store, "bob", id="holiday-1", prompt="a dog")
    assert other.number != first.number
    assert store.get("bob", "holiday-1").request == {"prompt": "a dog"}


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "x" * 65, "a~1", "ä", "a\n"])
def test_ids_that_could_be_paths_are_refused(store: Store, name: str) -> None:
    with pytest.raises(RefusedRequest) as refused:
        add(store, id=name)
    assert refused.value.knob == "id"


def test_keys_have_1_to_255_characters(store: Store) -> None:
    add(store, key="k" * 255)
    for key in ("", "k" * 256):
        with pytest.raises(RefusedRequest):
            add(store, key=key)


def test_a7_the_jobs_of_other_tokens_do_not_exist(store: Store) -> None:
    job = add(store)
    for act in (store.get, store.cancel, store.remove):
        with pytest.raises(NoSuchJob) as hidden:
            act("bob", job.id)
        with pytest.raises(NoSuchJob) as absent:
            act("bob", "video_" + "0" * 32)
        assert str(hidden.value).replace(job.id, "") == str(absent.value).replace("video_" + "0" * 32, "")
    assert store.page("bob") == []


def test_d10_tokens_take_turns(store: Store) -> None:
    for token in ("ann", "bob", "cem"):
        for _ in range(8):
            add(store, token)
    order = [claimed_token(store) for _ in range(24)]
    waits = {token: mean(place for place, name in enumerate(order) if name == token) for token in set(order)}
    assert max(waits.values()) <= 2 * min(waits.values())
    assert sorted(order[:3]) == ["ann", "bob", "cem"]


def test_a_token_that_comes_late_does_not_wait_for_a_long_queue(store: Store) -> None:
    for _ in range(10):
        add(store)
    for _ in range(3):
        claimed_token(store)
    add(store, "bob")
    assert "bob" in [claimed_token(store) for _ in range(2)]


def test_jobs_of_one_token_run_in_order_and_urgent_ones_first(store: Store) -> None:
    plain = [add(store).number for _ in range(3)]
    urgent = add(store, priority=1).number
    assert [taken.number for _ in range(4) if (taken := store.claim(f"w{random.random()}"))] == [urgent, *plain]


def test_what_has_ended_and_how_long_others_wait(store: Store) -> None:
    assert (store.longest_wait(), list(store.ended(0.0, 10))) == (0.0, [])
    ends: list[str] = []
    for token in ("ann", "bob", "ann"):
        job = add(store, token)
        claim = store.claim("w")
        assert claim
        store.finish(claim, Ending("done", result={}))
        ends.append(job.id)
    store.remove("bob", ends[1])
    assert [job.id.partition("~")[0] for job in store.ended(0.0, 10)] == ends, "of all tokens, removed ones too"
    assert [job.id for job in store.ended(0.0, 1)] == ends[:1]
    last = store.get("ann", ends[2]).finished
    assert last and list(store.ended(last, 10)) == []
    waiting = add(store)
    wait_for(lambda: store.longest_wait() > 0.05)
    assert store.longest_wait() <= store.now() - waiting.created


def test_d11_a_full_queue_takes_nothing(open_store: MakeStore) -> None:
    store = open_store(depth=2)
    add(store), add(store)
    with pytest.raises(QueueFull):
        add(store, "bob")
    store.claim("w")
    add(store, "bob")
    assert store.counts() == {"queued": 2, "running": 1}


def test_d11_a_token_has_its_own_limit_even_in_parallel(store: Store) -> None:
    def one(_: int) -> bool:
        try:
            return bool(store.submit(ask(limit=3)))
        except QueueFull:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(one, range(12))) == 3
    assert store.submit(ask("bob", limit=3))


def test_d12_pages_are_stable_while_jobs_come_and_go(store: Store) -> None:
    jobs = [add(store).id for _ in range(7)]
    first = [job.id for job in store.page("ann", limit=3)]
    assert first == jobs[6:3:-1]
    add(store)
    store.remove("ann", jobs[6])
    assert [job.id for job in store.page("ann", after=first[-1], limit=3)] == jobs[3:0:-1]
    assert next(job.id for job in store.page("ann", after=jobs[4], newest_first=False)) == jobs[5]
    with pytest.raises(NoSuchJob):
        store.page("ann", after="unknown")


def test_d5_cancel_at_every_point(store: Store) -> None:
    queued = add(store, webhook=HOOK)
    job = store.cancel("ann", queued.id)
    assert (job.state, job.error) == ("cancelled", {"code": "cancelled", "message": "the job was cancelled"})
    assert store.cancel("ann", queued.id) == job
    assert len(letters(store, job)) == 1
    running = add(store)
    claim = store.claim("w")
    assert claim and store.cancel("ann", running.id).state == "running"
    version = store.get("ann", running.id).version
    assert store.cancel("ann", running.id).version == version
    done = add(store)
    claim = store.claim("w2")
    assert claim and store.finish(claim, Ending("done")) == "done"
    assert store.cancel("ann", done.id).state == "done"


def test_a_removed_job_is_gone_at_once_and_its_id_is_free(store: Store) -> None:
    job = add(store, id="x", key="k", webhook=HOOK)
    claim = store.claim("w")
    store.remove("ann", "x")
    with pytest.raises(NoSuchJob):
        store.get("ann", "x")
    assert add(store, id="x", key="k").number != job.number
    assert claim and store.beat(claim) == "cancel"
    assert store.finish(claim, Ending("done")) == "cancelled"
    assert letters(store) == []
    queued = add(store, webhook=HOOK)
    store.remove("ann", queued.id)
    assert letters(store) == []
    assert [withering.number for withering in store.withering()] == [job.number, queued.number]


@pytest.mark.parametrize("seed", range(2))
def test_no_order_of_acts_makes_an_illegal_change(open_store: MakeStore, seed: int) -> None:
    """Random acts of clients, workers and the sweeper: states only change as the table allows, ended ones never."""
    chance, store = random.Random(seed), open_store(lease=-1.0, attempts=2)
    claims, seen = [], {}
    for step in range(50):
        act = chance.randrange(6)
        held = chance.choice(claims) if claims else None
        if act == 0:
            add(store, deadline=chance.choice([None, -1.0, 60.0]), webhook=HOOK)
        elif act == 1:
            claim = store.claim(f"w{step}")
            claims += [claim] if claim else []
        elif act == 2 and held:
            store.finish(held, Ending(chance.choice(["done", "failed"])))
        elif act == 3 and held:
            store.give_back(held, chance.random() < 0.5)
        elif act == 4 and seen:
            store.cancel("ann", chance.choice(list(seen)))
        else:
            store.sweep()
        for job in store.page("ann", limit=100):
            seen.setdefault(job.id, ["queued"])
            if seen[job.id][-1] != job.state:
                seen[job.id].append(job.state)
    for states in seen.values():
        for before, after in pairwise(states):
            # A job may be taken and end between two looks only by way of running.
            assert after in TRANSITIONS[before]  # type: ignore[index]
    ended = [job for job in store.page("ann", limit=100) if not job.open]
    assert ended and all(len(letters(store, job)) == 1 for job in ended)


def claimed_token(store: Store) -> str:
    """Claim the next job; whose is it?"""
    claim = store.claim(f"w{random.random()}")
    assert claim is not None
    return store.standing([claim.number])[claim.number].token
