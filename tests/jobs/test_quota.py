"""What a token may have running at once and in a day: exact whoever submits or claims, on both databases."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select, update

from ltx2.jobs.claims import startable
from ltx2.jobs.errors import QuotaExceeded
from ltx2.jobs.job import CANCELLED, LATE, Claim, Ending
from ltx2.jobs.store import Store
from ltx2.jobs.tables import SPENT
from tests.jobs.asks import add, ask, plan
from tests.jobs.conftest import MakeStore

ONE = plan().megapixel_frames
DONE = Ending("done", result={})


def age(store: Store, job: int, seconds: float) -> None:
    """Let a job be asked for so long ago."""
    older = update(SPENT).where(SPENT.c.job == job).values(at=SPENT.c.at - seconds)
    store.database.write(lambda connection: connection.execute(older))


def spent(store: Store) -> int:
    return store.database.read(lambda found: found.execute(select(func.count()).select_from(SPENT)).scalar_one())


def claims(store: Store, number: int, prefix: str = "w") -> list[Claim]:
    found = [store.claim(f"{prefix}{worker}") for worker in range(number)]
    return [claim for claim in found if claim is not None]


def test_a_day_of_a_token_is_exact_for_servers_that_accept_at_once(open_store: MakeStore) -> None:
    servers = [open_store(), open_store()]

    def submit(number: int) -> bool:
        try:
            servers[number % 2].submit(ask(prompt=f"{number}", megapixel_frames=5 * ONE))
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(submit, range(40))) == 5
    assert servers[0].counts() == {"queued": 5} and spent(servers[0]) == 5
    assert add(servers[1], "bob", megapixel_frames=ONE), "others have a day of their own"


def test_the_refusal_names_the_limit_and_when_there_is_room(store: Store) -> None:
    jobs = [add(store, prompt=f"{number}", megapixel_frames=2 * ONE) for number in range(2)]
    age(store, jobs[0].number, 86_400 - 3600)
    age(store, jobs[1].number, 1000)
    with pytest.raises(QuotaExceeded, match=r"megapixel_frames: .* 0 of the .*60 min") as refused:
        add(store, prompt="x", megapixel_frames=2 * ONE)
    assert refused.value.retry_after == pytest.approx(3600, abs=30) and refused.value.knob == "megapixel_frames"
    age(store, jobs[0].number, 3700)
    add(store, prompt="x", megapixel_frames=2 * ONE)
    with pytest.raises(QuotaExceeded, match="smaller or shorter") as never:
        add(store, prompt="y", megapixel_frames=0.5 * ONE)
    assert never.value.retry_after is None


def test_a_repeated_request_is_free(store: Store) -> None:
    first = add(store, key="k", megapixel_frames=ONE)
    again = store.submit(ask(key="k", megapixel_frames=ONE))
    assert again.replayed and again.job.id == first.id and spent(store) == 1


@pytest.mark.parametrize(
    ("ending", "counts"),
    [
        (DONE, True),
        (CANCELLED, True),
        (LATE, True),
        (Ending.of("failed", "out_of_memory", "x"), False),
        (Ending.of("failed", "internal", "x"), False),
    ],
)
def test_what_was_begun_counts_unless_it_failed(store: Store, ending: Ending, counts: bool) -> None:
    add(store, megapixel_frames=ONE)
    (claim,) = claims(store, 1)
    store.finish(claim, ending)
    assert spent(store) == counts


def test_what_never_began_does_not_count_and_deleting_gives_nothing_back(open_store: MakeStore) -> None:
    store = open_store(rows=0.0, files=0.0)
    store.cancel("ann", add(store, megapixel_frames=ONE).id)
    assert spent(store) == 0
    job = add(store, megapixel_frames=ONE)
    store.finish(claims(store, 1)[0], DONE)
    store.remove("ann", job.id)
    store.withered(store.withering()[0])
    assert not store.standing([job.number])
    with pytest.raises(QuotaExceeded):
        add(store, megapixel_frames=ONE)
    age(store, job.number, 86_401)
    add(store, megapixel_frames=ONE)
    store.sweep()
    assert spent(store) == 1, "yesterday is forgotten"


def test_a_token_has_so_many_running_and_the_others_wait_behind_nobody(store: Store) -> None:
    mine = [add(store, prompt=f"{number}", running=2).number for number in range(5)]
    other = add(store, "bob").number
    begun = claims(store, 6)
    assert sorted(claim.number for claim in begun) == sorted([*mine[:2], other])
    assert store.claim("late") is None and not store.database.read(startable)
    store.finish(begun[0], DONE)
    assert [claim.number for claim in claims(store, 3, "again")] == [mine[2]], "first come, first served"
    store.give_back(next(claim for claim in begun if claim.number == mine[1]))
    assert [claim.number for claim in claims(store, 3, "once more")] == [mine[1]]


def test_workers_that_claim_at_once_do_not_pass_the_limit(open_store: MakeStore) -> None:
    stores, rounds = [open_store() for _ in range(4)], itertools.count()
    for number in range(12):
        add(stores[0], prompt=f"{number}", running=3)
    with ThreadPoolExecutor(8) as pool:
        while waiting := stores[0].counts().get("queued", 0):
            begun = next(rounds)
            assert begun < 40, waiting
            found = list(pool.map(lambda worker: stores[worker % 4].claim(f"{worker} of {begun}"), range(8)))  # noqa: B023
            taken = [claim for claim in found if claim is not None]
            assert 0 < len(taken) <= 3, begun
            for claim in taken:
                stores[0].finish(claim, DONE)
    assert stores[0].counts() == {"done": 12}
