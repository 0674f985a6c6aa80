"""LTX-2.5's official files: several that are one model, with Gemma 4 as text encoder, and what is refused about them."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltx2.models import oracle
from ltx2.models.components import Models, load
from ltx2.models.describe import Source, read_card
from ltx2.models.gemma import gemma_name
from ltx2.models.header import read_header
from ltx2.models.manifest import manifest
from ltx2.models.small import small
from ltx2.pipeline.text import embed
from ltx2.spec.errors import CheckpointError
from tests.models.checkpoints import (
    TEXT_ENCODER_25,
    equal_states,
    official_gemma4,
    write_folder,
    write_split,
    write_text_encoder,
)

PROMPT = "a red ball bounces"


@cache
def _original() -> Models:
    models = small("2.5")
    # Whatever a file holds is used: scalars that are not one would show if they were left alone.
    for number, layer in enumerate(models.networks["text_encoder"].model.language_model.layers):
        layer.layer_scalar.fill_(0.5 + number)
    return models


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("split") / "LTX-2.5"
    write_split(_original(), root)
    return root


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "LTX-2.5"))


def _transformer(root: Path) -> Path:
    return next((root / "diffusion_models").iterdir())


def _change(file: Path, add: dict[str, torch.Tensor] | None = None, drop: str = "", **metadata: str) -> None:
    state = {key: tensor for key, tensor in load_file(file).items() if key != drop}
    save_file(state | (add or {}), file, read_header(file).metadata | metadata)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["", "diffusion_models/ltx-2.5-22b-distilled-transformer-bf16.safetensors"])
def test_the_official_files_of_25_load_to_the_same_networks(written: Path, name: str) -> None:
    loaded = load(str(written / name), dtype=torch.float32)
    assert (loaded.card.version, loaded.card.kind) == ("2.5", "distilled")
    for part, network in loaded.networks.items():
        assert equal_states(_original().networks[part], network, torch.bfloat16), part
    ids = [models.tokenizer(PROMPT).input_ids for models in (_original(), loaded)]
    assert ids[0] == ids[1] and len(ids[0]) > 5


@torch.inference_mode()
def test_prompts_of_gemma_4_are_embedded_as_diffusers_does() -> None:
    models = _original()
    ours = embed(models, [PROMPT])
    states, mask, *_ = oracle.pipeline(models).encode_prompt(
        PROMPT, do_classifier_free_guidance=False, max_sequence_length=models.card.text_tokens
    )
    video, audio, _ = models.networks["connectors"](states, mask, padding_side="left")
    assert torch.equal(ours.video, video) and torch.equal(ours.audio, audio)


def test_a_diffusers_folder_of_25_loads_to_the_same_networks(tmp_path: Path) -> None:
    loaded = load(str(write_folder(_original(), tmp_path / "model")), dtype=torch.float32)
    assert loaded.card.version == "2.5"
    for part, network in loaded.networks.items():
        assert equal_states(_original().networks[part], network), part


def test_a_folder_with_two_transformers_gives_the_declared_kind(tmp_path: Path) -> None:
    folder = write_folder(_original(), tmp_path / "model")
    (folder / "scheduler" / "scheduler_config.json").write_text('{"use_dynamic_shifting": false}')
    shutil.copytree(folder / "transformer", folder / "transformer_full")
    full = next((folder / "transformer_full").glob("*.safetensors"))
    name, tensor = "proj_in.bias", torch.full((32,), 3.0)
    _change(full, {name: tensor})
    plain, dev = load(str(folder)), load(Source(str(folder), kind="dev"))
    assert (plain.card.kind, dev.card.kind) == ("distilled", "dev")
    assert torch.equal(dev.networks["transformer"].get_parameter(name), tensor.bfloat16())
    assert not torch.equal(plain.networks["transformer"].get_parameter(name), tensor.bfloat16())


def test_a_text_encoder_file_from_elsewhere(root: Path, tmp_path: Path) -> None:
    moved = shutil.move(root / "text_encoders" / f"{TEXT_ENCODER_25}.safetensors", tmp_path / "gemma.safetensors")
    loaded = load(Source(str(root), text_encoder=Path(moved)))
    assert equal_states(_original().networks["text_encoder"], loaded.networks["text_encoder"], torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"text_embedding_projection, which lies in 2\.5's text encoder file"):
        read_card(Source(str(root)))
    lone = shutil.copy(_transformer(root), tmp_path / "transformer.safetensors")
    with pytest.raises(
        CheckpointError, match=r"no whole model: it holds no vae, audio_vae, vocoder.*diffusion_models/"
    ):
        read_card(Source(str(lone), text_encoder=Path(moved)))


def test_memory_is_counted_from_all_files(written: Path) -> None:
    shape = read_card(Source(str(written))).shape
    bytes_of = {name: 2 * sum(t.numel() for t in n.state_dict().values()) for name, n in _original().networks.items()}
    head = _original().networks["text_encoder"].get_parameter("lm_head.weight").numel()
    assert shape.transformer_bytes == bytes_of["transformer"]
    assert shape.text_encoder_bytes == bytes_of["text_encoder"] - 2 * head
    assert shape.other_bytes > bytes_of["connectors"] + bytes_of["vae"]


def test_two_transformers_in_the_folder_need_a_name(root: Path) -> None:
    shutil.copy(_transformer(root), root / "diffusion_models" / "ltx-2.5-22b-dev-transformer-bf16.safetensors")
    with pytest.raises(CheckpointError, match=r"one transformer is needed.*name the file itself"):
        read_card(Source(str(root)))
    dev = root / "diffusion_models" / "ltx-2.5-22b-dev-transformer-bf16.safetensors"
    assert read_card(Source(str(dev))).kind == "dev"


def test_a_rotated_text_encoder_is_passed_over_and_alone_refused(root: Path) -> None:
    encoder = root / "text_encoders" / f"{TEXT_ENCODER_25}.safetensors"
    rotated = encoder.with_name("gemma4-12b-with-proj-ltx-2.5-comfy-int8-convrot.safetensors")
    shutil.copy(encoder, rotated)
    _change(rotated, {"model.layers.0.mlp.up_proj.comfy_quant": torch.zeros(4, dtype=torch.uint8)})
    assert read_card(Source(str(root))).version == "2.5"
    encoder.unlink()
    with pytest.raises(CheckpointError, match="rotated int8"):
        load(str(root))


def test_two_text_encoders_need_a_name(root: Path) -> None:
    encoder = root / "text_encoders" / f"{TEXT_ENCODER_25}.safetensors"
    shutil.copy(encoder, encoder.with_name("another.safetensors"))
    with pytest.raises(CheckpointError, match=r"one text encoder is needed.*--text-encoder"):
        read_card(Source(str(root)))


def test_the_diffusion_vae_alone_is_refused(root: Path) -> None:
    (root / "vae" / "ltx-2.5-video-vae-conv-bf16.safetensors").unlink()
    with pytest.raises(CheckpointError, match="there is no video VAE: the convolutional one is needed"):
        read_card(Source(str(root)))
    save_file({"decoder.conv_in.weight": torch.zeros(1)}, root / "vae" / "ltx-2.5-video-vae-bf16.safetensors")
    with pytest.raises(CheckpointError, match=r"ltx-2\.5-video-vae-bf16\.safetensors holds the diffusion decoder"):
        read_card(Source(str(root)))


def test_another_gemma_than_the_transformers_is_refused(root: Path) -> None:
    write_text_encoder(
        _original(), root / "text_encoders" / f"{TEXT_ENCODER_25}.safetensors", gemma_version="gemma4-12b-ltx-v2"
    )
    with pytest.raises(CheckpointError, match="made with the text encoder gemma4-12b-ltx-v1, but gemma4-12b-ltx-v2"):
        read_card(Source(str(root)))


@pytest.mark.parametrize("version", [["gemma4-12b-ltx-v1"], {"of": 4}, 4.0, True])
def test_a_gemma_version_that_is_no_text_is_refused(root: Path, version: object) -> None:
    encoder = root / "text_encoders" / f"{TEXT_ENCODER_25}.safetensors"
    write_text_encoder(_original(), encoder, gemma_version=version)
    with pytest.raises(CheckpointError, match=r"joined_gemma_config is damaged: gemma_version is .*, and no text"):
        read_card(Source(str(root)))


def test_parts_of_another_version_are_refused(root: Path) -> None:
    _change(root / "vae" / "ltx-2.5-audio-vae-bf16.safetensors", model_version="2.3.0")
    with pytest.raises(CheckpointError, match=r"is of 2\.5\.0, .*audio-vae.* of 2\.3\.0: the model mixes versions"):
        read_card(Source(str(root)))


def test_a_tensor_in_two_files_is_refused(root: Path) -> None:
    _change(root / "vae" / "ltx-2.5-audio-vae-bf16.safetensors", {"text_embedding_projection.x": torch.zeros(1)})
    _change(root / "text_encoders" / f"{TEXT_ENCODER_25}.safetensors", {"text_embedding_projection.x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"text_embedding_projection\.x is there twice"):
        read_card(Source(str(root)))


@pytest.mark.parametrize(
    ("add", "drop", "complaint"),
    [
        ({"model.layers.9.mlp.up_proj.weight": torch.zeros(1)}, "", r"1 unexpected: model\.layers\.9\.mlp"),
        ({}, "model.layers.1.layer_scalar", r"1 missing: model\.language_model\.layers\.1\.layer_scalar"),
        ({"model.norm.weight": torch.zeros(5)}, "", r"wrong shape: model\.language_model\.norm\.weight \[5\]"),
        ({}, "tokenizer_json", "came without a tokenizer"),
        ({"hf_asset__../x": torch.zeros(1, dtype=torch.uint8)}, "", "outside of its folder"),
    ],
)
def test_damaged_text_encoder_files_are_refused(
    root: Path, add: dict[str, torch.Tensor], drop: str, complaint: str
) -> None:
    _change(root / "text_encoders" / f"{TEXT_ENCODER_25}.safetensors", add, drop)
    with pytest.raises(CheckpointError, match=complaint):
        load(str(root))


@pytest.mark.parametrize(
    "config", ["{", "[1]", json.dumps({"model_type": "gemma4_unified", "text_config": {"hidden_size": "wide"}})]
)
def test_damaged_configs_of_the_text_encoder_are_refused(root: Path, config: str) -> None:
    _change(root / "text_encoders" / f"{TEXT_ENCODER_25}.safetensors", gemma_config=config)
    with pytest.raises(CheckpointError, match="damaged"):
        load(str(root))


def test_gemma_4_of_full_size_has_the_tensors_and_bytes_of_the_published_file() -> None:
    shapes = manifest("2.5")["text_encoder"]
    weights = {name: shape for name, shape in shapes.items() if name != "lm_head.weight"}
    total = 2 * sum(torch.Size(shape).numel() for shape in weights.values())
    # Of the 681 tensors in bf16 four are the connectors' projections, 3840 * 49 to 4096 and to 2048, with biases.
    assert len(weights) + 4 == 681
    projections = 2 * (3840 * 49 + 1) * (4096 + 2048)
    tokenizer, published = 32_169_626, 26_263_858_182
    # What is left are the header and four small text files.
    assert 0 < published - (total + projections + tokenizer) < 120_000
    names = {gemma_name(official_gemma4(name)) for name in _original().networks["text_encoder"].state_dict()}
    assert "picture_projection.embedding_projection.weight" in names and "layers.0.layer_scalar" in names


def test_a_gemma_of_another_version_is_refused(root: Path, tmp_path: Path) -> None:
    older = write_folder(small("2.3"), tmp_path / "older")
    with pytest.raises(CheckpointError, match=r"text encoder is Gemma 3, but LTX-2\.5 was made with Gemma 4"):
        read_card(Source(str(root), text_encoder=older))
    newer = write_folder(_original(), tmp_path / "newer")
    shutil.rmtree(older / "text_encoder")
    shutil.copytree(newer / "text_encoder", older / "text_encoder")
    with pytest.raises(CheckpointError, match=r"text encoder is Gemma 4, but LTX-2\.3 was made with Gemma 3"):
        read_card(Source(str(older)))


def test_a_kind_that_contradicts_the_name_is_refused(root: Path) -> None:
    with pytest.raises(CheckpointError, match="says of itself that it is distilled, but it is declared dev"):
        read_card(Source(str(root), kind="dev"))
    assert read_card(Source(str(root), kind="distilled")).kind == "distilled"
