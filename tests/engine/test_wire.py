"""Frames and messages against anything that may come: what was sent arrives, and rubbish is a ProtocolError, no more."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltx2.engine.messages import (
    Broken,
    Cancel,
    Done,
    Make,
    ProtocolError,
    Report,
    Start,
    Step,
    broken_by,
    error_of,
    read_order,
    read_report,
)
from ltx2.engine.wire import LIMIT, Wire
from ltx2.spec.errors import GenerationFailed, InvalidOutput, Ltx2Error, OutOfMemory

WORDS = st.text(max_size=50)
WHOLE = st.integers(0, 2**63)
REPORTS: st.SearchStrategy[Report] = st.one_of(
    st.builds(Step, kind=st.just("step"), job=WHOLE, phase=WORDS, step=WHOLE, steps=WHOLE),
    st.builds(
        Done,
        kind=st.just("done"),
        job=WHOLE,
        seed=WHOLE,
        seconds=st.floats(0, 1e9),
        peak_bytes=WHOLE,
        timings=st.dictionaries(WORDS, st.floats(0, 1e9), max_size=3),
        warnings=st.lists(WORDS, max_size=3),
    ),
    st.builds(
        Broken, kind=st.just("broken"), job=st.none() | WHOLE, code=WORDS, message=WORDS, knob=st.none(), hint=WORDS
    ),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=10,
)
KINDS = st.sampled_from(["ready", "step", "again", "done", "cancelled", "broken", "start", "make", "cancel", "other"])


@contextlib.contextmanager
def pair() -> Iterator[tuple[Wire, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Wire(ours), theirs


@settings(deadline=None, derandomize=True)
@given(st.lists(REPORTS, max_size=5))
def test_what_was_sent_arrives(reports: list[Report]) -> None:
    with pair() as (wire, other):
        sender = Wire(other)
        for report in reports:
            sender.send(report)
        sender.hang_up()
        for report in reports:
            assert read_report(wire.receive() or b"") == report
        assert wire.receive() is None


def read_bytes(data: bytes, framed: bool) -> None:
    with pair() as (wire, other):
        other.sendall((struct.pack("!I", len(data)) + data) if framed else data)
        other.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ProtocolError):
            while (frame := wire.receive()) is not None:
                read_report(frame)


def read_json(kind: str, fields: dict[str, object]) -> None:
    data = json.dumps({**fields, "kind": kind}).encode()
    for read in (read_report, read_order):
        with contextlib.suppress(ProtocolError):
            assert read(data).kind == kind


FIELDS = st.dictionaries(st.sampled_from(["job", "step", "steps", "phase", "seed", "code", "plan"]) | WORDS, JSON)
SHORT = settings(deadline=None, derandomize=True)
LONG = settings(deadline=None, max_examples=20_000)


def test_e7_k8_any_bytes_are_frames_or_a_protocol_error() -> None:
    SHORT(given(st.binary(max_size=200), st.booleans())(read_bytes))()


def test_e7_k8_any_json_is_a_message_or_a_protocol_error() -> None:
    SHORT(given(KINDS, FIELDS)(read_json))()


@pytest.mark.slow
def test_e7_k8_twenty_thousand_of_each() -> None:
    LONG(given(st.binary(max_size=2000), st.booleans())(read_bytes))()
    LONG(given(KINDS, FIELDS)(read_json))()


@pytest.mark.parametrize(
    "text",
    [
        b'{"kind":"step","job":"1","phase":"x","step":1,"steps":2}',
        b'{"kind":"step","job":1,"phase":"x","step":true,"steps":2}',
        b'{"kind":"step","job":1,"phase":"x","step":1.5,"steps":2}',
        b'{"kind":"step","job":1,"phase":"x","step":1,"steps":2,"more":3}',
        b'{"kind":"cancelled","job":1',
        b"[" * 100_000,
        b"null",
        b"\xff\xfe",
    ],
    ids=range(8),
)
def test_e7_messages_have_exactly_their_fields_and_types(text: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_report(text)


def test_e7_a_frame_that_is_too_long_is_refused_on_both_sides_before_it_is_read() -> None:
    with pair() as (wire, other):
        other.sendall(struct.pack("!I", LIMIT + 1))
        with pytest.raises(ProtocolError, match=f"{LIMIT} is the most"):
            wire.receive()
        with pytest.raises(ProtocolError):
            wire.send(Start(factory="x" * LIMIT, options={}))


@pytest.mark.parametrize("data", [b"\0", b"\0\0\0", b"\0\0\0\x05", b"\0\0\0\x05abcd", b"\0\0\0\0"])
def test_e7_a_frame_that_is_cut_off_or_empty_is_refused(data: bytes) -> None:
    with pair() as (wire, other):
        other.sendall(data)
        other.shutdown(socket.SHUT_WR)
        with pytest.raises(ProtocolError):
            wire.receive()


def test_receiving_and_sending_end_in_time() -> None:
    with pair() as (wire, other):
        other.sendall(b"\0\0")
        begin = time.monotonic()
        with pytest.raises(TimeoutError):
            wire.receive(time.monotonic() + 0.1)
        with pytest.raises(TimeoutError):
            for _ in range(100):
                wire.send(Make(job=1, plan={"prompt": "x" * 100_000}, out="/x"), seconds=0.1)
        assert time.monotonic() - begin < 5


def test_hanging_up_wakes_who_receives() -> None:
    with pair() as (wire, _):
        answers: list[bytes | None] = []
        thread = threading.Thread(target=lambda: answers.append(wire.receive()))
        thread.start()
        time.sleep(0.05)
        wire.hang_up()
        thread.join(10)
        assert answers == [None]
        with pytest.raises(OSError):
            wire.send(Cancel(job=1))


def every(kind: type[Ltx2Error]) -> Iterator[type[Ltx2Error]]:
    for child in kind.__subclasses__():
        if child.__module__ == "ltx2.spec.errors":
            yield child
        yield from every(child)


@pytest.mark.parametrize("kind", [*every(Ltx2Error)])
def test_every_error_of_the_tree_crosses_the_pipe_as_itself(kind: type[Ltx2Error]) -> None:
    error = kind("it broke", knob="width", hint="64 works")
    back = error_of(broken_by(1, error))
    assert type(back) is kind and (back.message, back.knob, back.hint) == ("it broke", "width", "64 works")


def test_an_error_with_an_unknown_code_is_a_failure_and_unforeseen_ones_tell_no_paths() -> None:
    odd = Broken(job=1, code="odd", message="x", knob=None, hint=None)
    assert type(error_of(odd)) is GenerationFailed
    try:
        raise GenerationFailed("/secret/place broke") from OSError("/secret/place")
    except GenerationFailed as error:
        assert broken_by(1, error).message == "the engine broke: OSError"
    assert broken_by(1, KeyError("/secret")).message == "the engine broke: KeyError"
    assert isinstance(error_of(broken_by(1, OutOfMemory("x"))), OutOfMemory)
    assert error_of(broken_by(1, InvalidOutput("x"))).code == "invalid_output"
