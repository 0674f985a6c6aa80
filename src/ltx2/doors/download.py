"""`ltx2 download NAME`: checks a published model by its headers, fetches what is used of it, verifies every file."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ltx2.doors.machine import use_cache
from ltx2.models.catalogue import Published, find
from ltx2.spec.errors import CheckpointError, NotOffered, RefusedRequest
from ltx2.spec.settings import Settings

if TYPE_CHECKING:
    from ltx2.models.checkup import Finding


def download_command(values: argparse.Namespace, settings: Settings) -> int:
    """Fetch a model and print where it is and how to use it.

    Raises UnknownModel, NotOffered for what this engine cannot run, CheckpointError for what does not fit the
    manifests (unless --anyway), RefusedRequest when the disk is too small: all before anything is fetched.
    """
    entry = find(values.name)
    if entry.form == "embedded":
        raise RefusedRequest(f"{entry.name} is part of the package", hint="nothing has to be downloaded")
    if entry.refused and not values.anyway:
        raise NotOffered(f"{entry.name} would not run: {entry.refused}", knob="name", hint="`ltx2 models` lists others")
    use_cache(settings)
    # Imported late: the cache's place is read from the environment when huggingface_hub is imported.
    from tqdm import tqdm

    from ltx2.models import checkup, hub

    revision = values.revision or entry.revision
    folder = Path(values.folder).expanduser().absolute() if values.folder else None
    repository = hub.listing(entry.hub, revision)
    files = checkup.wanted(entry, repository)
    missing = hub.check_disk(repository, files, folder)
    if not values.anyway:
        _refuse_misfits(entry, checkup.check_remote(entry, repository))
    if not values.quiet:
        said = f"{len(files)} files of {entry.hub} at {repository.revision}, {missing / 1e9:.1f} GB to fetch"
        print(f"ltx2: {said} (licence: {entry.licence})", file=sys.stderr)
    began = time.time()
    with tqdm(total=missing, unit="B", unit_scale=True, desc="download", file=sys.stderr, disable=values.quiet) as bar:
        root = hub.download(repository, files, folder, revision, bar.update)
    place = root if entry.form in checkup.WHOLE else root / files[0].path
    report = {
        "name": entry.name, "path": str(place), "revision": repository.revision, "files": len(files),
        "bytes": sum(file.size for file in files), "fetched": missing, "seconds": time.time() - began,
        "use": _use(entry, place, in_cache=not folder and not revision),
    }  # fmt: skip
    if values.json:
        print(json.dumps(report))
    else:
        print(f"{place}\nuse it with {report['use']}")
    return 0


def _refuse_misfits(entry: Published, findings: list[Finding]) -> None:
    wrong = [f"{finding.subject}: {finding.text}" for finding in findings if not finding.ok]
    if wrong:
        hint = f"`ltx2 doctor {entry.name}` says more; --anyway downloads it nevertheless"
        raise CheckpointError(f"{entry.name} is not what it should be: {wrong[0]}", knob="name", hint=hint)


def _use(entry: Published, place: Path, in_cache: bool) -> str:
    if entry.form == "folder":
        full = " --kind dev" if "transformer_full/*" in entry.files else ""
        return f"--model {entry.hub if in_cache else place}{full}"
    if entry.form == "split":
        return f"--model {place}"
    if entry.form == "text-encoder":
        return f"--text-encoder {place}"
    if entry.form == "upsampler":
        return f"--upsampler {place}"
    if entry.form == "lora":
        return f"--distilled-lora {place}"
    kind = f" --kind {entry.kind}" if entry.kind == "distilled" and "distilled" not in place.name else ""
    return f"--model {place}{kind} --text-encoder FOLDER (`ltx2 download ltx-2-text-encoder`)"
