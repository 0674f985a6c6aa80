"""Where a job stands in line: on both databases, and its wait against a queue that is played to the end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ltx2.jobs.job import Claim, Ending
from ltx2.jobs.line import Party, Place
from ltx2.jobs.store import Store
from tests.jobs.asks import add

DONE = Ending("done", result={})


def test_the_place_counts_the_jobs_ahead(store: Store) -> None:
    jobs = [add(store) for _ in range(3)]
    urgent = add(store, priority=1)
    assert [store.place(job).ahead for job in [urgent, *jobs]] == [0, 1, 2, 3]
    order = [store.claim(f"w{index}") for index in range(4)]
    assert [claim.number for claim in order if claim] == [job.number for job in [urgent, *jobs]]


def test_the_place_knows_what_tokens_may_have_running(store: Store) -> None:
    mine = [add(store, running=2) for _ in range(4)]
    others = [add(store, "bob") for _ in range(2)]
    begun = [store.claim(f"w{index}") for index in range(2)]
    assert [claim.number for claim in begun if claim] == [mine[0].number, others[0].number]
    late = add(store, "cem", running=1)
    assert store.place(mine[3]) == Place(Party(2, 1, 2), (Party(1), Party(1, 0, 1)))
    assert store.place(late) == Place(Party(0, 0, 1), (Party(1), Party(1, 1, 2))), "level with the head of the line"
    assert store.place(others[1]) == Place(Party(0), (Party(0), Party(1, 1, 2)))


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize(
    "asked",
    [
        [("ann", 7, None)],
        [("ann", 7, 1)],
        [("ann", 7, 2), ("bob", 5, None)],
        [("ann", 9, 1), ("bob", 9, None), ("cem", 4, 1)],
    ],
    ids=["no limit", "one at once", "two and a neighbour", "two limits and a neighbour"],
)
def test_the_wait_is_that_of_a_queue_of_like_jobs(
    sqlite_url: str, asked: Sequence[tuple[str, int, int | None]], workers: int
) -> None:
    store = Store(sqlite_url)
    jobs = [add(store, token, f"{index}", running=most) for token, number, most in asked for index in range(number)]
    running = _claims(store, workers)
    begun = {claim.number for claim in running}
    waits = {job.number: store.place(job).wait(workers) for job in jobs if job.number not in begun}
    assert waits
    played = _play(store, running, workers)
    store.close()
    wrong = {number: (waits[number], played[number]) for number in waits if abs(waits[number] - played[number]) > 1}
    assert not wrong


def _claims(store: Store, workers: int) -> list[Claim]:
    found = [store.claim(f"w{worker}") for worker in range(workers)]
    return [claim for claim in found if claim is not None]


def _play(store: Store, running: list[Claim], workers: int) -> dict[int, float]:
    """When each job begins if those that run now are half done and each takes one unit of time."""
    begins: dict[int, float] = {}
    time = 0.5
    while running:
        for claim in running:
            store.finish(claim, DONE)
        running = _claims(store, workers)
        begins |= {claim.number: time for claim in running}
        time += 1
    return begins


def test_a_limit_of_one_waits_for_each_of_its_own() -> None:
    assert Place(Party(5)).wait(4) == pytest.approx(5.5 / 4)
    assert Place(Party(5, 1, 1)).wait(4) == pytest.approx(5.5)
    assert Place(Party(0, 1, 1)).wait(4) == pytest.approx(0.5), "the one that runs is half done"
    assert Place(Party(0, 0, 1)).wait(4) == pytest.approx(0.5 / 4), "a limit that is not reached holds nothing up"


def test_those_who_must_wait_themselves_do_not_hold_up_others() -> None:
    held = Place(Party(0), (Party(100, 1, 1),))
    assert held.ahead == 100 and held.wait(2) == pytest.approx(0.5)
    assert Place(Party(0), (Party(100),)).wait(2) == pytest.approx(50.25)
