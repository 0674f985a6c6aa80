"""What a stranger reads of a text: paths and secrets are out of it, everything else is as it was."""

from __future__ import annotations

import pytest

from ltx2.spec.discretion import LONGEST, discreet, told
from ltx2.spec.errors import CheckpointError, DoesNotFit, GenerationFailed


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("x.safetensors: /home/ann/models/x.safetensors: a key is missing", "x.safetensors: …: a key is missing"),
        ("[Errno 2] No such file: '/data/My Videos/1/out.mp4'", "[Errno 2] No such file: …"),
        ("PosixPath('/srv/a b/c'), (/srv/a), path=/srv/a:12", "PosixPath(…), (…), path=…:12"),
        ("~/.cache/x, ../data/x and ./y", "…, … and …"),
        ("file:///srv/x, at:/srv/x", "…, at:…"),
        ("/data", "…"),
        ("postgresql://ltx2:pass@db/jobs is away", "postgresql://…@db/jobs is away"),
        ("Authorization: Bearer abc.def-1", "Authorization: Bearer …"),
        ("ltx2_0123456789_" + 49 * "a", "…"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "…"),
        ("hf_abcdefghijklmnopqrst was refused", "… was refused"),
        ("content?variant=video&sig=JhgyQ6KyopQz&x=1", "content?variant=video&sig=…&x=1"),
        ("<Tensor at 0x7f12ab34cd56>", "<Tensor at …>"),
        ('Traceback (most recent call last):\n  File "/srv/y.py", line 3\nValueError: no', "ValueError: no"),
        ("first\nsecond /srv/x", "first"),
        ("", ""),
    ],
)
def test_what_is_left_out(text: str, read: str) -> None:
    assert discreet(text) == read


@pytest.mark.parametrize(
    "text",
    [
        "768x512 with 97 frames needs 30.1 GiB, the workers have 24.0 GiB (81 frames fit)",
        "fps: 24000/1001 works, 16:9 and 9/16, and/or 1 / 2; image/png",
        "POST /v1/videos takes it, GET /v1/capabilities lists all; /metrics needs a scope; '/v1/videos'",
        "https://example.org/a/b?x=1 is not public",
        "token: 7 of your jobs are open; ltx2 tokens add NAME",
        "the prompt has 8,001 characters … 你好",
    ],
)
def test_what_stays(text: str) -> None:
    assert discreet(text) == text


def test_no_text_is_endless_and_none_takes_long() -> None:
    assert len(discreet("a " * 100_000)) == LONGEST
    assert discreet("/" * 50_000) and discreet("'" * 50_000) and discreet("./" * 50_000)


def test_of_what_nobody_foresaw_only_the_kind_is_told() -> None:
    error = GenerationFailed("KeyError: '/srv/x' in s3cr3t")
    error.__cause__ = KeyError("/srv/x")
    assert told(error) == "the engine broke: KeyError" == told(KeyError("s3cr3t"))
    assert told(GenerationFailed("the engine ended without a result")) == "the engine ended without a result"
    assert told(CheckpointError("/srv/m: no config", hint="look into /srv/m")) == "…: no config (look into …)"
    assert told(DoesNotFit("too large", hint="81 frames fit")) == "too large (81 frames fit)"
