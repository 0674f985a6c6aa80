"""`ltx2 models`: what is published, what each model needs, and what is on this disk. Imports no torch, asks no network."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

from ltx2.doors.machine import use_cache
from ltx2.models.catalogue import CATALOGUE, Published
from ltx2.models.describe import HERE, Source, locate, read_card
from ltx2.spec.errors import UnknownModel
from ltx2.spec.precision import transformer_bytes
from ltx2.spec.settings import Settings

_COLUMNS = ("name", "version", "kind", "size", "on GPU", "licence", "needs", "here")
_CONFIGS = {"2.0": "ltx-2", "2.3": "ltx-2.3", "2.5": "ltx-2.5"}


def models_command(values: argparse.Namespace, settings: Settings) -> int:
    """Print the catalogue as a table, or as JSON."""
    use_cache(settings)
    rows = [describe(entry) for entry in CATALOGUE]
    if values.json:
        print(json.dumps({"models": rows}))
        return 0
    table = [_COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(cells[column]) for cells in table) for column in range(len(_COLUMNS))]
    for cells in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    if not values.quiet:
        print(
            "\nsizes are gigabytes on the disk, ~ where rounded or derived, ? where not known; `ltx2 download NAME` fetches\n"
            "on GPU: gigabytes of the weights in bf16, and with --precision fp8; `ltx2 plan` adds what a video takes"
        )
    return 0


def describe(entry: Published) -> dict[str, Any]:
    """A row of the catalogue, JSON-ready, with `here`: where it lies on this disk, or None."""
    row = asdict(entry) | {"here": here(entry), "weights": weights(entry)}
    if entry.form == "embedded":
        row["size"] = sum(file.stat().st_size for file in (HERE / entry.name).rglob("*") if file.is_file())
        row["about"] = False
    return row


def weights(entry: Published) -> dict[str, int] | None:
    """Bytes that the weights take on a device with everything there, by precision; None for parts of a model."""
    if entry.form not in ("folder", "file", "split") or entry.version is None or entry.refused:
        return None
    shape = read_card(Source(_CONFIGS[entry.version], weights="random")).shape
    rest = shape.text_encoder_bytes + shape.other_bytes
    return {precision: transformer_bytes(shape, precision) + rest for precision in ("bf16", "fp8")}


def here(entry: Published) -> str | None:
    """Where an entry lies on this disk, whole; None when it does not."""
    try:
        if entry.form in ("embedded", "folder"):
            path = locate(Source(entry.hub or entry.name)).path
            # One repository of 2.5 has two transformers.
            full = any(pattern.startswith("transformer_full") for pattern in entry.files)
            return str(path) if (path / ("transformer_full" if full else "transformer")).is_dir() else None
        from ltx2.models.hub import cached_paths
    except (UnknownModel, ModuleNotFoundError):
        # Without huggingface_hub there is no cache to look into.
        return None
    cached = cached_paths(entry.hub)
    found = [file for path, file in cached if entry.wants(path)]
    if entry.form == "split":
        parts = [next((file for path, file in cached if fnmatchcase(path, pattern)), None) for pattern in entry.files]
        return str(parts[0]) if all(parts) else None
    if entry.form == "text-encoder":
        complete = any(file.suffix == ".safetensors" for file in found) and any(
            "tokenizer" in file.parts for file in found
        )
        return str(found[0].parents[1]) if complete else None
    return str(found[0]) if found else None


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    size = row["size"]
    shown = "?" if size is None else f"{'~' if row['about'] else ''}{size / 1e9:.{1 if size >= 1e9 else 2}f}"
    needs = [*row["needs"], *(["HF_TOKEN"] if row["gated"] else [])]
    needed = f"not offered: {row['refused']}" if row["refused"] else ", ".join(needs)
    kind = row["kind"] or row["form"]
    version = row["version"] or ("2.0, 2.3" if row["form"] == "text-encoder" else "any")
    counted: dict[str, int] = row["weights"] or {}
    held = " / ".join(f"{count / 1e9:.0f}" for count in counted.values())
    return (row["name"], version, kind, shown, held, row["licence"], needed, "here" if row["here"] else "")
