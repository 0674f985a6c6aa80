"""The hub: what a repository holds, headers of remote files by HTTP range, and downloads that resume and are verified.

huggingface_hub finds files, authenticates and keeps the cache. The transfer is done here, because huggingface_hub
(1.33) throws the part of an interrupted download away and checks sizes only: here a file keeps its part under
`.part`, and gets its name when its checksum is right.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx
from huggingface_hub import HfApi, constants, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (
    WeakFileLock,
    are_progress_bars_disabled,
    build_hf_headers,
    disable_progress_bars,
    enable_progress_bars,
    hf_raise_for_status,
    http_stream_backoff,
)

from ltx2.models.header import Header, header_length, parse_header, refuse_by_name
from ltx2.spec.errors import CheckpointError, Ltx2Error, RefusedRequest, UnknownModel

# Left free on the disk, so that a download never fills it to the last byte.
RESERVE = 2**30
ATTEMPTS = 5
WAIT_SECONDS = 1.0
WORKERS = 4


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: its path there, its size in bytes, and its checksum (SHA-256, or git's SHA-1 of small ones)."""

    path: str
    size: int
    checksum: str


@dataclass(frozen=True)
class Repository:
    """A repository at one commit; `revision` is the commit's hash."""

    name: str
    revision: str
    files: tuple[RemoteFile, ...]


def listing(name: str, revision: str | None = None) -> Repository:
    """What a repository holds at a branch, tag or commit (None: its main branch).

    Raises UnknownModel for a repository that is not there, RefusedRequest for one that is gated, for a revision that
    is not there and in offline mode, and Ltx2Error when the hub cannot be reached.
    """
    with _explained(name):
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
    files: list[RemoteFile] = []
    for sibling in info.siblings or []:
        path = PurePosixPath(sibling.rfilename)
        if path.is_absolute() or ".." in path.parts:
            raise CheckpointError(f"{name} lists a file outside of itself: {sibling.rfilename}")
        checksum = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        if sibling.size is None or not checksum or info.sha is None:
            raise CheckpointError(f"{name} states no size or no checksum for {sibling.rfilename}")
        files.append(RemoteFile(sibling.rfilename, sibling.size, checksum))
    return Repository(name, info.sha or "", tuple(files))


def remote_headers(repository: Repository, files: Sequence[RemoteFile]) -> list[Header]:
    """The headers of remote safetensors files, read by HTTP range and checked as those of local files are.

    Raises CheckpointError for a damaged header and for a file that changed while it was read, and as `listing` does.
    """
    with ThreadPoolExecutor(2 * WORKERS) as pool:
        return list(pool.map(lambda file: remote_header(repository, file), files))


def remote_header(repository: Repository, file: RemoteFile) -> Header:
    """The header of one remote file: 8 bytes, then as many as these say. Raises as `remote_headers` does."""
    name = Path(file.path)
    refuse_by_name(name)
    with _explained(repository.name):
        reader = _Reader(repository, file)
        length = header_length(name, reader.read(0, min(8, file.size)), file.size)
        text = reader.read(8, 8 + length)
    if len(reader.etags) > 1:
        raise CheckpointError(f"{file.path} changed while it was read", hint="try again")
    return parse_header(name, text, file.size - 8 - length)


def remote_text(repository: Repository, file: RemoteFile) -> bytes:
    """A small remote file as a whole. Raises as `listing` does."""
    with _explained(repository.name):
        return _Reader(repository, file).read(0, file.size)


def target_of(repository: Repository, file: RemoteFile, folder: Path | None) -> Path:
    """Where a file goes: into `folder` by its path, or into the hub's cache by its checksum."""
    if folder:
        return folder / file.path
    return _storage(repository.name) / "blobs" / file.checksum


def missing_bytes(repository: Repository, files: Sequence[RemoteFile], folder: Path | None) -> int:
    """Bytes that are still to be fetched; the parts that interrupted downloads left count as there."""
    missing = 0
    for file in files:
        target = target_of(repository, file, folder)
        if not target.exists():
            part = _part(target, file)
            missing += file.size - min(file.size, part.stat().st_size if part.exists() else 0)
    return missing


def check_disk(repository: Repository, files: Sequence[RemoteFile], folder: Path | None) -> int:
    """Say how many bytes are still to be fetched. Raises RefusedRequest when the disk has no room for them."""
    missing = missing_bytes(repository, files, folder)
    place = folder or _storage(repository.name)
    disk = next(parent for parent in (place, *place.absolute().parents) if parent.exists())
    free = shutil.disk_usage(disk).free
    if missing and missing + RESERVE > free:
        raise RefusedRequest(
            f"{missing / 1e9:.1f} GB are to be fetched, but {disk} has {free / 1e9:.1f} GB free", knob="folder",
            hint=f"free {(missing + RESERVE - free) / 1e9:.1f} GB, or name another place with --folder or LTX2_CACHE",
        )  # fmt: skip
    return missing


def download(
    repository: Repository,
    files: Sequence[RemoteFile],
    folder: Path | None,
    revision: str | None,
    advance: Callable[[int], object] = lambda _: None,
) -> Path:
    """Fetch files, several at once, verify each, and return the folder that they lie in under their own paths.

    Goes on where an interrupted run stopped; files that are there are verified. `folder` None means the hub's cache,
    where `revision`, the branch that was asked for, will then be found offline. `advance` is told of bytes done.
    Raises RefusedRequest when the disk is too small, CheckpointError when a checksum is wrong or a file there is
    another one, and as `listing` does.
    """
    check_disk(repository, files, folder)
    stopped = threading.Event()

    def counted(count: int) -> None:
        if stopped.is_set():
            raise InterruptedError
        advance(count)

    with ThreadPoolExecutor(WORKERS) as pool:
        work = [
            pool.submit(fetch, repository, file, target_of(repository, file, folder), counted)
            for file in sorted(files, key=lambda file: -file.size)
        ]
        try:
            for done in as_completed(work):
                done.result()
        except BaseException:
            # Leaving the pool waits for what is running, and a file can take an hour.
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return folder or _link(repository, files, revision or constants.DEFAULT_REVISION)


def fetch(
    repository: Repository, file: RemoteFile, target: Path, advance: Callable[[int], object] = lambda _: None
) -> None:
    """Bring one file to `target`, which appears only when the checksum is right. Raises as `download` does."""
    part = _part(target, file)
    lock = Path(constants.HF_HUB_CACHE) / ".locks" / f"{file.checksum}.lock"
    with _explained(repository.name):
        for path in (target, lock):
            path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if target.exists():
                if target.stat().st_size != file.size or _checksum(target, file) != file.checksum:
                    hint = "remove it, and try again"
                    raise CheckpointError(f"{target} is not {file.path} of {repository.name}", hint=hint)
                return
            _complete(repository, file, part, advance)
            if _checksum(part, file) != file.checksum:
                part.unlink()
                raise CheckpointError(f"{file.path} arrived damaged: its checksum is wrong", hint="try again")
            part.replace(target)


def cached_paths(name: str) -> list[tuple[str, Path]]:
    """Every file of a repository's main branch in the local cache: its path there, and where it lies."""
    reference = _storage(name) / "refs" / constants.DEFAULT_REVISION
    if not reference.exists():
        return []
    root = _storage(name) / "snapshots" / reference.read_text().strip()
    return [(file.relative_to(root).as_posix(), file) for file in sorted(root.rglob("*")) if file.is_file()]


def _complete(repository: Repository, file: RemoteFile, part: Path, advance: Callable[[int], object]) -> None:
    with part.open("ab") as out:
        for chunk in _Reader(repository, file).chunks(out.tell(), file.size):
            out.write(chunk)
            advance(len(chunk))


class _Reader:
    """Reads a remote file by range and goes on where a connection broke; remembers the etags that it met."""

    def __init__(self, repository: Repository, file: RemoteFile):
        self.repository = repository
        self.file = file
        self.etags: set[str | None] = set()

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop)."""
        return b"".join(self.chunks(start, stop))

    def chunks(self, start: int, stop: int) -> Iterator[bytes]:
        """Bytes [start, stop), piece by piece. Raises Ltx2Error when the hub stops giving any."""
        failures = 0
        while start < stop:
            before, reason = start, "the connection ended early"
            try:
                for chunk in self._answer(start, stop):
                    yield chunk
                    start += len(chunk)
            except httpx.TransportError as error:
                reason = str(error)
            failures = 0 if start > before else failures + 1
            if failures == ATTEMPTS:
                hint = "check the network; running it again goes on from here"
                raise Ltx2Error(f"{self.file.path} stops after {start} of {self.file.size} bytes: {reason}", hint=hint)
            if start < stop:
                time.sleep(WAIT_SECONDS * failures)

    def _answer(self, start: int, stop: int) -> Iterator[bytes]:
        name, path = self.repository.name, self.file.path
        url = hf_hub_url(name, path, revision=self.repository.revision)
        headers = build_hf_headers() | {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with http_stream_backoff("GET", url, headers=headers, timeout=timeout, retry_on_exceptions=()) as response:
            hf_raise_for_status(response)
            self.etags.add(response.headers.get("ETag"))
            # A server that ignores ranges sends the file from its beginning.
            skip, left = start if response.status_code == 200 else 0, stop - start
            # As it arrives: chunks of a stated size would be lost when the connection breaks within one.
            for chunk in response.iter_bytes():
                kept = chunk[skip : skip + left]
                skip = max(0, skip - len(chunk))
                left -= len(kept)
                if kept:
                    yield kept
                if not left:
                    return


def _link(repository: Repository, files: Sequence[RemoteFile], revision: str) -> Path:
    """Give downloaded blobs their names in the cache's snapshot, and say which commit the asked revision was."""
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with _explained(repository.name):
            folder = snapshot_download(
                repository.name,
                revision=repository.revision,
                allow_patterns=[glob.escape(file.path) for file in files],
            )
    finally:
        if shown:
            enable_progress_bars()
    if revision != repository.revision:
        reference = _storage(repository.name) / "refs" / revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(repository.revision)
    return Path(folder)


def _storage(name: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def _part(target: Path, file: RemoteFile) -> Path:
    return target.with_name(f"{target.name}.{file.checksum[:8]}.part")


def _checksum(path: Path, file: RemoteFile) -> str:
    """The checksum of a file here, by the rule of the remote file's: git's SHA-1 has 40 digits."""
    if len(file.checksum) == 40:
        return hashlib.sha1(b"blob %d\0" % path.stat().st_size + path.read_bytes(), usedforsecurity=False).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """What the hub and the disk say, in the errors of this package."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise RefusedRequest("HF_HUB_OFFLINE forbids the network", hint="unset it for this command") from error
    except GatedRepoError as error:
        hint = f"accept its terms at {constants.ENDPOINT}/{name}, and set HF_TOKEN"
        raise RefusedRequest(f"{name} is gated", knob="model", hint=hint) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        hint = "check the spelling; a private one needs HF_TOKEN"
        raise UnknownModel(f"model: there is no {name} on the hub", knob="model", hint=hint) from error
    except RevisionNotFoundError as error:
        raise RefusedRequest(f"{name} has no such revision", knob="revision") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = "check HF_TOKEN" if status in (401, 403) else "try again later"
        raise Ltx2Error(f"the hub answers with {status} for {name}", hint=hint) from error
    except httpx.HTTPError as error:
        hint = f"check the network, the proxy and HF_ENDPOINT ({constants.ENDPOINT})"
        raise Ltx2Error(f"the hub cannot be reached: {error}", hint=hint) from error
    except InterruptedError:
        raise
    except OSError as error:
        hint = "free some space; running it again goes on from here" if error.errno == errno.ENOSPC else None
        text = f"{error.filename or 'the disk'}: {error.strerror}" if error.strerror else str(error)
        raise Ltx2Error(text, hint=hint) from error
