"""What the published headers say must give the published Diffusers configs and fill the full-size networks."""

from __future__ import annotations

import gzip
import inspect
import json
from typing import Any

import pytest

from ltx2.models import official
from ltx2.models.describe import HERE, folder_configs
from ltx2.models.rename import component_of, diffusers_name, official_key
from ltx2.models.weights import CLASSES, account, build
from ltx2.spec.errors import CheckpointError
from tests.data_files import DATA

VERSIONS = {"LTX-2": "ltx-2", "LTX-2.3": "ltx-2.3", "LTX-2.5": "ltx-2.5"}


def _header(name: str) -> dict[str, Any]:
    return json.loads((DATA / "configs" / f"{name}.json").read_text())


def _manifest(name: str) -> dict[str, tuple[int, ...]]:
    shapes = json.loads(gzip.decompress((HERE / "manifests" / f"{name}.json.gz").read_bytes()))
    return {key: tuple(shape) for key, shape in shapes.items()}


def _converted(name: str) -> dict[str, dict[str, Any]]:
    header = _header(name)
    class_name, vocoder = official.vocoder_config(header)
    return {
        "transformer": official.transformer_config(header),
        "connectors": official.connectors_config(header),
        "vae": official.vae_config(header),
        "audio_vae": official.audio_vae_config(header),
        "vocoder": {"_class_name": class_name} | vocoder,
    }


def _effective(component: str, config: dict[str, Any]) -> dict[str, Any]:
    """The config with the class's defaults filled in, as JSON has it."""
    classes = {candidate.__name__: candidate for candidate in CLASSES[component]}
    chosen = classes[config.get("_class_name", CLASSES[component][0].__name__)]
    parameters = list(inspect.signature(chosen.__init__).parameters.values())[1:]
    values = {p.name: config.get(p.name, p.default) for p in parameters}
    return json.loads(json.dumps(values)) | {"_class_name": chosen.__name__}


@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize("component", ["transformer", "connectors", "vae", "audio_vae", "vocoder"])
def test_header_config_gives_the_published_config(name: str, component: str) -> None:
    published = _effective(component, folder_configs(HERE / "configs" / VERSIONS[name])[component])
    ours = _effective(component, _converted(name)[component])
    if component == "transformer":
        published["perturbed_attn"] = True  # the correction that makes 2.0's STG real
    if component == "vocoder" and published["_class_name"] == "LTX2VocoderWithBWE":
        published["final_act_fn"] = "clamp"  # the official end of the 16 kHz generator
    if component == "vae" and name != "LTX-2":
        # This copy of the header names only decoder_spatial_padding_mode, which the official decoder ignores.
        assert (ours.pop("decoder_spatial_padding_mode"), published.pop("decoder_spatial_padding_mode")) == (
            "reflect",
            "zeros",
        )
        header = _header(name)
        header["vae"]["spatial_padding_mode"] = "zeros"
        assert official.vae_config(header)["decoder_spatial_padding_mode"] == "zeros"
    assert ours == published


@pytest.mark.parametrize("name", VERSIONS)
def test_full_size_networks_accept_the_renamed_official_tensors(name: str) -> None:
    configs = _converted(name)
    shapes: dict[str, dict[str, tuple[int, ...]]] = {component: {} for component in configs}
    strangers = []
    for key, shape in _manifest(name).items():
        place = component_of(key)
        if place is None:
            strangers.append(key)
        else:
            shapes[place[0]][diffusers_name(*place)] = shape
    assert all(key.startswith("duration_head.") for key in strangers)
    assert len(strangers) == (15 if name == "LTX-2.5" else 0)
    for component, config in configs.items():
        account(build(component, config), shapes[component], component)


def test_weights_of_another_version_are_refused() -> None:
    newer = {
        diffusers_name(*place): shape
        for key, shape in _manifest("LTX-2.3").items()
        if (place := component_of(key)) and place[0] == "transformer"
    }
    with pytest.raises(CheckpointError, match=r"12 missing|missing.*unexpected.*of the wrong shape"):
        account(build("transformer", _converted("LTX-2")["transformer"]), newer, "a 2.3 file")


def test_gemma_accepts_names_of_old_and_new_transformers() -> None:
    from ltx2.models.gemma import own_names

    network = build("text_encoder", folder_configs(HERE / "configs" / "ltx-2")["text_encoder"])
    new = _manifest("gemma3-12b")
    old = {
        key.replace("model.language_model.", "language_model.model.")
        .replace("model.vision_tower.", "vision_tower.vision_model.")
        .replace("model.multi_modal_projector.", "multi_modal_projector."): shape
        for key, shape in new.items()
        if key != "lm_head.weight"
    }
    for names in (new, old):
        own = own_names(network.state_dict(), names)
        account(network, {own[key]: shape for key, shape in names.items()}, "gemma")


@pytest.mark.parametrize("name", ["LTX-2", "LTX-2.3"])
def test_upsamplers_accept_their_tensors(name: str) -> None:
    config = folder_configs(HERE / "configs" / VERSIONS[name])["upsampler"]
    account(build("upsampler", config), _manifest(f"{name}-upsampler"), name)


@pytest.mark.parametrize("name", VERSIONS)
def test_official_keys_are_the_inverse_of_the_table(name: str) -> None:
    for key in _manifest(name):
        place = component_of(key)
        if place:
            assert official_key(place[0], diffusers_name(*place)) == key


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"qk_norm": "layer_norm"}, "qk_norm"), ({"use_middle_indices_grid": False}, "use_middle_indices_grid")],
)
def test_unsupported_transformer_settings_are_refused(change: dict[str, Any], complaint: str) -> None:
    header = _header("LTX-2.3")
    header["transformer"] |= change
    with pytest.raises(CheckpointError, match=complaint):
        official.transformer_config(header)


def test_unsupported_vae_blocks_are_refused() -> None:
    header = _header("LTX-2")
    header["vae"]["decoder_blocks"][1][0] = "attn_res_x"
    with pytest.raises(CheckpointError, match="attn_res_x"):
        official.vae_config(header)
