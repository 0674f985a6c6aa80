"""The settings of a deployment: where they come from, what is refused before anything is deployed."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from ltx2.spec.deployment import CARRIED, GPUS, Deployment, read_deployment
from ltx2.spec.errors import RefusedRequest


def test_the_defaults_are_frugal():
    settings = read_deployment({})
    assert (settings.min_containers, settings.buffer_containers, settings.max_containers) == (0, 0, 1)
    assert settings.scaledown_window <= 60 and settings.daily_cap > 0 and settings.region is None


def test_the_environment_goes_before_the_file(tmp_path: Path):
    file = tmp_path / "ltx2.toml"
    file.write_text('port = 8000\n[modal]\ngpus = ["H200", "H100"]\nscaledown_window = 120\ndaily_cap = 5\n')
    settings = read_deployment({"LTX2_MODAL_SCALEDOWN_WINDOW": "30", "LTX2_MODAL_REGION": ""}, file)
    assert settings.gpus == ("H200", "H100") and settings.scaledown_window == 30 and settings.daily_cap == 5.0
    assert settings.region is None


def test_the_video_of_a_request_that_names_nothing_is_warmed_up_unless_it_is_not_wanted(tmp_path: Path):
    assert read_deployment({}).warm_up == ("default", "original")
    assert read_deployment({"LTX2_MODAL_WARM_UP": "default,768x512x97"}).warm_up == ("default", "768x512x97")
    (tmp_path / "ltx2.toml").write_text("[modal]\nwarm_up = []\n")
    for nothing in (read_deployment({"LTX2_MODAL_WARM_UP": "none"}), read_deployment({}, tmp_path / "ltx2.toml")):
        assert nothing.warm_up == () and read_deployment({CARRIED: nothing.carried()}) == nothing


def test_what_is_carried_to_a_container_is_the_same():
    settings = read_deployment(
        {"LTX2_MODAL_GPUS": "H200,B200", "LTX2_MODAL_WARM_UP": "768x512x97", "LTX2_MODAL_REGION": "eu"}
    )
    assert read_deployment({CARRIED: settings.carried(), "LTX2_MODAL_GPUS": "T4"}) == settings


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("GPUS", "H2OO", "H200"),
        ("GPUS", "RTX5090", "one of"),
        ("GPUS", ",", "at least one"),
        ("SNAPSHOT", "yes", "one of none, cpu, gpu"),
        ("PRECISION", "fp4", "one of auto"),
        ("MAX_CONTAINERS", "0", "1 to 100"),
        ("SCALEDOWN_WINDOW", "5000", "2 to 3600"),
        ("MIN_CONTAINERS", "2", "1 works"),
        ("TIMEOUT", "soon", "a whole number"),
        ("DAILY_CAP", "much", "a number"),
        ("WARM_UP", "768x512", "768x512x97"),
        ("APP", "a/b", "ltx2-video works"),
        ("SCALEDOWN", "5", "scaledown_window"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_one_that_works(name: str, value: str, says: str):
    with pytest.raises(RefusedRequest) as error:
        read_deployment({f"LTX2_MODAL_{name}": value})
    assert says in str(error.value) and error.value.knob


@pytest.mark.parametrize("text", ["[modal]\ngpu = 'H200'\n", "[modal\n", "[modal]\nmin_containers = true\n"])
def test_a_fault_in_the_file_is_refused_by_name(tmp_path: Path, text: str):
    file = tmp_path / "ltx2.toml"
    file.write_text(text)
    with pytest.raises(RefusedRequest, match=r"ltx2\.toml"):
        read_deployment({}, file)


def test_every_setting_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "06-modal.md").read_text()
    assert [field.name for field in fields(Deployment) if f"| `{field.name}` |" not in page] == []


def test_prices_are_the_published_ones():
    assert GPUS["H200"].price * 3600 == pytest.approx(4.54, abs=0.01)
    assert Deployment(gpus=("H200",)).price_of("H200") == GPUS["H200"].price
    assert Deployment(gpus=("H200",), region="eu").price == pytest.approx(1.75 * GPUS["H200"].price)
