"""The service's settings: where they come from, which counts, and what is refused with the line and a hint (I3)."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from ltx2.spec.errors import RefusedRequest
from ltx2.spec.service import KNOBS, MACHINE, ServiceSettings, build, read_environment, read_file


def write(folder: Path, text: str) -> Path:
    path = folder / "ltx2.toml"
    path.write_text(text)
    return path


def test_flags_before_environment_before_file(tmp_path: Path) -> None:
    file = read_file(
        write(tmp_path, 'host = "0.0.0.0"\nport = 1\nrpm = 2\norigins = ["https://a.example"]\nadapter = true\n')
    )
    around = read_environment(
        {"LTX2_PORT": "3", "LTX2_HOST": "::1", "LTX2_HOSTS": "a, b", "LTX2_ADAPTER": "no", "PATH": "x"}
    )
    settings = build({"port": "4", "rpm": None}, around, file)
    assert (settings.port, settings.host, settings.rpm) == (4, "::1", 2)
    assert settings.hosts == ("a", "b") and settings.origins == ("https://a.example",)
    assert settings.adapter is False
    assert build() == ServiceSettings()


def test_empty_is_unset_and_machine_settings_pass_through() -> None:
    assert read_environment({"LTX2_PORT": "", "LTX2_MODEL": "tiny"}) == {"model": "tiny"}
    assert MACHINE and "model" in MACHINE and not (MACHINE - {"price_per_hour"}) & KNOBS.keys()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("port = 8000\nprot = 1\n", "line 2: there is no setting 'prot'"),
        ('# a\n\n"hots" = "x"\n', "line 3: there is no setting 'hots'"),
        ("[limits]\nrpm = 3\n", "line 1: there is no setting 'limits'"),
        ("port = \n", "line 1"),
        ("port = 'many'\n", "line 1: 'many' cannot be port"),
        ("port = true\n", "True cannot be port"),
        ("port = -1\n", "-1 cannot be port"),
        ("drain_timeout = nan\n", "nan cannot be drain_timeout"),
        ("adapter = 'maybe'\n", "'maybe' cannot be adapter"),
        ("rpm = 1.5\n", "1.5 cannot be rpm"),
        ("rpm = 0\n", "0 cannot be rpm"),
        ("stall = 0.0\n", "0.0 cannot be stall"),
    ],
)
def test_I3_a_file_that_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(RefusedRequest) as refused:
        read_file(write(tmp_path, text))
    assert says in refused.value.message and "ltx2.toml" in refused.value.message
    assert refused.value.hint and refused.value.exit_code == 2


def test_I3_what_would_work_is_said_for_each_kind_of_number() -> None:
    for name, value, hint in (
        ("depth", "0", "a whole number above 0"),
        ("workers", "-1", "a whole number of 0 or more"),
        ("keep_files", "0", "a number above 0"),
        ("min_free_gib", "-1", "a number of 0 or more"),
        ("memory_gib", "x", "a number above 0"),
    ):
        with pytest.raises(RefusedRequest) as refused:
            build({name: value})
        assert (refused.value.hint, refused.value.knob) == (hint, name)
    assert build({"workers": "0", "min_free_gib": 0}).workers == 0


def test_I3_what_could_never_match_is_refused() -> None:
    fine = {
        "origins": "https://app.example,http://localhost:3000",
        "receivers": "http://127.0.0.1:9000,https://hook.internal,http://[::1]:9",
        "hosts": "Video.example,10.0.0.7,::1",
        "trusted_proxies": "*,10.0.0.1,10.0.0.0/8,fd00::/8",
    }
    assert build(fine).hosts == ("Video.example", "10.0.0.7", "::1")
    for name, wrong in (
        ("origins", ("https://app.example/", "app.example", "*", "https://App.example", "https://a.example/page")),
        ("receivers", ("127.0.0.1:9000", "http://127.0.0.1:9000/hook", "ftp://a")),
        ("hosts", ("video.example:8000", "https://video.example", "*.example")),
        ("trusted_proxies", ("proxy.internal", "10.0.0.1:80/x")),
    ):
        for value in wrong:
            with pytest.raises(RefusedRequest, match=name) as refused:
                build({name: [value]})
            assert (refused.value.hint or "").startswith("as in ")


def test_I3_variables_that_nobody_knows() -> None:
    for name, near in (("LTX2_FOO", "docs"), ("LTX2_PROT", "LTX2_PORT"), ("LTX2_MODLE", "LTX2_MODEL")):
        with pytest.raises(RefusedRequest) as refused:
            read_environment({name: "1"})
        assert name in refused.value.message and near in (refused.value.hint or "")
    with pytest.raises(RefusedRequest, match="log_level"):
        build({"log_level": "loud"})


def test_other_doors_have_tables_of_their_own(tmp_path: Path) -> None:
    assert read_file(write(tmp_path, 'port = 1\nmodel = "tiny"\n[modal]\nanything = 1\n')) == {
        "port": 1,
        "model": "tiny",
    }
    assert read_environment({"LTX2_MODAL_X": "1", "LTX2_OTHER": "1"}, frozenset({"other"})) == {}


def test_secrets_come_from_files_and_are_never_shown(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef\n")
    settings = build(
        read_environment({"LTX2_SECRET_FILE": str(secret)}), {"db": "postgresql://ann:pw%40@db/x?password=pw2"}
    )
    assert settings.secret == "0123456789abcdef"
    shown = settings.shown()
    assert shown.keys() == {field.name for field in fields(ServiceSettings)}
    assert "0123456789abcdef" not in str(shown) and "pw" not in str(shown["db"]).replace("password", "")
    assert "ann" in shown["db"] and shown["port"] == 8000
    with pytest.raises(RefusedRequest, match="LTX2_DB_FILE"):
        read_environment({"LTX2_DB_FILE": str(tmp_path / "none")})
