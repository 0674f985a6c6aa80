"""`ltx2 tokens`: what it prints, where, and what it refuses; and `--print-config` of the service's commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ltx2.doors import premises
from ltx2.doors.cli import main
from ltx2.jobs.tokens import read
from ltx2.spec.service import ServiceSettings


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own: no ltx2.toml of the developer's."""
    monkeypatch.chdir(tmp_path)


def tokens(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["tokens", *words, "--data", "data"])
    return code, *capsys.readouterr()


def test_a_token_goes_to_stdout_alone(capsys: pytest.CaptureFixture[str]) -> None:
    limits = ("--limit", "4", "--running", "1", "--megapixel-frames", "38.5")
    code, out, err = tokens(capsys, "add", "ann", "--scopes", "read,metrics", *limits, "--expires", "90d")
    assert code == 0 and read(out.strip()) and "whsec_" in err
    code, listed, _ = tokens(capsys, "list")
    assert "ann  live until" in listed and "read,metrics" in listed
    assert "limit=4 running=1 megapixel_frames=38.5" in listed
    assert out.strip() not in listed
    code, again, _ = tokens(capsys, "rotate", "ann", "--grace", "1h")
    assert read(again.strip()) and again != out
    _, found, _ = tokens(capsys, "list", "--json")
    rows = json.loads(found)["tokens"]
    assert [(row["state"], row["running"], row["megapixel_frames"]) for row in rows] == [("live", 1, 38.5)] * 2
    assert tokens(capsys, "revoke", "ann")[:2] == (0, "2 revoked\n")
    assert "revoked" in tokens(capsys, "list")[1]


def test_large_limits_are_listed_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert tokens(capsys, "add", "ann", "--rpm", "1000000", "--megapixel-frames", "1234567.25")[0] == 0
    assert "rpm=1000000 megapixel_frames=1234567.25" in tokens(capsys, "list")[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["add"], "whom"), (["add", "ann", "--scopes", "root"], "scopes"), (["add", "ann", "--limit", "x"], "limit"),
        (["add", "ann", "--running", "0"], "running"), (["add", "ann", "--megapixel-frames", "many"], "38.14"),
        (["add", "ann", "--expires", "soon"], "90d"), (["revoke", "ann"], "no live token"), (["rotate", "ann"], "add ann"),
        (["steal"], "invalid choice"),
    ],
)  # fmt: skip
def test_refusals(capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    code, out, err = tokens(capsys, *words)
    assert code == 2 and not out and says in err


def test_print_config_of_all_sources(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("ltx2.toml").write_text('port = 9000\nmodel = "tiny"\nrpm = 5\n')
    monkeypatch.setenv("LTX2_RPM", "7")
    monkeypatch.setenv("LTX2_SECRET", "a long secret of the tests")
    assert main(["serve", "--print-config", "--no-workers", "--depth", "9"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["port"], found["rpm"], found["depth"], found["workers"]) == (9000, 7, 9, 0)
    assert found["model"] == "tiny" and found["secret"] == "(hidden)"
    assert main(["worker", "--print-config"]) == 0
    assert json.loads(capsys.readouterr().out)["rpm"] == 7


def test_I3_the_service_is_not_started_with_a_typing_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["serve", "--prot", "1"]) == 2
    assert "--port" in capsys.readouterr().err
    Path("ltx2.toml").write_text("port = 9000\n\nprot = 1\n")
    assert main(["serve"]) == 2
    said = capsys.readouterr().err
    assert "line 3" in said and "port" in said
    Path("ltx2.toml").unlink()
    monkeypatch.setenv("LTX2_FOO", "1")
    assert main(["serve"]) == 2
    assert "LTX2_FOO" in capsys.readouterr().err
    assert main(["serve", "--config", "none.toml"]) == 2
    assert "none.toml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "flags", "says"),
    [
        ({"WEBHOOK_SECRET": "guess"}, [], ("webhook_secret", "openssl")),
        ({"RPM": "0"}, [], ("LTX2_RPM", "a whole number above 0")),
        ({}, ["--stall", "0"], ("stall", "a number above 0")),
        ({"DB": "nonsense"}, [], ("the database's URL cannot be read", "sqlite:///jobs.db")),
        ({}, ["--host", "no.such.host.invalid"], ("host: no.such.host.invalid", "an address of this machine")),
        ({}, ["--port", "99999"], ("port: ", "another port works")),
    ],
)  # fmt: skip
def test_I3_settings_that_could_not_work_are_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    variables: dict[str, str], flags: list[str], says: tuple[str, str],
) -> None:  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(f"LTX2_{name}", value)
    assert main(["serve", "--no-workers", "--data", str(tmp_path / "data"), *flags]) == 2
    said = capsys.readouterr().err
    assert all(part in said for part in says) and "Traceback" not in said, said


def test_I3_a_warm_up_that_the_model_cannot_make_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for shape, says in (("768x512x97", "width"), ("256x192x49:fast", "preset"), ("wide", "768x512x97:classic")):
        assert main(["serve", "--data", str(tmp_path / "data"), "--warm-up", shape]) == 2
        said = capsys.readouterr().err
        assert "warm_up" in said.lower() and says in said
    assert not (tmp_path / "data").exists()


def test_I3_a_secret_that_others_can_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = ServiceSettings(data=tmp_path)
    secret = premises.secret_of(settings)
    assert len(secret) == 64 and premises.secret_of(settings) == secret and not caplog.records
    (tmp_path / "secret").chmod(0o644)
    assert premises.secret_of(settings) == secret
    assert "chmod 600" in caplog.text
