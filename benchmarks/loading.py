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
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from command import append, arguments, failure, parse
from disk import WRITERS, drop, file_system, probe, seconds_to_read
from torch import Tensor

from ltx2.doors.origin import origin
from ltx2.models.components import Holding, fill_all
from ltx2.models.describe import HERE, folder_configs
from ltx2.models.folder import prepare_folder
from ltx2.models.holding import FORMS, layers
from ltx2.models.weights import FOLDERS, build

SHARD = 5 * 10**9
# Bytes of one block of the published transformer in bf16, and of what is written to learn the disk's speed.
BLOCK, PROBE = 778 * 10**6, 2**30
# Seconds after which a load is given up.
LIMIT = 300
NAMES = {torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3", torch.float32: "F32"}
PARTS = {
    "bf16": ("transformer",),
    "to-fp8": ("transformer",),
    "fp8": ("transformer",),
    "both": ("transformer", "text_encoder"),
}


def main(words: Sequence[str] | None = None) -> None:
    """Write, measure and remove, form by form."""
    values = _arguments(words)
    if values.child:
        print(json.dumps(load_once(values.folder, values.child, torch.device(values.device))))
        return
    root = values.folder / "ltx2-loading"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    common: dict[str, Any] = {"tiny": values.tiny, **origin(values.device), "file_system": file_system(root)}
    try:
        probed = probe(root, PROBE // 64 if values.tiny else PROBE)
        values.layers = affordable(probed, values)
        append(values.results, {"bench": "loading", "form": "disk", **common, **probed, "layers": values.layers})
        written: tuple[str, float] | None = None
        for form in values.forms:
            written = _forms_turn(root, form, values, common | {"layers": values.layers}, written)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _forms_turn(
    root: Path, form: str, values: argparse.Namespace, common: dict[str, Any], written: tuple[str, float] | None
) -> tuple[str, float] | None:
    """Write a form's files where the last one's are not the same, and load them; what goes wrong is a line.

    `written` says which files are there and the seconds that they took, as does what is returned.
    """
    common = {"bench": "loading", "form": form, **common}
    try:
        stored = "fp8" if form == "fp8" else "bf16"
        key = f"{stored} {PARTS[form]}"
        if written is None or key != written[0]:
            written = None
            shutil.rmtree(root, ignore_errors=True)
            begin = time.perf_counter()
            write(root, PARTS[form], stored, values)
            written = key, time.perf_counter() - begin
    except Exception as error:
        append(values.results, common | failure(error))
        return None
    for number in range(values.repeats):
        report = common | {"run": number, "write_seconds": written[1]}
        try:
            append(values.results, report | measure(root, form, values))
        except Exception as error:
            append(values.results, report | failure(error))
    return written


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__, rehearsal="4 layers of 512 channels")
    parser.add_argument("--folder", type=Path, required=True, help="on the disk that is measured")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", type=int, default=48, help="at most this many")
    parser.add_argument("--width", type=int, default=4096, help="channels of the video stream, for small runs")
    parser.add_argument("--forms", nargs="+", choices=PARTS, default=["bf16", "to-fp8", "fp8"])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600.0, help="fewer layers where the disk would take longer")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    values = parse(parser, words)
    if values.tiny:
        values.layers, values.width = min(values.layers, 4), 512
    return values


def affordable(probed: dict[str, Any], values: argparse.Namespace) -> int:
    """As many layers as time and room allow on a disk of these speeds, at most `values.layers`."""
    block = BLOCK * (values.width / 4096) ** 2
    seconds = room = 0.0
    written = ""
    for form in values.forms:
        share = (0.56 if form == "fp8" else 1) * block
        if (key := f"{form == 'fp8'} {PARTS[form]}") != written:
            seconds, room, written = seconds + share / probed["write_gb_s"] / 1e9, max(room, share), key
        # Raw twice, and the load.
        seconds += 3 * values.repeats * share / probed["read_gb_s"] / 1e9
    return max(1, min(values.layers, int(min(values.seconds / seconds, 0.9 * probed["free_bytes"] / room))))


def measure(root: Path, form: str, values: argparse.Namespace) -> dict[str, Any]:
    """Raw reads and one load, each after the page cache was emptied of the files."""
    files = [file for part in PARTS[form] for file in sorted((root / part).glob("*.safetensors"))]
    size = sum(file.stat().st_size for file in files)
    raw: dict[str, float] = {}
    for name, flags in (("raw", 0), ("raw_direct", os.O_DIRECT)):
        # Not every file system can pass the page cache by.
        with suppress(OSError):
            raw[name] = size / seconds_to_read(files, flags) / 1e9
    cached = drop(files)
    command = [sys.executable, __file__, str(values.results), "--folder", str(root), "--device", values.device]
    child = subprocess.run([*command, "--child", form], capture_output=True, text=True, timeout=LIMIT)
    if child.returncode:
        raise RuntimeError(f"the loading process ended with {child.returncode}: {child.stderr[-800:]}")
    loaded = json.loads(child.stdout.splitlines()[-1])
    rate = size / loaded["seconds"] / 1e9
    return {
        "bytes": size, "cached_before": cached, **{f"{name}_gb_s": speed for name, speed in raw.items()},
        "load_gb_s": rate, "share_of_raw": rate / max(raw.values()) if raw else None, **loaded,
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


def write(root: Path, parts: tuple[str, ...], stored: str, values: argparse.Namespace) -> None:
    """Random components in shards, one tensor at a time, so that the host holds no more than one."""
    configs, width = folder_configs(HERE / "configs" / "ltx-2"), values.width
    for part in parts:
        config = configs[part]
        if part == "transformer":
            config |= {"num_layers": values.layers, "attention_head_dim": width // 32, "cross_attention_dim": width}
            config |= {"audio_attention_head_dim": width // 64, "audio_cross_attention_dim": width // 2}
        folder = root / FOLDERS[part]
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        network = build(part, config)
        held = {f"{layer}.weight" for layer in layers(network, "fp8")} if stored == "fp8" else set[str]()
        shapes = {name: tuple(t.shape) for name, t in network.state_dict().items() if name != "lm_head.weight"}
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        _write_shards(folder, stem, shapes, held, torch.device(values.device))


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


if __name__ == "__main__":
    main()
