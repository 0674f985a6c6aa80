"""Webhooks from the outbox to real receivers: signatures that others verify, restarts, and a dead host among good ones."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import insert, select, update
from standardwebhooks import Webhook

from ltx2.doors.fetch import Outside
from ltx2.jobs.courier import carry, deliver
from ltx2.jobs.job import Ending
from ltx2.jobs.store import Store
from ltx2.jobs.tables import OUTBOX
from tests.doors.hosts import Behaviour, Host, answer
from tests.jobs.asks import add, letters, wait_for

OLD, NEW = ("whsec_" + base64.b64encode(bytes([byte]) * 24).decode() for byte in (1, 2))
Start = Callable[[Behaviour], Host]


@pytest.fixture
def start() -> Iterator[Start]:
    hosts: list[Host] = []

    def make(behave: Behaviour) -> Host:
        hosts.append(Host(behave))
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


@pytest.fixture
def file() -> Iterator[Path]:
    """A database in memory where there is such a folder."""
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder) / "jobs.db"


@pytest.fixture
def store(file: Path) -> Iterator[Store]:
    with contextlib.closing(Store(f"sqlite:///{file}")) as store:
        yield store


def end_one(store: Store, url: str, state: str = "done") -> str:
    job = add(store, webhook=url)
    claim = store.claim("w")
    assert claim and store.finish(claim, Ending(state))  # type: ignore[arg-type]
    return job.id


def parts(request: bytes) -> tuple[dict[str, str], bytes]:
    head, _, body = request.partition(b"\r\n\r\n")
    lines = (line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    return {name.lower(): value for name, value in lines}, body


def secrets(_: str) -> list[str]:
    return [NEW, OLD]


def outside(*hosts: Host) -> Outside:
    return Outside(frozenset(host.origin for host in hosts))


@pytest.mark.parametrize("state", ["done", "failed"])
def test_h4_what_arrives_verifies_with_openai_and_standardwebhooks(store: Store, start: Start, state: str) -> None:
    host = start(answer("204 No Content"))
    video = end_one(store, f"{host.origin}/hook", state)
    assert deliver(store, outside(host).send, secrets) and store.undelivered() == 0
    headers, body = parts(host.requests[0])
    # Either secret verifies while one replaces the other.
    for secret in (OLD, NEW):
        client = openai.OpenAI(api_key="none", webhook_secret=secret)
        event: Any = client.webhooks.unwrap(body.decode(), headers)
        assert event.type == ("video.completed" if state == "done" else "video.failed") and event.data.id == video
        Webhook(secret).verify(body, headers)
    stranger = "whsec_" + base64.b64encode(b"x" * 24).decode()
    with pytest.raises(openai.InvalidWebhookSignatureError):
        openai.OpenAI(api_key="none", webhook_secret=stranger).webhooks.unwrap(body.decode(), headers)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        openai.OpenAI(api_key="none", webhook_secret=NEW).webhooks.unwrap(body.decode() + " ", headers)


def test_h2_a_restart_between_two_tries_keeps_the_letter_and_its_id(file: Path, start: Start) -> None:
    statuses = [500, 200]
    host = start(lambda connection, request: answer(f"{statuses.pop(0)} Status")(connection, request))
    with contextlib.closing(Store(f"sqlite:///{file}")) as store:
        end_one(store, f"{host.origin}/hook")
        assert deliver(store, outside(host).send, secrets)
        assert store.undelivered() == 1
    # What was in memory is gone; the time of the next try comes.
    with contextlib.closing(Store(f"sqlite:///{file}")) as store:
        assert not deliver(store, outside(host).send, secrets), "not before its time"
        store.database.write(lambda connection: connection.execute(update(OUTBOX).values(next_at=0.0)))
        assert deliver(store, outside(host).send, secrets) and store.undelivered() == 0
    first, second = (parts(request) for request in host.requests)
    assert first[0]["webhook-id"] == second[0]["webhook-id"] and first[1] == second[1]


def test_h2_a_courier_that_died_under_way_delays_its_letter_only(file: Path, start: Start) -> None:
    host = start(answer("200 OK"))
    with contextlib.closing(Store(f"sqlite:///{file}")) as store:
        end_one(store, f"{host.origin}/hook")
        assert store.take_letter(), "taken, and never heard of again"
        assert not deliver(store, outside(host).send, secrets)
        store.database.write(lambda connection: connection.execute(update(OUTBOX).values(lease_until=0.0)))
        assert deliver(store, outside(host).send, secrets) and store.undelivered() == 0
    assert len(host.requests) == 1


@pytest.mark.parametrize("url", ["https://127.0.0.1/hook", "http://127.0.0.1:9/hook", "https://a@127.0.0.1/"])
def test_h3_an_internal_receiver_is_not_asked_when_its_letter_is_sent(store: Store, url: str) -> None:
    end_one(store, url)
    assert deliver(store, Outside().send, secrets)
    (letter,) = letters(store)
    assert letter.state == "pending" and letter.tries == 1, "refused like any other failure, and tried again later"


def test_h1_a_receiver_that_fails_does_not_touch_the_job(store: Store, start: Start) -> None:
    host = start(answer("410 Gone"))
    video = end_one(store, f"{host.origin}/hook")
    before = store.get("ann", video)
    assert deliver(store, outside(host).send, secrets)
    assert letters(store)[0].state == "dead" and store.get("ann", video) == before
    assert not deliver(store, outside(host).send, secrets)


def test_h5_ten_thousand_letters_to_a_dead_host_delay_no_others(store: Store, start: Start) -> None:
    def hang(connection: Any, request: bytes) -> None:
        time.sleep(60)

    dead, good = start(hang), start(answer("200 OK"))
    job = add(store, webhook=f"{dead.origin}/hook")

    def fill(connection: Any) -> None:
        def row(number: int, host: Host) -> dict[str, Any]:
            url = f"{host.origin}/hook"
            body = json.dumps({"number": number})
            values = {"id": f"msg_{number}", "job": job.number, "token": "ann", "url": url, "host": url.split("/")[2]}
            return {**values, "body": body, "state": "pending", "tries": 0, "next_at": 0.0, "created": 0.0}

        connection.execute(insert(OUTBOX), [row(number, dead) for number in range(10_000)])
        connection.execute(insert(OUTBOX), [row(number, good) for number in range(10_000, 10_030)])

    store.database.write(fill)
    stop, begin = threading.Event(), time.monotonic()
    send = outside(dead, good).send
    couriers = [threading.Thread(target=carry, args=(store, send, secrets, stop, 0.05), daemon=True) for _ in range(2)]
    for courier in couriers:
        courier.start()
    wait_for(lambda: len(good.requests) == 30, 30)
    seconds = time.monotonic() - begin
    stop.set()
    print(f"30 letters passed 10,000 to a host that hangs in {seconds:.2f} s")
    assert len(dead.requests) <= 2, "one letter at a time to one host"
    query = select(OUTBOX.c.tries).where(OUTBOX.c.host == dead.origin.split("/")[2], OUTBOX.c.tries > 0)
    assert len(store.database.read(lambda connection: connection.execute(query).all())) <= 2
