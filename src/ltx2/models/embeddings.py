"""Remembers embedded prompts, in memory and on disk, so that the same text is not encoded twice.

It never changes a result: a text is embedded alone, and its key holds everything that decides the bits: the files of text
encoder, connectors and tokenizer, how they are held, what they compute in and on, and the versions that compute it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ltx2.models.header import read_header
from ltx2.models.reading import read
from ltx2.spec.errors import CheckpointError
from ltx2.spec.settings import PROMPT_DISK_BYTES, PROMPT_MEMORY_BYTES

Pair = tuple[Tensor, Tensor]

log = logging.getLogger(__name__)
_FORMAT = "ltx2 prompt embedding 3"
_PACKAGES = ("torch", "transformers", "diffusers", "tokenizers")
# Places of a file that its fingerprint reads, and bytes at each.
_SAMPLES, _SAMPLE = 16, 4096
_ABANDONED = 3600.0


class Embeddings:
    """Pairs of text tokens (video [1, S, Dv], audio [1, S, Da]) by key; the least recently used ones go first.

    `folder` None keeps them in memory only. Not for several threads at once; several processes may share a folder.
    """

    def __init__(
        self,
        folder: Path | None = None,
        memory_bytes: int = PROMPT_MEMORY_BYTES,
        disk_bytes: int = PROMPT_DISK_BYTES,
    ):
        self.folder, self.memory_bytes, self.disk_bytes = folder, memory_bytes, disk_bytes
        self._held: OrderedDict[str, Pair] = OrderedDict()

    def get(self, key: str, device: torch.device) -> Pair | None:
        """The pair on the device, as copies, or None. A damaged file counts as absent and is removed."""
        pair = self._held.get(key)
        if pair is None:
            pair = self._load(key)
            if pair is None:
                return None
            self._hold(key, pair)
        self._held.move_to_end(key)
        return pair[0].to(device, copy=True), pair[1].to(device, copy=True)

    def put(self, key: str, pair: Pair) -> None:
        """Keep a pair. A disk that cannot be written costs a warning, never the generation."""
        copies = pair[0].to("cpu", copy=True), pair[1].to("cpu", copy=True)
        self._hold(key, copies)
        if self.folder is None:
            return
        try:
            self._save(self.folder, key, copies)
            self._trim(self.folder)
        except OSError as error:
            log.warning("the prompt cache %s cannot be written: %s", self.folder, error)

    def _hold(self, key: str, pair: Pair) -> None:
        self._held[key] = pair
        while self._held and sum(_size(pair) for pair in self._held.values()) > self.memory_bytes:
            self._held.popitem(last=False)
        # What is larger than the whole memory is handed out once and then read from disk again.
        self._held.setdefault(key, pair)

    def _load(self, key: str) -> Pair | None:
        if self.folder is None:
            return None
        file = self.folder / f"{key}.safetensors"
        if not file.exists():
            return None
        try:
            header = read_header(file)
            tensors = dict(read(header.entries, torch.device("cpu")))
            if header.metadata.get("format") != _FORMAT or header.metadata.get("key") != key:
                raise CheckpointError(f"{file.name} is another prompt's")
            os.utime(file)
            return tensors["video"], tensors["audio"]
        except (CheckpointError, KeyError, OSError) as error:
            log.warning("the prompt cache has a damaged file, which is removed: %s", error)
            _remove(file)
            return None

    def _save(self, folder: Path, key: str, pair: Pair) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        number, name = tempfile.mkstemp(suffix=".part", dir=folder)
        os.close(number)
        part = Path(name)
        try:
            tensors = {"video": pair[0].contiguous(), "audio": pair[1].contiguous()}
            save_file(tensors, part, {"format": _FORMAT, "key": key})
            # On the disk before it gets its name: half of a file must never look whole.
            with part.open("rb") as stream:
                os.fsync(stream.fileno())
            part.replace(folder / f"{key}.safetensors")
        finally:
            _remove(part)

    def _trim(self, folder: Path) -> None:
        for part in folder.glob("*.part"):
            if (found := _stat(part)) and time.time() - found.st_mtime > _ABANDONED:
                _remove(part)
        files = [(found, file) for file in folder.glob("*.safetensors") if (found := _stat(file))]
        total = sum(found.st_size for found, _ in files)
        for found, file in sorted(files, key=lambda item: item[0].st_mtime_ns):
            if total <= self.disk_bytes:
                return
            _remove(file)
            total -= found.st_size


def key_of(identity: str, text: str) -> str:
    """The key of a text for a model of this identity (see `identify`)."""
    return hashlib.sha256(json.dumps([_FORMAT, identity, text]).encode()).hexdigest()


def identify(files: Iterable[Path], devices: Iterable[torch.device], **facts: Any) -> str:
    """Everything but the text that decides an embedding: files by content, devices, versions, and other JSON facts."""
    parts = {
        "files": sorted(fingerprint(file) for file in files),
        "devices": [_machine(device) for device in devices],
        "versions": [version(package) for package in _PACKAGES],
        "facts": facts,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def fingerprint(file: Path) -> str:
    """Tells files apart in milliseconds: name, size, time of the last change, and samples of the content."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        found = os.fstat(stream.fileno())
        digest.update(f"{file.name} {found.st_size} {found.st_mtime_ns}".encode())
        for number in range(_SAMPLES):
            stream.seek(found.st_size * number // _SAMPLES)
            digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} {torch.version.cuda}"
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()}"


def _size(pair: Pair) -> int:
    return pair[0].nbytes + pair[1].nbytes


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except FileNotFoundError:
        return None


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be removed: %s", file, error)
