"""Loading whole models in every form, what strictness refuses, and where networks live."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltx2.models import describe
from ltx2.models.components import Holding, Models, load
from ltx2.models.describe import Source, locate, read_card
from ltx2.models.lora import LowRank
from ltx2.models.residency import Residency
from ltx2.models.small import small, small_configs
from ltx2.models.weights import assign, build
from ltx2.spec.errors import CheckpointError, UnknownModel
from tests.data_files import DATA
from tests.models.checkpoints import equal_states, write_folder, write_lora, write_singlefile, write_upsampler


@cache
def _original(version: str = "2.0") -> Models:
    """The small model that the files of this module are written from; nothing here changes it."""
    return small(version)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module", params=["2.0", "2.3"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    models = _original(request.param)
    return models, write_folder(models, tmp_path_factory.mktemp("folder"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(_original(), tmp_path_factory.mktemp("original"))


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def test_a_folder_loads_to_the_same_networks(saved: tuple[Any, Path]) -> None:
    models, root = saved
    loaded = load(str(root), dtype=torch.float32)
    assert loaded.networks.keys() == models.networks.keys()
    for name, network in loaded.networks.items():
        assert equal_states(models.networks[name], network), name
        assert not network.training
        assert not any(tensor.requires_grad or tensor.is_meta for tensor in network.state_dict(keep_vars=True).values())
    card = loaded.card
    assert (card.version, card.kind, card.stg_blocks) == (
        models.card.version,
        "dev",
        (29,) if card.version == "2.0" else (28,),
    )
    assert (card.upsampler, card.distilled_lora) == (True, True)
    assert card.output_sampling_rate == models.card.output_sampling_rate
    assert card.shape.transformer_bytes == 2 * sum(p.numel() for p in loaded.networks["transformer"].parameters())
    text = loaded.tokenizer("a cat", padding="max_length", max_length=64)
    assert text.input_ids == models.tokenizer("a cat", padding="max_length", max_length=64).input_ids
    assert text.input_ids[0] == 0, "padding is on the left"


def test_dtypes(saved: tuple[Any, Path]) -> None:
    loaded = load(str(saved[1]), dtype=torch.bfloat16)
    expected = dict.fromkeys(loaded.networks, torch.bfloat16)
    if loaded.card.version == "2.3":
        expected["vocoder"] = torch.float32
    assert {name: next(network.parameters()).dtype for name, network in loaded.networks.items()} == expected
    assert loaded.networks["vae"].get_buffer("latents_std").dtype == torch.float32
    rotary = loaded.networks["text_encoder"].get_buffer("model.language_model.rotary_emb.sliding_attention_inv_freq")
    assert rotary.dtype == torch.float32, "a bfloat16 rotary table would shift positions"


def test_an_official_single_file_loads_to_the_same_networks(folder: Path, tmp_path: Path) -> None:
    models = _original()
    source = Source(
        str(write_singlefile(models, tmp_path / "small-distilled.safetensors")),
        text_encoder=folder,
        upsampler=write_upsampler(models, tmp_path / "upscaler.safetensors"),
    )
    loaded = load(source, dtype=torch.float32)
    assert loaded.networks.keys() == models.networks.keys()
    for name, network in loaded.networks.items():
        assert equal_states(models.networks[name], network, None if name == "text_encoder" else torch.bfloat16), name
    assert (loaded.card.version, loaded.card.kind) == ("2.0", "distilled")
    assert not loaded.card.distilled_lora
    shape, whole = loaded.card.shape, read_card(Source(str(folder))).shape
    assert (shape.transformer_bytes, shape.text_encoder_bytes) == (whole.transformer_bytes, whole.text_encoder_bytes)
    ours, theirs = (m.networks["transformer"].config for m in (loaded, models))  # pyright: ignore
    assert {k: v for k, v in ours.items() if k[0] != "_"} == {k: v for k, v in theirs.items() if k[0] != "_"}


def test_a_single_file_without_text_encoder_is_refused_with_a_hint(tmp_path: Path) -> None:
    file = write_singlefile(_original(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no text encoder.*--text-encoder"):
        load(str(file))


def test_a_part_of_a_model_is_refused_as_a_model() -> None:
    with pytest.raises(CheckpointError, match="no whole model: it holds no connectors, vae, audio_vae, vocoder"):
        read_card(Source(str(DATA / "transformer_2.3.safetensors")))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"without": ("vocoder.conv_pre.bias",)}, r"vocoder.*1 missing: conv_in\.bias"),
        ({"tensors": {"vae.decoder.extra": torch.ones(1)}}, r"vae.*1 unexpected: decoder\.extra"),
        (
            {"tensors": {"model.diffusion_model.patchify_proj.bias": torch.ones(9)}},
            r"proj_in\.bias \[9\] instead of \[32\]",
        ),
        ({"tensors": {"lm_head.weight": torch.ones(1)}}, r"1 tensors of no known component: lm_head\.weight"),
        ({"tensors": {"vocoder.conv_pre.weight_scale": torch.ones(())}}, "no fp8 or nvfp4 weight that it belongs to"),
        ({"tensors": {"vocoder.conv_pre.zero_scale": torch.ones(())}}, "scale of unknown meaning"),
        ({"tensors": {"vocoder.conv_pre.weight_scale_2": torch.ones(())}}, "no fp8 or nvfp4"),
        ({"tensors": {"vocoder.conv_pre.comfy_quant": torch.ones(1)}}, "rotated int8"),
        (
            {"tensors": {"model.diffusion_model.proj_out.weight": torch.ones(8, 32).to(torch.float8_e4m3fn)}},
            "proj_out.weight is fp8 without its weight_scale",
        ),
        ({"model_version": "2.3.1"}, r"model_version 2\.3\.1, but its tensors are those of 2\.0"),
        ({"config": "{}"}, "no config in its metadata"),
    ],
)
def test_single_files_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    file = write_singlefile(_original(), tmp_path / "model.safetensors", **changes)
    with pytest.raises(CheckpointError, match=complaint):
        load(Source(str(file), text_encoder=folder))


def test_a_folder_that_is_no_checkpoint_says_what_is_missing(tmp_path: Path, copied: Path) -> None:
    with pytest.raises(CheckpointError, match=r"transformer/config\.json, connectors/config\.json"):
        load(str(tmp_path))
    shutil.rmtree(copied / "vocoder")
    with pytest.raises(CheckpointError, match=r"no LTX-2 checkpoint: vocoder/config\.json missing"):
        load(str(copied))


def _change_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes", "complaint"),
    [
        ("transformer", {"_class_name": "LTXVideoTransformer3DModel"}, "class LTXVideoTransformer3DModel; only"),
        ("vae", {"new_switch": 1}, "unknown fields: new_switch"),
        ("connectors", {"per_modality_projections": True}, "mixes versions: .*connectors of 2.3 or later"),
    ],
)
def test_foreign_configs_are_refused(copied: Path, file: str, changes: dict[str, Any], complaint: str) -> None:
    _change_json(copied / file / "config.json", **changes)
    with pytest.raises(CheckpointError, match=complaint):
        load(str(copied))


def test_missing_extra_and_misshaped_tensors_of_a_folder_are_refused_by_name(copied: Path) -> None:
    file = copied / "connectors" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    for change, complaint in (
        ({"text_proj_in.weight": None}, r"1 missing: text_proj_in\.weight"),
        ({"text_proj_in.alpha": torch.ones(1)}, r"1 unexpected: text_proj_in\.alpha"),
        ({"text_proj_in.weight": torch.ones(32, 95)}, r"text_proj_in\.weight \[32, 95\] instead of \[32, 96\]"),
    ):
        save_file({key: value for key, value in (state | change).items() if value is not None}, file)
        with pytest.raises(CheckpointError, match=complaint):
            load(str(copied))


def test_everything_is_checked_before_any_weight_is_read(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _change_json(copied / "text_encoder" / "config.json", architectures=["T5EncoderModel"])
    monkeypatch.setattr("ltx2.models.weights.read", None)
    with pytest.raises(CheckpointError, match=r"class T5EncoderModel.*only Gemma3"):
        load(str(copied))


def test_incomplete_and_doubled_shards(copied: Path) -> None:
    folder = copied / "text_encoder"
    shutil.copy(folder / "model.safetensors", folder / "diffusion_pytorch_model-00001-of-00002.safetensors")
    load(str(copied))  # the second, incomplete set is not this component's own
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, keys in halves.items():
        save_file({key: state[key] for key in keys}, folder / shard)
    (folder / "model.safetensors").unlink()
    index = {key: shard for shard, keys in halves.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert equal_states(
        _original().networks["text_encoder"], load(str(copied), dtype=torch.float32).networks["text_encoder"]
    )
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"incomplete: model-00002-of-00002\.safetensors missing"):
        load(str(copied))


@pytest.mark.parametrize("model", ["no-such-model", "./nowhere", "nowhere/at.all.safetensors", "ltx-2.3"])
def test_unknown_models_are_refused_with_a_hint(model: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        read_card(Source(model))
    assert caught.value.knob == "model"
    assert caught.value.hint


def test_a_hub_id_is_never_downloaded_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UnknownModel, match=r"not in the local cache.*--download"):
        read_card(Source("Lightricks/LTX-2"))


@pytest.mark.parametrize(
    ("name", "version", "kind"), [("ltx-2", "2.0", "dev"), ("ltx-2.3", "2.3", "dev"), ("ltx-2.5", "2.5", "distilled")]
)
def test_cards_of_the_published_configs(name: str, version: str, kind: str) -> None:
    card = read_card(Source(name, weights="random"))
    assert (card.version, card.kind, card.shape.layers, card.shape.video_dim) == (version, kind, 48, 4096)
    assert card.shape.text_width == (3840 if version == "2.0" else 4096)
    assert card.output_sampling_rate == (24000 if version == "2.0" else 48000)
    assert "random" in card.note
    assert read_card(Source(name, weights="random", kind="distilled")).kind == "distilled"


def test_describing_a_model_imports_no_torch() -> None:
    code = (
        "import sys; from ltx2.models.describe import Source, read_card; read_card(Source('ltx-2', 'random'));"
        "assert not {'torch', 'diffusers', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_may_bring_its_own_card(copied: Path) -> None:
    (copied / "card.json").write_text('{"family": "tiny", "stg_blocks": [1], "text_tokens": 32}')
    card = read_card(Source(str(copied)))
    assert (card.family, card.stg_blocks, card.text_tokens) == ("tiny", (1,), 32)
    (copied / "card.json").write_text('{"famly": "tiny"}')
    with pytest.raises(CheckpointError, match="famly"):
        read_card(Source(str(copied)))


def test_a_scheduler_without_shift_tells_a_distilled_checkpoint(copied: Path) -> None:
    _change_json(copied / "scheduler" / "scheduler_config.json", use_dynamic_shifting=False)
    assert read_card(Source(str(copied))).kind == "distilled"
    with pytest.raises(CheckpointError, match="says of itself that it is distilled, but it is declared dev"):
        read_card(Source(str(copied), kind="dev"))


def test_user_loras_are_checked_at_load_and_merged_in_every_stage(folder: Path, tmp_path: Path) -> None:
    models = _original()
    assert models.distilled_lora
    file = write_lora(models.distilled_lora, tmp_path / "user.safetensors")
    loaded = load(str(folder), dtype=torch.float32, loras=[(file, 0.5)])
    weight = loaded.networks["transformer"].get_parameter("transformer_blocks.1.attn1.to_v.weight")
    before = weight.clone()
    with loaded.lora(0.0):
        alone = weight.clone()
    with loaded.lora(1.0):
        both = weight.clone()
    assert torch.equal(weight, before)
    assert not torch.equal(alone, before)
    assert not torch.equal(both, alone)
    save_file(
        {"diffusion_model.q.lora_A.weight": torch.ones(1, 2), "diffusion_model.q.lora_B.weight": torch.ones(2, 1)}, file
    )
    with pytest.raises(CheckpointError, match="no layer q"):
        load(str(folder), loras=[(file, 0.5)])


def test_random_weights_of_a_folder_are_seeded_and_finite(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltx2.models.components.HERE", folder.parent)
    (folder.parent / "tiny").symlink_to(folder)
    first, second = (load(str(folder), weights="random", dtype=torch.bfloat16) for _ in range(2))
    assert first.distilled_lora is None
    for name, network in first.networks.items():
        assert equal_states(network, second.networks[name])
        assert all(tensor.isfinite().all() for tensor in network.state_dict().values())
    with first.lora(1.0):
        pass
    std = first.networks["transformer"].get_parameter("proj_out.weight").float().std()
    assert 0.8 < std * 32**0.5 < 1.2


def test_staged_networks_are_on_the_device_only_at_work() -> None:
    network = torch.nn.Linear(2, 2)
    residency = Residency("staged", torch.device("meta"))
    with pytest.raises(NotImplementedError, match="meta"), residency.at_work(network):
        assert network.weight.is_meta
        with residency.at_work(network):
            pass
        assert network.weight.is_meta, "the inner block must not send it home"
    resident = Residency("resident", torch.device("cpu"))
    network = torch.nn.Linear(2, 2)
    with resident.at_work(network):
        assert network.weight.device.type == "cpu"


def test_a_missing_network_is_refused_by_name() -> None:
    models = small("2.0")
    del models.networks["upsampler"]
    with pytest.raises(CheckpointError, match="no upsampler"), models.use("upsampler"):
        pass


def test_the_embedded_model_is_located_in_the_package() -> None:
    place = locate(Source("tiny"))
    assert place.path == describe.HERE / "tiny"
    assert json.loads((place.path / "card.json").read_text())["family"] == "tiny"


def test_small_models_are_seeded() -> None:
    same, other = small("2.3"), small("2.3", seed=2)
    for name in small_configs("2.3"):
        assert equal_states(_original("2.3").networks[name], same.networks[name])
    assert not equal_states(same.networks["transformer"], other.networks["transformer"])


def test_random_weights_bring_a_lora_where_it_costs_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltx2.models.components.HERE", folder.parent)
    if not (folder.parent / "tiny").exists():
        (folder.parent / "tiny").symlink_to(folder)
    models = load(str(folder), weights="random", dtype=torch.bfloat16, holding=Holding("fp8"))
    assert models.distilled_lora
    layers = models.distilled_lora.layers["transformer"]
    for name, (down, up) in layers.items():
        layer: Any = models.networks["transformer"].get_submodule(name)
        assert (up.shape[0], down.shape[1]) == (layer.out_features, layer.in_features)
        assert down.shape[0] == up.shape[1] == min(384, layer.out_features, layer.in_features)
    with models.lora(1.0):
        wrapped = [module for module in models.networks["transformer"].modules() if isinstance(module, LowRank)]
        assert len(wrapped) == len(layers) > 28 * 3


@pytest.mark.parametrize(
    ("file", "complaint"),
    [
        ("upsampler_x1.5", "makes 1.5 times the width and height, but two stages need twice"),
        ("upsampler_temporal_x2", "makes more frames, but two stages need twice"),
        ("e2e_video_vae", "is no upsampler"),
    ],
)
def test_upscalers_of_another_kind_are_refused_before_the_first_stage(folder: Path, file: str, complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        read_card(Source(str(folder), upsampler=DATA / f"{file}.safetensors"))
    assert read_card(Source(str(folder), upsampler=DATA / "e2e_upsampler_x2.safetensors")).upsampler


def test_nothing_stays_empty() -> None:
    network = build("connectors", small_configs("2.0")["connectors"])
    state = {name: torch.zeros(tensor.shape) for name, tensor in network.state_dict().items()}
    del state[next(iter(state))]
    with pytest.raises(CheckpointError, match=r"LTX2TextConnectors was left without .* and 0 more"):
        assign(network, state, torch.device("cpu"))


def test_a_text_encoder_folder_as_googles(folder: Path, tmp_path: Path) -> None:
    file, google = write_singlefile(_original(), tmp_path / "x.safetensors"), tmp_path / "gemma"
    shutil.copytree(folder / "text_encoder", google)
    for part in (folder / "tokenizer").iterdir():
        shutil.copy(part, google / part.name)
    loaded = load(Source(str(file), text_encoder=google))
    assert equal_states(_original().networks["text_encoder"], loaded.networks["text_encoder"], torch.bfloat16)
    assert loaded.tokenizer("a cat").input_ids == _original().tokenizer("a cat").input_ids
    apart = read_card(Source(str(file), text_encoder=folder)).shape
    assert loaded.card.shape.text_encoder_bytes == apart.text_encoder_bytes > 0
