"""`ltx2 models`: what is published, what each model needs, and what is on this disk. Imports no torch, asks no network."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from ltx2.doors.machine import use_cache
from ltx2.models.catalogue import CATALOGUE, Published
from ltx2.models.describe import HERE, Source, locate
from ltx2.spec.errors import UnknownModel
from ltx2.spec.settings import Settings

_COLUMNS = ("name", "version", "kind", "size", "licence", "needs", "here")


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
            "\nsizes are gigabytes on the disk, ~ where rounded or derived, ? where not known; `ltx2 download NAME` fetches"
        )
    return 0


def describe(entry: Published) -> dict[str, Any]:
    """A row of the catalogue, JSON-ready, with `here`: where it lies on this disk, or None."""
    row = asdict(entry) | {"here": here(entry)}
    if entry.form == "embedded":
        row["size"] = sum(file.stat().st_size for file in (HERE / entry.name).rglob("*") if file.is_file())
        row["about"] = False
    return row


def here(entry: Published) -> str | None:
    """Where an entry lies on this disk, whole; None when it does not."""
    try:
        if entry.form in ("embedded", "folder"):
            return str(locate(Source(entry.hub or entry.name)).path)
        from ltx2.models.hub import cached_paths
    except (UnknownModel, ModuleNotFoundError):
        # Without huggingface_hub there is no cache to look into.
        return None
    found = [file for path, file in cached_paths(entry.hub) if entry.wants(path)]
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
    return (row["name"], row["version"] or "any", kind, shown, row["licence"], needed, "here" if row["here"] else "")
