"""What a worker makes before its first job, and that it is refused before a process is started."""

from __future__ import annotations

import pytest

from ltx2.doors.cli import main
from ltx2.doors.worker import warm_ups
from ltx2.spec.card import Card
from ltx2.spec.service import read_file
from ltx2.spec.settings import Settings

DEV = Card("dev", distilled_lora=True, upsampler=True)


def test_the_shapes_in_a_few_steps_with_their_own_guidance() -> None:
    plans = warm_ups(Settings(warm_up=("default", "original", "1536x1024x121:distilled-two-stage")), DEV)
    assert [(plan.preset, plan.width, plan.height, plan.frames) for plan in plans] == [
        ("dev", 768, 512, 121), ("classic", 768, 512, 97), ("distilled-two-stage", 1536, 1024, 121)
    ]  # fmt: skip
    assert [stage.steps for plan in plans for stage in plan.stages] == [3, 3, 3, 3]
    assert [plan.stages[0].passes_per_step for plan in plans] == [4, 2, 1]
    assert warm_ups(Settings(warm_up=()), DEV) == ()


def test_a_shape_that_cannot_be_made_is_refused_at_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worker", "--warm-up", "100x100x9"]) == 2
    assert "warm_up: width: 100 is not a multiple" in capsys.readouterr().err
    assert main(["worker", "--warm-up", "768x512"]) == 2
    assert "LTX2_WARM_UP: '768x512' is no shape" in capsys.readouterr().err


def test_shapes_stand_in_the_settings_file_as_a_list(tmp_path) -> None:
    file = tmp_path / "ltx2.toml"
    for line, expected in (('["default", "768x512x97:classic"]', "default,768x512x97:classic"), ("[]", "none")):
        file.write_text(f"warm_up = {line}\n")
        assert read_file(file)["warm_up"] == expected
