"""Settings from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltx2.spec.errors import RefusedRequest
from ltx2.spec.settings import Settings


def test_nothing_set() -> None:
    assert Settings.read({}) == Settings()
    assert Settings.read({"LTX2_MODEL": "", "HOME": "/"}) == Settings()


def test_everything_set() -> None:
    environment = {
        "LTX2_MODEL": "Lightricks/LTX-2", "LTX2_DEVICE": "cuda:1", "LTX2_PRECISION": "fp32",
        "LTX2_CACHE": "/models", "LTX2_PRICE_PER_HOUR": "3.5",
    }  # fmt: skip
    assert Settings.read(environment) == Settings("Lightricks/LTX-2", "cuda:1", "fp32", Path("/models"), 3.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LTX2_DEVICE", "tpu"),
        ("LTX2_PRECISION", "fp4"),
        ("LTX2_TEXT_ENCODER_PRECISION", "fp8"),
        ("LTX2_TEXT_ENCODER_DEVICE", "tpu"),
        ("LTX2_LORA_MODE", "fused"),
        ("LTX2_FAST", "yes"),
        ("LTX2_ATTENTION", "fp4"),
        ("LTX2_ACTIVATION_SCALES", "dynamic"),
        ("LTX2_WARM_UP", "768x512"),
        ("LTX2_WARM_UP", "none,default"),
        ("LTX2_PRICE_PER_HOUR", "much"),
        ("LTX2_PRICE_PER_HOUR", "nan"),
    ],
)
def test_nonsense_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(RefusedRequest) as caught:
        Settings.read({name: value})
    assert caught.value.knob == name


def test_shapes_to_warm_up_and_where_kernels_are_kept() -> None:
    assert Settings.read({}).warm_up == ("default", "original")
    given = {"LTX2_WARM_UP": "default, 768x512x97:classic,default", "LTX2_KERNEL_CACHE": "/kernels"}
    settings = Settings.read(given)
    assert settings.warm_up == ("default", "768x512x97:classic") and settings.kernel_cache == Path("/kernels")
    assert Settings.read({"LTX2_WARM_UP": "none"}).warm_up == ()
