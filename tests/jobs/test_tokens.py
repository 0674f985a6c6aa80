"""Tokens in the database of the queue: made, found, rotated, revoked, and kept as digests."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from sqlalchemy import Connection, select

from ltx2.jobs import tokens as module
from ltx2.jobs.database import Database
from ltx2.jobs.store import Store
from ltx2.jobs.tables import METADATA, SCHEMA, SPENT, STEPS, TOKENS, WAITING
from ltx2.jobs.tokens import LETTERS, Grant, Tokens, read, write
from ltx2.spec.errors import RefusedRequest
from tests.jobs.asks import add


@pytest.fixture
def tokens(store: Store) -> Tokens:
    return Tokens(store.database)


def test_a_token_is_kept_as_a_digest(tokens: Tokens) -> None:
    token, text = tokens.add("ann", Grant(("read",), limit=3, rpm=5, running=2, megapixel_frames=38.5))
    found = read(text)
    assert found and found[0] == token.id and token.fits(found[1]) and not token.fits(found[1][:-1] + "-")
    (kept,) = tokens.all()
    assert kept == token and (kept.scopes, kept.limit, kept.rpm) == (("read",), 3, 5)
    assert (kept.running, kept.megapixel_frames) == (2, 38.5)
    row = tokens.database.read(lambda connection: connection.execute(select(TOKENS)).one())
    assert found[1] not in str(row) and text not in str(row)
    assert "digest" not in repr(token) and "whsec" not in repr(token)


def test_every_typing_error_is_seen(tokens: Tokens) -> None:
    _, text = tokens.add("ann", Grant())
    for place in range(5, len(text)):
        other = "a" if text[place] != "a" else "b"
        assert read(text[:place] + other + text[place + 1 :]) is None, place
    for wrong in (
        "",
        "ltx2",
        "ltx2__",
        text + "0",
        text[:-1],
        text.replace("ltx2", "ltx3"),
        text.replace("_", "-"),
        "ü" * 65,
    ):
        assert read(wrong) is None


def test_one_live_token_for_a_name(tokens: Tokens) -> None:
    tokens.add("ann", Grant())
    with pytest.raises(RefusedRequest, match="rotate"):
        tokens.add("ann", Grant())
    assert tokens.revoke("ann") == 1
    tokens.add("ann", Grant())
    assert len(tokens.all()) == 2 and len(tokens.live()) == 1


def test_rotation_keeps_what_it_may_do_and_lets_two_live(tokens: Tokens) -> None:
    old, _ = tokens.add("ann", Grant(scopes=("read", "admin"), limit=2, rpm=9, running=1, megapixel_frames=0.5))
    new, _ = tokens.rotate("ann", grace=0.5)
    assert (new.scopes, new.limit, new.rpm) == (old.scopes, old.limit, old.rpm)
    assert (new.running, new.megapixel_frames) == (1, 0.5)
    assert new.webhook_secret != old.webhook_secret
    assert [token.id for token in tokens.live()] == [new.id, old.id], "webhooks are signed with both, the newest first"
    time.sleep(0.7)
    assert [token.id for token in tokens.live()] == [new.id]
    newest, _ = tokens.rotate("ann", grace=0)
    assert [token.id for token in tokens.live()] == [newest.id]
    with pytest.raises(RefusedRequest, match="has no token"):
        tokens.rotate("bob", 1)


def test_a_token_ends_at_its_time(tokens: Tokens) -> None:
    token, _ = tokens.add("ann", Grant(seconds=0.3))
    assert token.expires and token.is_live(token.expires - 0.1) and not token.is_live(token.expires)
    time.sleep(0.5)
    assert tokens.live() == []
    tokens.add("ann", Grant())


def test_revoking_by_name_or_id(tokens: Tokens) -> None:
    old, _ = tokens.add("ann", Grant())
    tokens.rotate("ann", grace=60)
    assert tokens.revoke(old.id) == 1 and len(tokens.live()) == 1
    tokens.rotate("ann", grace=60)
    assert tokens.revoke("ann") == 2 and not tokens.live()
    with pytest.raises(RefusedRequest, match="no live token"):
        tokens.revoke("ann")


@pytest.mark.parametrize(
    ("name", "grant"),
    [
        ("", Grant()), ("a b", Grant()), ("ä", Grant()), ("x" * 65, Grant()), ("../x", Grant()),
        ("ann", Grant(scopes=())), ("ann", Grant(scopes=("read", "root"))), ("ann", Grant(limit=0)),
        ("ann", Grant(rpm=0)), ("ann", Grant(seconds=0)), ("ann", Grant(running=0)),
        ("ann", Grant(megapixel_frames=0.0)),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(sqlite_url: str, name: str, grant: Grant) -> None:
    store = Store(sqlite_url)
    with pytest.raises(RefusedRequest):
        Tokens(store.database).add(name, grant)
    assert not Tokens(store.database).all()
    store.close()


def test_a_commit_whose_answer_was_lost_makes_no_second_token(tokens: Tokens) -> None:
    drawn = {"id": "0" * 10, "digest": "x", "webhook_secret": "y"}
    first = tokens.database.write(module._add, "ann", Grant(), drawn)
    assert tokens.database.write(module._add, "ann", Grant(), drawn) == first
    drawn |= {"id": "1" * 10}
    first = tokens.database.write(module._rotate, "ann", 9.0, drawn)
    assert tokens.database.write(module._rotate, "ann", 9.0, drawn) == first
    assert len(tokens.all()) == 2


@pytest.mark.parametrize("version", [1, 2])
def test_a_database_of_a_former_version_is_brought_up_to_date(url: str, version: int) -> None:
    store = Store(url)
    job = add(store)
    old, _ = Tokens(store.database).add("ann", Grant(limit=3))

    def go_back(connection: Connection) -> None:
        SPENT.drop(connection)
        WAITING.drop(connection)
        connection.exec_driver_sql("ALTER TABLE ltx2_jobs DROP COLUMN most_running")
        if version == 1:
            TOKENS.drop(connection)
        else:
            for column in ("running", "megapixel_frames"):
                connection.exec_driver_sql(f"ALTER TABLE ltx2_tokens DROP COLUMN {column}")
        connection.execute(SCHEMA.update().values(version=version))

    store.database.write(go_back)
    store.close()
    assert TOKENS.name not in METADATA.tables, "the first step makes what it always made"
    store = Store(url)
    found = store.database.read(lambda connection: connection.execute(select(SCHEMA.c.version)).scalar_one())
    assert found == len(STEPS) == 3
    assert store.get(job.token, job.id) == job
    tokens = Tokens(store.database)
    assert tokens.all() == ([old] if version == 2 else [])
    tokens.add("bob", Grant(running=1, megapixel_frames=2.5))
    add(store, "bob", running=1, megapixel_frames=100.0)
    store.close()


def test_the_letters_of_a_token_are_read_back() -> None:
    text = write(LETTERS[:10], LETTERS[10:53])
    assert read(text) == (LETTERS[:10], LETTERS[10:53])
    assert Path(text).name == text, "no character that a shell or a path would take for its own"
    assert Database.__doc__
