"""Remembered prompts: the same bits as encoding anew, keys that know what they must, bounds, and damaged files."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ltx2.models.components import Holding, Models, load
from ltx2.models.embeddings import Embeddings, fingerprint, key_of
from ltx2.models.small import small
from ltx2.pipeline.text import embed
from ltx2.spec.errors import RefusedRequest
from tests.models.checkpoints import write_folder, write_lora

CPU = torch.device("cpu")
TEXTS = ["a cat sings", "dull"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(small("2.0"), tmp_path_factory.mktemp("model"))


def _load(folder: Path, embeddings: Embeddings | None, **given: Any) -> Models:
    return load(str(folder), **({"dtype": torch.float32} | given), embeddings=embeddings)


def _encoded(models: Models) -> list[int]:
    """Counts the forwards of the text encoder from now on."""
    counts: list[int] = []
    encoder: Any = models.networks["text_encoder"].model
    encoder.register_forward_pre_hook(
        lambda _module, _args, kwargs: counts.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return counts


def test_results_are_the_same_bits_with_memory_disk_and_neither(folder: Path, tmp_path: Path) -> None:
    plain = embed(_load(folder, None), TEXTS)
    cache = tmp_path / "cache"
    models = _load(folder, Embeddings(cache))
    counts = _encoded(models)
    first = embed(models, TEXTS)
    assert counts == [1, 1], "every text is encoded alone"
    remembered = embed(models, [" a cat sings "])
    mixed = embed(models, ["dull", "new words", "dull"])
    assert counts == [1, 1, 1], "only the new words"
    other = _load(folder, Embeddings(cache))
    counts = _encoded(other)
    from_disk = embed(other, TEXTS)
    assert counts == []
    for found in (first, from_disk):
        assert torch.equal(found.video, plain.video) and torch.equal(found.audio, plain.audio)
    assert torch.equal(remembered.video, plain.video[:1])
    assert torch.equal(mixed.audio[[0, 2]], plain.audio[[1, 1]])
    assert torch.equal(mixed.video, embed(_load(folder, None), ["dull", "new words", "dull"]).video)
    assert not any("cat" in file.name for file in cache.iterdir()), "no text is readable from a name"
    assert all(b"cat" not in file.read_bytes() for file in cache.iterdir())


def test_what_is_handed_out_may_be_changed(folder: Path) -> None:
    models = _load(folder, Embeddings())
    kept = embed(models, TEXTS[:1]).video.clone()
    with torch.inference_mode():
        embed(models, TEXTS[:1]).video.zero_()
    assert torch.equal(embed(models, TEXTS[:1]).video, kept)


def test_the_key_knows_everything_that_changes_the_result(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Keys are made of files and settings; no weights are needed for them.
    monkeypatch.setattr("ltx2.models.components.fill", lambda prepared, _device, _hold: prepared.network)
    copied = Path(shutil.copytree(folder, tmp_path / "model"))
    cache = Embeddings()
    identities = {"as it is": _load(copied, cache).identity}
    assert _load(copied, cache).identity == identities["as it is"]
    identities["half"] = _load(copied, cache, dtype=torch.bfloat16).identity
    identities["int8"] = _load(copied, cache, holding=Holding(text_encoder="int8")).identity
    lora = small("2.0").distilled_lora
    assert lora
    file = write_lora(lora, tmp_path / "user.safetensors")
    identities["lora"] = _load(copied, cache, loras=[(file, 0.5)]).identity
    (copied / "card.json").write_text('{"text_tokens": 32}')
    identities["padding"] = _load(copied, cache).identity
    (copied / "card.json").unlink()
    for part in (
        "text_encoder/model.safetensors",
        "connectors/diffusion_pytorch_model.safetensors",
        "tokenizer/tokenizer.json",
    ):
        os.utime(copied / part, (1, 1))
        identities[part] = _load(copied, cache).identity
    assert len(set(identities.values())) == len(identities)
    unchanged = identities[part]
    os.utime(copied / "transformer" / "diffusion_pytorch_model.safetensors", (1, 1))
    assert _load(copied, cache).identity == unchanged, "the transformer has no part in it"
    assert key_of(unchanged, "a") != key_of(unchanged, "b")


def test_precision_of_the_transformer_is_no_part_of_it(folder: Path) -> None:
    half = torch.bfloat16
    plain, fp8 = (_load(folder, Embeddings(), dtype=half, holding=Holding(form)) for form in ("plain", "fp8"))
    assert plain.identity == fp8.identity


def test_models_without_files_remember_nothing() -> None:
    models = small("2.0")
    assert models.embeddings is None
    models.remember("a", (torch.ones(1), torch.ones(1)))
    assert models.recall("a") is None


def test_content_tells_files_apart_that_look_alike(tmp_path: Path) -> None:
    one, other = tmp_path / "1" / "a", tmp_path / "2" / "a"
    for file, content in ((one, b"x" * 10_000), (other, b"x" * 9_999 + b"y")):
        file.parent.mkdir()
        file.write_bytes(content)
        os.utime(file, (5, 5))
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) == fingerprint(one)


def _pair(value: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((1, 8, 16), float(value)), torch.full((1, 8, 16), -float(value))


def _value(cache: Embeddings, key: str) -> float | None:
    pair = cache.get(key, CPU)
    return None if pair is None else float(pair[0].flatten()[0])


def test_memory_is_bounded_and_forgets_the_least_recently_used() -> None:
    cache = Embeddings(memory_bytes=2 * 1024)
    cache.put("a", _pair(1))
    cache.put("b", _pair(2))
    assert _value(cache, "a") == 1
    cache.put("c", _pair(3))
    assert [_value(cache, key) for key in "abc"] == [1, None, 3]


def test_the_disk_is_bounded_and_forgets_the_least_recently_used(tmp_path: Path) -> None:
    size = _file_size(tmp_path / "probe")
    cache = Embeddings(tmp_path, memory_bytes=0, disk_bytes=2 * size)
    for number, key in enumerate("abc"):
        cache.put(key, _pair(number))
        if number < 2:
            os.utime(tmp_path / f"{key}.safetensors", (number + 1, number + 1))
        if key == "b":
            assert _value(Embeddings(tmp_path), "a") == 0, "being read makes it young"
    assert sorted(file.name for file in tmp_path.glob("*.safetensors")) == ["a.safetensors", "c.safetensors"]


def _file_size(folder: Path) -> int:
    Embeddings(folder).put("a", _pair(0))
    return (folder / "a.safetensors").stat().st_size


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "zeros", "renamed"])
def test_damaged_files_count_as_absent_and_are_removed(tmp_path: Path, damage: str) -> None:
    Embeddings(tmp_path).put("a", _pair(1))
    file = tmp_path / "a.safetensors"
    whole = file.read_bytes()
    wrong = {"truncated": whole[:-4], "empty": b"", "foreign": b"PK\x03\x04" + whole[4:], "zeros": bytes(len(whole))}
    if damage == "renamed":
        file.rename(tmp_path / "b.safetensors")
        assert _value(Embeddings(tmp_path), "b") is None
    else:
        file.write_bytes(wrong[damage])
        assert _value(Embeddings(tmp_path), "a") is None
    assert not list(tmp_path.iterdir())


def test_nothing_half_written_is_left_and_abandoned_parts_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "old.part", tmp_path / "new.part"
    for part in (old, new):
        part.write_bytes(b"x")
    os.utime(old, (time.time() - 7200,) * 2)
    cache = Embeddings(tmp_path)
    cache.put("a", _pair(1))
    assert not old.exists() and new.exists()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    cache.put("b", _pair(2))
    assert _value(cache, "b") == 2, "a full disk costs nothing but the file"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors", "new.part"]


def test_a_cache_folder_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    from ltx2.doors.machine import _embeddings

    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(RefusedRequest, match=r"prompt_cache: .* is no folder that can be written") as caught:
        _embeddings(str(file))
    assert caught.value.knob == "prompt_cache"
    assert _embeddings("off") is None
    memory, disk = _embeddings("memory"), _embeddings(str(tmp_path / "new"))
    assert memory and memory.folder is None
    assert disk and disk.folder == tmp_path / "new"
