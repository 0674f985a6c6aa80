"""Loading speed: writes a random transformer of full size to a disk and loads it back, beside that disk's raw read speed.

    python benchmarks/loading.py RESULTS.jsonl --folder /local/disk [--forms bf16 fp8 to-fp8 both] [--seconds 120]
    python benchmarks/loading.py RESULTS.jsonl --folder /local/disk --tiny       rehearsal, also without a GPU

Forms: `bf16` a Diffusers folder in bf16; `fp8` the same with fp8 weights and scales, into fp8 linears; `to-fp8` the bf16
folder, quantised while it streams; `both` transformer and text encoder side by side in bf16 (62 GB of disk). Before every
read the files are dropped from the page cache, and it is checked that they are gone. Each load runs in a process of its
own, which measures its host memory. A line of JSON for each measurement, at once. Where the disk is too slow for
`--seconds`, or too small, the transformer gets fewer layers, and every line says how many.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltx2.doors.origin import origin
from ltx2.models.components import Holding, fill_all
from ltx2.models.describe import HERE, folder_configs
from ltx2.models.folder import prepare_folder
from ltx2.models.holding import FORMS, layers
from ltx2.models.reading import PIECE, THREADS
from ltx2.models.weights import FOLDERS, build

SHARD = 5 * 10**9
# Shards that are written at once.
WRITERS = 4
# Bytes of one block of the published transformer in bf16, and of what is written to learn the disk's speed.
BLOCK, PROBE = 778 * 10**6, 2**30
NAMES = {torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3", torch.float32: "F32"}
PARTS = {
    "bf16": ("transformer",),
    "to-fp8": ("transformer",),
    "fp8": ("transformer",),
    "both": ("transformer", "text_encoder"),
}


def main(words: list[str]) -> None:
    """Write, measure and remove, form by form."""
    values = _arguments(words)
    if values.child:
        print(json.dumps(load_once(values.folder, values.child, torch.device(values.device))))
        return
    root, written = values.folder / "ltx2-loading", ""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    common: dict[str, Any] = {"tiny": values.tiny, **origin(values.device), "file_system": file_system(root)}
    probed = probe(root, values)
    append(values.results, {"bench": "loading", "form": "disk", **common, **probed})
    common["layers"] = values.layers
    try:
        for form in values.forms:
            stored = "fp8" if form == "fp8" else "bf16"
            key = f"{stored} {PARTS[form]}"
            if key != written:
                shutil.rmtree(root, ignore_errors=True)
                begin = time.perf_counter()
                write(root, PARTS[form], stored, values.layers, values.width, torch.device(values.device))
                common["write_seconds"], written = time.perf_counter() - begin, key
            for number in range(values.repeats):
                report = {"bench": "loading", "form": form, "run": number, **common}
                append(values.results, report | measure(root, form, values))
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="on the disk that is measured")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", type=int, default=48, help="at most this many")
    parser.add_argument("--width", type=int, default=4096, help="channels of the video stream, for small runs")
    parser.add_argument("--forms", nargs="+", choices=PARTS, default=["bf16", "to-fp8", "fp8"])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600.0, help="fewer layers where the disk would take longer")
    parser.add_argument("--tiny", action="store_true", help="4 layers of 512 channels")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    values = parser.parse_args(words)
    if values.tiny:
        values.layers, values.width = min(values.layers, 4), 512
    return values


def append(results: Path, line: dict[str, Any]) -> None:
    """One line of the file, and of the screen."""
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def probe(root: Path, values: argparse.Namespace) -> dict[str, Any]:
    """Learn how fast the disk is, and take as many layers as time and room allow (`values.layers` changes)."""
    files = [root / f"probe-{number}" for number in range(WRITERS)]
    size = (PROBE // 64 if values.tiny else PROBE) // WRITERS

    def fill(file: Path) -> None:
        with file.open("wb") as stream:
            stream.write(os.urandom(size))
            stream.flush()
            os.fsync(stream.fileno())

    begin = time.perf_counter()
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(fill, files))
    writing = WRITERS * size / (time.perf_counter() - begin)
    reading = WRITERS * size / seconds_to_read(files, 0)
    cached = drop(files)
    for file in files:
        file.unlink()
    block = BLOCK * (values.width / 4096) ** 2
    seconds = room = 0.0
    written = ""
    for form in values.forms:
        share = (0.56 if form == "fp8" else 1) * block
        if (key := f"{form == 'fp8'} {PARTS[form]}") != written:
            seconds, room, written = seconds + share / writing, max(room, share), key
        # Raw twice, and the load.
        seconds += 3 * values.repeats * share / reading
    free = shutil.disk_usage(root).free
    affordable = min(values.seconds / seconds, 0.9 * free / room)
    values.layers = max(1, min(values.layers, int(affordable)))
    speeds = {"write_gb_s": writing / 1e9, "read_gb_s": reading / 1e9, "cached_before": cached}
    return {**speeds, "free_bytes": free, "layers": values.layers}


def file_system(folder: Path) -> str:
    """The kind of file system that holds a folder, as /proc/mounts names it."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, name, *_ = line.split()
        if folder.resolve().is_relative_to(place) and len(place) >= len(best):
            best, kind = place, name
    return kind


def measure(root: Path, form: str, values: argparse.Namespace) -> dict[str, Any]:
    """Raw reads and one load, each after the page cache was emptied of the files."""
    files = [file for part in PARTS[form] for file in sorted((root / part).glob("*.safetensors"))]
    size = sum(file.stat().st_size for file in files)
    raw = {"raw": size / seconds_to_read(files, 0) / 1e9}
    # Not every file system can pass the page cache by.
    with suppress(OSError):
        raw["raw_direct"] = size / seconds_to_read(files, os.O_DIRECT) / 1e9
    cached = drop(files)
    command = [sys.executable, __file__, str(values.results), "--folder", str(root), "--device", values.device]
    child = subprocess.run([*command, "--child", form], capture_output=True, text=True)
    if child.returncode:
        raise SystemExit(child.stderr)
    loaded = json.loads(child.stdout.splitlines()[-1])
    rate = size / loaded["seconds"] / 1e9
    return {
        "bytes": size, "cached_before": cached, **{f"{name}_gb_s": speed for name, speed in raw.items()},
        "load_gb_s": rate, "share_of_raw": rate / max(raw.values()), **loaded,
    }  # fmt: skip


def load_once(root: Path, form: str, device: torch.device) -> dict[str, Any]:
    """Load in this process: seconds, and the host memory beyond what was there before."""
    if device.type == "cuda":
        torch.empty(1, device=device)
    parts = {part: prepare_folder(root, part, dtype=torch.bfloat16) for part in PARTS[form]}
    with sampling_memory() as peak:
        before, begin = peak(), time.perf_counter()
        networks = fill_all(parts, {}, device, Holding("fp8" if form.endswith("fp8") else "plain"))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - begin
        host = peak() - before
    held = sum(tensor.nbytes for network in networks.values() for tensor in network.state_dict().values())
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {"seconds": seconds, "host_peak_bytes": host, "held_bytes": held, "device_peak_bytes": on_device}


class sampling_memory:  # noqa: N801 - used as a block
    """Yields a function for the largest resident size of this process so far, looked at every 10 ms."""

    def __enter__(self) -> Callable[[], int]:
        self.largest, self.stop = _resident(), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return lambda: self.largest

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.stop.wait(0.01):
            self.largest = max(self.largest, _resident())


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def write(root: Path, parts: tuple[str, ...], stored: str, depth: int, width: int, device: torch.device) -> None:
    """Random components in shards, one tensor at a time, so that the host holds no more than one."""
    configs = folder_configs(HERE / "configs" / "ltx-2")
    for part in parts:
        config = configs[part]
        if part == "transformer":
            config |= {"num_layers": depth, "attention_head_dim": width // 32, "cross_attention_dim": width}
            config |= {"audio_attention_head_dim": width // 64, "audio_cross_attention_dim": width // 2}
        folder = root / FOLDERS[part]
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        network = build(part, config)
        held = {f"{layer}.weight" for layer in layers(network, "fp8")} if stored == "fp8" else set[str]()
        shapes = {name: tuple(t.shape) for name, t in network.state_dict().items() if name != "lm_head.weight"}
        _write_shards(folder, "model" if part == "text_encoder" else "diffusion_pytorch_model", shapes, held, device)


def _write_shards(
    folder: Path, stem: str, shapes: dict[str, tuple[int, ...]], held: set[str], device: torch.device
) -> None:
    groups: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        size += 2 * torch.Size(shape).numel()
        if size > SHARD and groups[-1]:
            groups.append([])
            size = 2 * torch.Size(shape).numel()
        groups[-1].append(name)
    index: dict[str, str] = {}

    def one(number: int) -> dict[str, str]:
        file = folder / f"{stem}-{number:05}-of-{len(groups):05}.safetensors"
        return _write_file(file, {name: shapes[name] for name in groups[number - 1]}, held, device)

    with ThreadPoolExecutor(WRITERS) as pool:
        for names in pool.map(one, range(1, len(groups) + 1)):
            index |= names
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def _write_file(file: Path, shapes: dict[str, tuple[int, ...]], held: set[str], device: torch.device) -> dict[str, str]:
    kinds: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        kinds[name] = (torch.float8_e4m3fn if name in held else torch.bfloat16, shape)
        if name in held:
            kinds[f"{name}_scale"] = (torch.float32, ())
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in kinds.items():
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in _random(kinds, device):
            stream.write(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
        stream.flush()
        os.fsync(stream.fileno())
    return dict.fromkeys(kinds, file.name)


def _random(kinds: dict[str, tuple[torch.dtype, tuple[int, ...]]], device: torch.device) -> Iterator[Tensor]:
    for name, (dtype, shape) in kinds.items():
        if name.endswith("weight_scale"):
            yield torch.tensor(1.3e-3)
        elif dtype == torch.float8_e4m3fn:
            yield FORMS["fp8"].quantise(torch.randn(shape, device=device))["weight"]
        else:
            yield torch.empty(shape, dtype=dtype, device=device).normal_(0.0, 0.02)


def seconds_to_read(files: list[Path], flags: int) -> float:
    """Read all bytes with as many threads and pieces as the loader uses, into buffers that are thrown away."""
    drop(files)
    local = threading.local()

    def fetch(file: int, start: int) -> int:
        if not hasattr(local, "buffer"):
            local.buffer = _aligned(PIECE)
        return os.preadv(file, [local.buffer], start)

    opened = [os.open(file, os.O_RDONLY | flags) for file in files]
    begin = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        spans = [(number, start) for number in opened for start in range(0, os.fstat(number).st_size, PIECE)]
        total = sum(pool.map(lambda span: fetch(*span), spans))
    seconds = time.perf_counter() - begin
    for number in opened:
        os.close(number)
    assert total == sum(file.stat().st_size for file in files), "not all was read"
    return seconds


def _aligned(size: int) -> memoryview:
    """O_DIRECT wants memory that begins at a page."""
    import mmap

    return memoryview(mmap.mmap(-1, size))


def drop(files: list[Path]) -> float:
    """Drop the files from the page cache; the share of sampled pages that are still there (0 is right)."""
    there = tried = 0
    for file in files:
        number = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            size = os.fstat(number).st_size
            # Far apart, since a sample that is not there would start reading ahead.
            for start in random.Random(0).sample(range(0, size, 4096), min(32, size // 4096)):
                tried += 1
                try:
                    there += os.preadv(number, [bytearray(1)], start, os.RWF_NOWAIT)
                except BlockingIOError:
                    continue
                except OSError:
                    return -1.0  # this file system cannot tell
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(number)
    return there / max(tried, 1)


if __name__ == "__main__":
    main(sys.argv[1:])
