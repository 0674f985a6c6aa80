"""Webhooks: one for each ended job, signed so that others can verify it, tried until the receiver says yes."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping

import pytest
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from ltx2.jobs import outbox
from ltx2.jobs.courier import deliver, headers, sign
from ltx2.jobs.job import Ending
from ltx2.jobs.store import Store
from ltx2.spec.errors import RefusedRequest
from tests.jobs.asks import HOOK, add, letters, wait_for

OLD, NEW = ("whsec_" + base64.b64encode(bytes([byte]) * 24).decode() for byte in (1, 2))
NOW = 1_700_000_000


class Receiver:
    """Answers as told and remembers what came."""

    def __init__(self, *answers: int | Exception):
        self.answers = list(answers)
        self.came: list[tuple[str, Mapping[str, str], bytes]] = []

    def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        self.came.append((url, headers, body))
        answer = self.answers.pop(0) if self.answers else 200
        if isinstance(answer, Exception):
            raise answer
        return answer


def secrets(_: str) -> list[str]:
    return [NEW]


def end_one(store: Store, state: str = "done", url: str = HOOK) -> None:
    add(store, webhook=url)
    claim = store.claim("w")
    assert claim and store.finish(claim, Ending(state))  # type: ignore[arg-type]


def test_the_signature_is_that_of_the_published_example() -> None:
    # The test vector of the Standard Webhooks libraries.
    signature = sign(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_h4_letters_verify_with_both_secrets_while_one_is_replaced(store: Store) -> None:
    end_one(store)
    letter = store.take_letter()
    assert letter
    sent = headers(letter, [NEW, OLD], int(time.time()))
    for secret in (OLD, NEW):
        body = Webhook(secret).verify(letter.body.encode(), sent)
        assert body["type"] == "video.completed" and body["id"] == letter.id == sent["webhook-id"]
    with pytest.raises(WebhookVerificationError):
        Webhook(OLD).verify(letter.body.encode() + b" ", sent)


@pytest.mark.parametrize("secret", ["", "secret", "whsec_!!!", base64.b64encode(b"x" * 24).decode()])
def test_secrets_of_another_form_are_refused(secret: str) -> None:
    with pytest.raises(RefusedRequest):
        sign(secret, "msg_1", NOW, b"{}")


@pytest.mark.parametrize(("state", "kind"), [("done", "video.completed"), ("failed", "video.failed")])
def test_an_ended_job_sends_one_letter(store: Store, state: str, kind: str) -> None:
    end_one(store, state)
    receiver = Receiver()
    assert deliver(store, receiver, secrets) and not deliver(store, receiver, secrets)
    [(url, _, body)] = receiver.came
    assert url == HOOK and json.loads(body)["type"] == kind and json.loads(body)["data"]["state"] == state
    assert store.undelivered() == 0


def test_a_job_without_a_webhook_sends_none(store: Store) -> None:
    add(store)
    claim = store.claim("w")
    assert claim and store.finish(claim, Ending("done"))
    assert letters(store) == []


def test_h1_failures_are_tried_again_with_the_same_id_after_growing_pauses(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "PAUSES", (0.02, 0.04, 0.06))
    monkeypatch.setattr(outbox, "REST", 0.0)
    end_one(store)
    receiver = Receiver(500, TimeoutError("slow"), 302)
    wait_for(lambda: deliver(store, receiver, secrets) and not store.undelivered())
    assert len(receiver.came) == 4
    assert len({sent["webhook-id"] for _, sent, _ in receiver.came}) == 1


def test_h1_a_letter_is_given_up_after_the_last_pause(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(outbox, "REST", 0.0)
    end_one(store)
    receiver = Receiver(*[500] * 9)
    wait_for(lambda: deliver(store, receiver, secrets) and not store.undelivered())
    assert len(receiver.came) == 3 and letters(store)[0].state == "dead"


def test_h1_gone_means_stop(store: Store) -> None:
    end_one(store)
    deliver(store, Receiver(410), secrets)
    assert letters(store)[0].state == "dead" and store.undelivered() == 0


def test_the_pauses_are_those_of_the_documentation() -> None:
    assert outbox.PAUSES == (5, 300, 1800, 7200, 18000, 36000, 36000)


def test_h2_a_courier_that_died_leaves_its_letter_to_the_next(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "LEASE", 0.2)
    end_one(store)
    first = store.take_letter()
    assert first and store.take_letter() is None
    wait_for(lambda: store.take_letter() is not None)
    # The first one wakes up late: its answer counts no more.
    store.delivered(first)
    assert store.undelivered() == 1


def test_h5_a_dead_host_does_not_delay_the_others(store: Store) -> None:
    for _ in range(8):
        end_one(store, url="http://dead.test/hook")
    end_one(store, url="http://alive.test/hook")
    dead: list[str] = []

    def send(url: str, headers: Mapping[str, str], body: bytes) -> int:
        if "dead" in url:
            dead.append(url)
            raise OSError("no route")
        return 204

    tries = 0
    while deliver(store, send, secrets):
        tries += 1
    assert tries == 2 and len(dead) == 1
    assert store.undelivered() == 8
