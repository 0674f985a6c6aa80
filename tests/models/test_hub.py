"""Listings, remote headers and downloads against a hub on this machine, with every fault that a network has."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from ltx2.models import hub
from ltx2.models.catalogue import find
from ltx2.models.checkup import wanted
from ltx2.models.describe import Source, locate
from ltx2.models.header import read_header
from ltx2.spec.errors import CheckpointError, Ltx2Error, RefusedRequest, UnknownModel
from tests.fake_hub import Content, FakeHub, safetensors, serve

NAME = "someone/some-model"
LARGE = "vae/diffusion_pytorch_model.safetensors"
FILES = {
    "README.md": b"not wanted",
    "vae/config.json": b"{}",
    "text_encoder/model.safetensors": safetensors({"a": (3,)}),
    "text_encoder/diffusion_pytorch_model.safetensors": safetensors({"a": (3,)}),
    LARGE: safetensors({"a": (700, 1000), "b": (3,)}, {"b": "F32"}),
}
WANTED = {"vae/config.json", "text_encoder/model.safetensors", LARGE}


def point_to(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does before huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    state = FakeHub()
    with serve(state):
        state.add(NAME, FILES)
        point_to(state.endpoint, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "WAIT_SECONDS", 0.0)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield state


def ordered() -> tuple[hub.Repository, list[hub.RemoteFile]]:
    repository = hub.listing(NAME)
    return repository, wanted(find(NAME), repository)


def large() -> tuple[hub.Repository, hub.RemoteFile]:
    repository, files = ordered()
    return repository, next(file for file in files if file.path == LARGE)


def same(content: Content, path: Path) -> bool:
    return path.read_bytes() == content.read(0, content.size)


def test_only_what_is_used_is_wanted(fake: FakeHub) -> None:
    assert {file.path for file in ordered()[1]} == WANTED


def test_a_remote_header_costs_two_ranges(fake: FakeHub, tmp_path: Path) -> None:
    content = FILES[LARGE]
    assert isinstance(content, Content)
    (tmp_path / "x.safetensors").write_bytes(content.read(0, content.size))
    local, remote = read_header(tmp_path / "x.safetensors"), hub.remote_header(*large())
    assert {key: (entry.shape, entry.dtype) for key, entry in remote.entries.items()} == {
        key: (entry.shape, entry.dtype) for key, entry in local.entries.items()
    }
    assert [wanted for _, wanted in fake.bodies()] == ["bytes=0-7", f"bytes=8-{len(content.start) - 1}"]


def test_a_remote_header_from_a_server_without_ranges(fake: FakeHub) -> None:
    fake.no_ranges = True
    assert hub.remote_header(*large()).entries.keys() == {"a", "b"}


def test_a_remote_header_whose_connection_breaks(fake: FakeHub) -> None:
    fake.cuts = [3, 0, 100, 10]
    assert hub.remote_header(*large()).entries.keys() == {"a", "b"}
    assert fake.bodies()[1][1] == "bytes=3-7"


def test_a_remote_file_that_changes_is_refused(fake: FakeHub) -> None:
    fake.new_etags = True
    with pytest.raises(CheckpointError, match="changed while it was read"):
        hub.remote_header(*large())


def test_an_absurd_remote_header_costs_eight_bytes(fake: FakeHub) -> None:
    fake.add(NAME, {LARGE: Content(struct.pack("<Q", 2**63), 10**12)})
    with pytest.raises(CheckpointError, match="truncated"):
        hub.remote_header(*large())
    assert [wanted for _, wanted in fake.bodies()] == ["bytes=0-7"]


def test_a_remote_file_that_is_too_short_is_refused(fake: FakeHub) -> None:
    content = safetensors({"a": (700,)})
    fake.add(NAME, {LARGE: Content(content.start, content.size - 1)})
    with pytest.raises(CheckpointError, match="truncated"):
        hub.remote_header(*large())


def test_a_download_is_found_offline(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, files = ordered()
    done: list[int] = []
    root = hub.download(repository, files, None, None, done.append)
    assert sum(done) == sum(file.size for file in files)
    assert {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} == WANTED
    assert all(same(FILES[path], root / path) for path in WANTED if isinstance(FILES[path], Content))
    fake.repositories.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate(Source(NAME)).path == root
    assert dict(hub.cached_paths(NAME)).keys() == WANTED
    with pytest.raises(RefusedRequest, match="HF_HUB_OFFLINE"):
        hub.listing(NAME)


def test_a_second_download_verifies_and_fetches_nothing(fake: FakeHub, tmp_path: Path) -> None:
    repository, files = ordered()
    for folder in (None, tmp_path / "folder"):
        hub.download(repository, files, folder, None)
        fetched = len(fake.bodies())
        root = hub.download(repository, files, folder, None)
        assert len(fake.bodies()) == fetched
        (root / LARGE).write_bytes(b"damaged")
        with pytest.raises(CheckpointError, match="remove it"):
            hub.download(repository, files, folder, None)


def test_a_broken_download_goes_on_where_it_stopped(fake: FakeHub, tmp_path: Path) -> None:
    repository, file = large()
    fake.cuts = [500_000] + [0] * hub.ATTEMPTS
    with pytest.raises(Ltx2Error, match="stops after 500000 of"):
        hub.download(repository, [file], tmp_path, None)
    assert not (tmp_path / LARGE).exists()
    assert hub.missing_bytes(repository, [file], tmp_path) == file.size - 500_000
    fake.log.clear()
    done: list[int] = []
    hub.download(repository, [file], tmp_path, None, done.append)
    assert fake.bodies()[0][1] == f"bytes=500000-{file.size - 1}"
    assert sum(done) == file.size - 500_000
    assert [path.name for path in (tmp_path / LARGE).parent.iterdir()] == [Path(LARGE).name]
    content = FILES[LARGE]
    assert isinstance(content, Content) and same(content, tmp_path / LARGE)


def test_breaks_in_one_run_are_mended(fake: FakeHub, tmp_path: Path) -> None:
    repository, file = large()
    fake.cuts = [100_000, 0, 1, 300_000]
    hub.download(repository, [file], tmp_path, None)
    content = FILES[LARGE]
    assert isinstance(content, Content) and same(content, tmp_path / LARGE)


def test_damage_on_the_way_is_noticed(fake: FakeHub, tmp_path: Path) -> None:
    repository, file = large()
    fake.flip = True
    with pytest.raises(CheckpointError, match="checksum is wrong"):
        hub.download(repository, [file], tmp_path, None)
    assert list((tmp_path / LARGE).parent.iterdir()) == []


def test_a_full_disk_is_refused_before_anything(fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=hub.RESERVE + 1000))
    repository, files = ordered()
    with pytest.raises(RefusedRequest, match="GB are to be fetched"):
        hub.download(repository, files, tmp_path / "folder", None)
    assert fake.bodies() == []
    assert not (tmp_path / "folder").exists()


def test_a_pinned_commit(fake: FakeHub) -> None:
    commit = fake.repositories[NAME].commit
    repository = hub.listing(NAME, commit)
    root = hub.download(repository, wanted(find(NAME), repository), None, commit)
    assert repository.revision == root.name == commit
    with pytest.raises(UnknownModel):
        locate(Source(NAME))
    with pytest.raises(RefusedRequest, match="no such revision"):
        hub.listing(NAME, "f" * 40)


@pytest.mark.parametrize(
    ("status", "code", "error", "hint"),
    [
        (404, "RepoNotFound", UnknownModel, "spelling"),
        (401, "RepoNotFound", UnknownModel, "HF_TOKEN"),
        (401, "GatedRepo", RefusedRequest, "HF_TOKEN"),
        (403, "GatedRepo", RefusedRequest, "accept its terms"),
        (403, "", Ltx2Error, "HF_TOKEN"),
        (418, "", Ltx2Error, "later"),
    ],
)
def test_refusals_of_the_hub(fake: FakeHub, status: int, code: str, error: type[Ltx2Error], hint: str) -> None:
    fake.repositories[NAME].error = (status, code)
    with pytest.raises(error) as caught:
        hub.listing(NAME)
    assert hint in str(caught.value)


def test_a_hub_that_is_not_there(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(Ltx2Error, match="HF_ENDPOINT"):
        hub.listing(NAME)


def test_the_token_goes_to_the_hub_and_nowhere_else(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.repositories[NAME].token = "hf_secret"
    with pytest.raises(RefusedRequest, match="gated"):
        hub.listing(NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fake.log.clear()
    repository, file = large()
    hub.download(repository, [file], tmp_path, None)
    for _, path, _, authorization, host in fake.log:
        assert (authorization is None) == path.startswith("/cdn/") == host.endswith(f":{fake.content_port}")


def test_a_listing_that_leaves_its_folder_is_refused(fake: FakeHub) -> None:
    fake.add(NAME, {"../evil/config.json": b"{}"})
    with pytest.raises(CheckpointError, match="outside"):
        hub.listing(NAME)


def test_a_file_pattern_that_matches_nothing_or_several(fake: FakeHub) -> None:
    fake.add("Lightricks/LTX-2.3", {"a-dev.safetensors": b"x", "b-dev.safetensors": b"x"})
    repository = hub.listing("Lightricks/LTX-2.3")
    for name, found in (("ltx-2.3-dev", "b-dev.safetensors"), ("ltx-2.3-upsampler", "nothing")):
        with pytest.raises(UnknownModel, match=found):
            wanted(find(name), repository)
