"""What is on the hub is compared with the manifests at full size: headers of tens of gigabytes, sent as a few kilobytes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from huggingface_hub import constants

from ltx2.models import hub
from ltx2.models.catalogue import CATALOGUE, find
from ltx2.models.checkup import FOLDERS, Finding, check_header, check_local, check_remote, wanted
from ltx2.models.describe import HERE, folder_configs
from ltx2.models.header import Entry, Header
from ltx2.models.manifest import VERSIONS, compare, manifest
from ltx2.models.small import small
from ltx2.spec.card import Version
from ltx2.spec.errors import CheckpointError, UnknownModel
from tests.fake_hub import Content, FakeHub, safetensors, serve
from tests.models.checkpoints import write_folder, write_lora, write_singlefile
from tests.models.test_hub import point_to

Shapes = dict[str, tuple[int, ...]]
CONFIGS = {"2.0": "ltx-2", "2.3": "ltx-2.3", "2.5": "ltx-2.5"}
OFFICIAL = {"2.0": "LTX-2", "2.3": "LTX-2.3", "2.5": "LTX-2.5"}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serve(FakeHub()) as state:
        point_to(state.endpoint, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield state


def official(version: str) -> Shapes:
    file = HERE / "manifests" / f"{OFFICIAL[version]}.json.gz"
    return {key: tuple(shape) for key, shape in json.loads(gzip.decompress(file.read_bytes())).items()}


def published(version: Version) -> dict[str, bytes | Content]:
    """A Diffusers-format repository of full size, its transformer in two shards, its text encoder stored twice."""
    configs = folder_configs(HERE / "configs" / CONFIGS[version])
    files: dict[str, bytes | Content] = {}
    for component, shapes in manifest(version).items():
        folder = FOLDERS.get(component, component)
        files[f"{folder}/config.json"] = json.dumps(configs[component]).encode()
        shapes = {key: shape for key, shape in shapes.items() if key != "lm_head.weight"}
        if component == "text_encoder":
            # As transformers before 4.50 spelt it, in float32.
            old = {f"language_model.model.{key}" if is_language(key) else key: shape for key, shape in shapes.items()}
            files[f"{folder}/model.safetensors"] = safetensors(old, dict.fromkeys(old, "F32"))
            files[f"{folder}/diffusion_pytorch_model.safetensors"] = safetensors({"twice": (1,)})
        elif component == "transformer":
            keys = list(shapes)
            for number, part in enumerate((keys[::2], keys[1::2]), start=1):
                name = f"{folder}/diffusion_pytorch_model-0000{number}-of-00002.safetensors"
                files[name] = safetensors({key: shapes[key] for key in part})
        else:
            files[f"{folder}/diffusion_pytorch_model.safetensors"] = safetensors(shapes)
    return files


def is_language(key: str) -> bool:
    return key.startswith(("layers.", "embed_tokens.", "norm."))


def published_parts(transformer: str = "ltx-2.5-22b-distilled-transformer-bf16") -> dict[str, bytes | Content]:
    """The official files of 2.5 at full size, as their names and dtypes were published."""
    shapes = official("2.5")
    long = {
        "picture_projection.": "multi_modal_projector.",
        "picture.": "vision_model.",
        "sound_projection.": "audio_projector.",
    }
    text = {key: shape for key, shape in shapes.items() if key.startswith("text_embedding_projection.")}
    for key, shape in manifest("2.5")["text_encoder"].items():
        if key != "lm_head.weight":
            start = next((start for start in long if key.startswith(start)), "")
            text[f"model.{key}" if is_language(key) else long[start] + key.removeprefix(start)] = shape
    assets = {"tokenizer_json": (32_169_626,), "hf_asset__tokenizer_config.json": (2_000,)}
    metadata = {"model_version": "2.5.0", "config": "{}"}
    files = {
        f"diffusion_models/{transformer}": {k: s for k, s in shapes.items() if k.startswith("model.diffusion_model.")},
        "vae/ltx-2.5-video-vae-conv-bf16": {k[4:]: s for k, s in shapes.items() if k.startswith("vae.")},
        "vae/ltx-2.5-audio-vae-bf16": {k: s for k, s in shapes.items() if k.startswith(("audio_vae.", "vocoder."))},
    }
    whole: dict[str, bytes | Content] = {
        f"{name}.safetensors": safetensors(state, metadata=metadata) for name, state in files.items()
    }
    whole["text_encoders/gemma4-12b-with-proj-ltx-2.5-bf16.safetensors"] = safetensors(
        text | assets, dict.fromkeys(assets, "U8"), {"gemma_config": "{}"}
    )
    # What lies beside them in the repository and is not wanted.
    for name in ("vae/ltx-2.5-video-vae-bf16", "text_encoders/gemma4-12b-with-proj-ltx-2.5-comfy-int8-convrot"):
        whole[f"{name}.safetensors"] = safetensors({"other": (1,)})
    return whole


def header(shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str] | None = None) -> Header:
    entries = {key: Entry(Path("x"), key, shape, (dtypes or {}).get(key, "BF16")) for key, shape in shapes.items()}
    return Header(Path("x.safetensors"), {}, entries)


def look(fake: FakeHub, name: str, files: Mapping[str, bytes | Content]) -> dict[str, Finding]:
    entry = find(name)
    fake.add(entry.hub, files)
    return {finding.subject: finding for finding in check_remote(entry, hub.listing(entry.hub))}


@pytest.mark.parametrize(("name", "version"), [("ltx-2", "2.0"), ("ltx-2.3", "2.3"), ("ltx-2.5", "2.5")])
def test_a_whole_repository(fake: FakeHub, name: str, version: Version) -> None:
    findings = look(fake, name, published(version))
    assert [finding for finding in findings.values() if not finding.ok] == []
    assert findings["version"].text == version
    assert "F32" in findings["text_encoder"].text
    sent = sum(content.size for content in fake.repositories[find(name).hub].files.values())
    asked = sum(int(span.split("-")[1]) + 1 - int(span[6:].split("-")[0]) for _, span in fake.bodies() if span)
    assert sent > 60e9 and asked < 1.5e6


def test_the_second_transformer_of_a_repository(fake: FakeHub) -> None:
    files = published("2.5")
    full = {
        path.replace("transformer/", "transformer_full/"): files[path] for path in files if path.startswith("trans")
    }
    findings = look(fake, "ltx-2.5-dev-diffusers", files | full)
    assert all(finding.ok for finding in findings.values())
    taken = [file.path for file in wanted(find("ltx-2.5-dev-diffusers"), hub.listing("Lightricks/LTX-2.5-Diffusers"))]
    assert sum(path.startswith("transformer_full/") for path in taken) == 3
    assert not any(path.startswith("transformer/") for path in taken)


def test_the_official_files_of_25_are_compared_as_one_model(fake: FakeHub) -> None:
    files = published_parts()
    findings = look(fake, "ltx-2.5-distilled", files)
    assert {name for name, finding in findings.items() if finding.ok} == findings.keys()
    assert {"transformer", "connectors", "text_encoder", "vae", "audio_vae", "vocoder"} <= findings.keys()
    assert findings["version"].text == "2.5" and findings["hub"].text.startswith("4 files, 70.1 GB")
    entry = find("ltx-2.5-distilled")
    repository = hub.listing(entry.hub)
    assert wanted(entry, repository)[0].path.startswith("diffusion_models/")
    with pytest.raises(UnknownModel, match=r"dev-transformer-bf16\.safetensors of ltx-2\.5-dev matches nothing"):
        wanted(find("ltx-2.5-dev"), repository)
    files["vae/ltx-2.5-audio-vae-bf16.safetensors"] = safetensors({"audio_vae.x": (1,)})
    wrong = {name for name, finding in look(fake, "ltx-2.5-distilled", files).items() if not finding.ok}
    assert wrong == {"audio_vae"}


def test_upscalers_of_other_kinds_are_known(fake: FakeHub) -> None:
    for name, versions in (("x1.5", "2.3"), ("temporal", "2.0 and 2.3 and 2.5")):
        shapes = json.loads(gzip.decompress((HERE / "manifests" / f"upsampler-{name}.json.gz").read_bytes()))
        path = f"ltx-2.3-upscaler-{name}.safetensors"
        finding = look(fake, f"Lightricks/LTX-2.3/{path}", {path: safetensors(shapes)})["upsampler"]
        assert finding.ok and finding.text.startswith(f"fits {versions} ({len(shapes)} BF16)")


def test_everything_that_is_wrong_is_named(fake: FakeHub) -> None:
    files = published("2.0")
    shapes = dict(manifest("2.0")["connectors"])
    first, second, third = list(shapes)[:3]
    del shapes[first]
    shapes |= {second: (1, 2), "surprise.weight": (3,)}
    files["connectors/diffusion_pytorch_model.safetensors"] = safetensors(shapes, {third: "I8"})
    files["vae/config.json"] = b'{"_class_name": "SomeoneElsesVAE"}'
    newer = manifest("2.3")["vocoder"]
    files["vocoder/diffusion_pytorch_model.safetensors"] = safetensors(newer)
    audio = files["audio_vae/diffusion_pytorch_model.safetensors"]
    assert isinstance(audio, Content)
    files["audio_vae/diffusion_pytorch_model.safetensors"] = Content(audio.start, audio.size + 1)
    with_damage = look(fake, "ltx-2", files)
    assert "truncated or has trailing bytes" in with_damage["files"].text
    files["audio_vae/diffusion_pytorch_model.safetensors"] = audio
    del files["transformer/diffusion_pytorch_model-00002-of-00002.safetensors"]
    findings = look(fake, "ltx-2", files)
    for part in (
        f"1 missing for 2.0: {first}",
        "1 unexpected",
        "surprise.weight",
        f"{second} [1, 2] instead",
        f"{third} I8",
    ):
        assert part in findings["connectors"].text
    assert "SomeoneElsesVAE" in findings["vae"].text
    assert "1755 missing for 2.0" in findings["transformer"].text
    assert findings["version"].text == "the components are of different versions"
    assert {name for name, finding in findings.items() if finding.ok} == {
        "hub", "audio_vae", "vocoder", "upsampler", "text_encoder",
    }  # fmt: skip


def test_missing_components_are_named(fake: FakeHub) -> None:
    files = {path: content for path, content in published("2.0").items() if not path.startswith("vocoder/")}
    assert look(fake, "ltx-2", files)["vocoder"] == Finding("vocoder", False, "missing")


@pytest.mark.parametrize("version", VERSIONS)
def test_official_single_files(version: Version) -> None:
    shapes = official(version)
    tables = {key: "F32" for key in shapes if "scale_shift_table" in key}
    findings = check_header(header(shapes, tables), version)
    assert all(finding.ok for finding in findings)
    other = "2.0" if version == "2.3" else "2.3"
    wrong = [finding for finding in check_header(header(shapes, tables), other) if not finding.ok]
    assert [finding.subject for finding in wrong] == ["version"]


def test_fp8_with_its_scales_and_without() -> None:
    shapes = official("2.0")
    key = "model.diffusion_model.transformer_blocks.7.attn1.to_q.weight"
    layer = key.removesuffix(".weight")
    scales: Shapes = {f"{layer}.weight_scale": (), f"{layer}.input_scale": ()}
    dtypes = {key: "F8_E4M3"} | dict.fromkeys(scales, "F32")
    assert all(finding.ok for finding in check_header(header(shapes | scales, dtypes), "2.0"))
    with pytest.raises(CheckpointError, match="without its weight_scale"):
        check_header(header(shapes, dtypes), "2.0")
    with pytest.raises(CheckpointError, match="no fp8 or nvfp4 weight"):
        check_header(header(shapes | scales), "2.0")
    for suffix, complaint in ((".weight_scale_2", "nvfp4"), (".comfy_quant", "rotated int8"), (".what", None)):
        with pytest.raises(CheckpointError, match=complaint or "no known component"):
            check_header(header(shapes | {(layer if complaint else "elsewhere") + suffix: ()}), "2.0")


def test_loras() -> None:
    linears = {key: shape for key, shape in official("2.3").items() if len(shape) == 2 and ".attn1.to_q.weight" in key}
    pairs: Shapes = {}
    for key, (out, width) in linears.items():
        layer = key.removeprefix("model.").removesuffix(".weight")
        pairs |= {f"{layer}.lora_A.weight": (8, width), f"{layer}.lora_B.weight": (out, 8)}
    (finding,) = check_header(header(pairs), "2.3")
    assert finding.ok and "2.3" in finding.text
    broken = pairs | {next(iter(pairs)): (9, 4096)}
    (finding,) = check_header(header(broken), "2.3")
    assert not finding.ok and f"1 of {len(linears)} layers do not fit" in finding.text


def test_a_lora_file_of_another_model_fits_nothing(tmp_path: Path) -> None:
    lora = small("2.0").distilled_lora
    assert lora is not None
    (finding,) = check_local(str(write_lora(lora, tmp_path / "lora.safetensors")))
    assert not finding.ok and "do not fit" in finding.text


def test_local_folders_and_files_are_fitted_into_their_own_networks(tmp_path: Path) -> None:
    models = small("2.0")
    folder = write_folder(models, tmp_path / "model")
    assert all(finding.ok for finding in check_local(str(folder)))
    file = write_singlefile(models, tmp_path / "x.safetensors")
    assert {finding.subject for finding in check_local(str(file)) if finding.ok} == {
        "transformer", "connectors", "vae", "audio_vae", "vocoder",
    }  # fmt: skip
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    wrong = [finding for finding in check_local(str(folder)) if not finding.ok]
    assert {finding.subject for finding in wrong} == {"card", "vae"}
    assert all("truncated" in finding.text for finding in wrong)


def test_the_catalogue_agrees_with_itself_and_the_manifests() -> None:
    names = [entry.name for entry in CATALOGUE]
    assert len(set(names)) == len(names)
    assert all(need in names for entry in CATALOGUE for need in entry.needs)
    assert all(find(entry.name) is entry for entry in CATALOGUE)
    for entry in CATALOGUE:
        if (
            entry.form in ("file", "folder")
            and not entry.refused
            and not {"fp8", "fp4", "nvfp4"} & {*entry.name.split("-")}
        ):
            total = 0
            for component, shapes in manifest(entry.version or "2.0").items():
                elements = sum(_product(shape) for shape in shapes.values())
                single = entry.form == "file" and component in ("upsampler", "text_encoder")
                width = 4 if component == "text_encoder" and entry.hub == "Lightricks/LTX-2" else 2
                total += 0 if single else width * elements
            lora = find("ltx-2-distilled-lora").size or 0
            total += lora if entry.name == "ltx-2" else 0
            assert abs(total / (entry.size or 0) - 1) < 0.005, entry.name


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def test_names(fake: FakeHub) -> None:
    assert find("Lightricks/LTX-2").name == "ltx-2"
    assert find("Lightricks/LTX-2/ltx-2-19b-dev.safetensors").name == "ltx-2-dev"
    assert find("someone/theirs/folder/x.safetensors").files == ("folder/x.safetensors",)
    assert (
        find("Lightricks/LTX-2.5/diffusion_models/ltx-2.5-22b-dev-transformer-bf16.safetensors").name == "ltx-2.5-dev"
    )
    with pytest.raises(UnknownModel, match=r"holds several models \(name one of ltx-2\.5-dev, "):
        find("Lightricks/LTX-2.5")
    for name in ("ltx-3", "/absolute/path", "./x/y", "owner/"):
        with pytest.raises(UnknownModel, match="not published"):
            find(name)
    fake.add("someone/theirs", {"README.md": b""})
    with pytest.raises(UnknownModel, match="nothing"):
        wanted(find("someone/theirs"), hub.listing("someone/theirs"))


def test_gemma_names_of_every_release_are_one() -> None:
    shapes = manifest("2.0")["text_encoder"]
    assert any("vision_tower" in key for key in shapes)
    for before, after in (("vision_tower.", "model.vision_tower."), ("vision_tower.", "vision_tower.vision_model.")):
        names = {key.replace(before, after): shape for key, shape in shapes.items() if key != "lm_head.weight"}
        assert compare("text_encoder", header(names).entries).versions == ("2.0", "2.3")
