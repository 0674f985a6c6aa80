"""Model weights on their volume: what belongs to a model, where it lies, and which commit of it was pinned."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ltx2.models.catalogue import Published, find
from ltx2.models.describe import PUBLISHED, Source, read_card
from ltx2.spec import shapes
from ltx2.spec.card import Card
from ltx2.spec.deployment import Deployment
from ltx2.spec.errors import CheckpointError, Ltx2Error, NotOffered
from ltx2.spec.plan import Plan, resolve
from ltx2.spec.request import request

PIN = "pin.json"
EMBEDDED = "tiny"
DOWNLOAD = "modal run ltx2_video.py::download"


@dataclass(frozen=True)
class Pin:
    """One fetched part: its commit, and the folder or file to load."""

    name: str
    revision: str
    path: str
    files: int
    bytes: int


def parts(deployment: Deployment) -> list[Published]:
    """The model and what it needs from elsewhere. Raises UnknownModel, and NotOffered for what would not run."""
    if deployment.model == EMBEDDED:
        return []
    entry = find(deployment.model)
    if entry.refused:
        raise NotOffered(
            f"{entry.name} would not run: {entry.refused}", knob="model", hint="`ltx2 models` lists others"
        )
    return [entry, *(find(name) for name in entry.needs)]


def place_of(root: Path, entry: Published) -> Path:
    """The folder of a part on the volume."""
    return root / entry.name.replace("/", "--")


def pin_of(root: Path, entry: Published) -> Pin | None:
    """What was fetched of a part; None when nothing was, or not all."""
    file = place_of(root, entry) / PIN
    if not file.exists():
        return None
    return Pin(**json.loads(file.read_text()))


def write_pin(root: Path, entry: Published, pin: Pin) -> None:
    """Note that a part is complete: the last thing that a download does, in one rename."""
    file = place_of(root, entry) / PIN
    part = file.with_suffix(".part")
    part.write_text(json.dumps(pin.__dict__))
    part.replace(file)


def source_of(deployment: Deployment) -> Source:
    """The model as the engine loads it, from the volume.

    Raises CheckpointError when it was not downloaded, or at another commit than the settings pin.
    """
    if deployment.model == EMBEDDED:
        return Source(EMBEDDED)
    root = deployment.folder("weights")
    found: list[Pin] = []
    for entry in parts(deployment):
        pin = pin_of(root, entry)
        if pin is None:
            raise CheckpointError(f"{entry.name} is not on the volume", knob="model", hint=DOWNLOAD)
        found.append(pin)
    if deployment.revision and found[0].revision != deployment.revision:
        raise CheckpointError(
            f"{deployment.model} on the volume is {found[0].revision}, the settings say {deployment.revision}",
            knob="revision", hint=DOWNLOAD,
        )  # fmt: skip
    kind = parts(deployment)[0].kind
    text = Path(found[1].path) if len(found) > 1 else None
    return Source(found[0].path, kind=kind, text_encoder=text)


def card_of(deployment: Deployment) -> Card:
    """The card of the model on the volume, under the name that clients use; before it is there, that of the published
    model of its version. Raises RefusedRequest for a preset that the model does not have.
    """
    revision: str | None = None
    try:
        card = read_card(source_of(deployment))
        pins = [pin_of(deployment.folder("weights"), entry) for entry in parts(deployment)[:1]]
        revision = pins[0].revision if pins and pins[0] else None
    except CheckpointError:
        entry = parts(deployment)[0]
        version = {"2.0": "ltx-2", "2.3": "ltx-2.3", "2.5": "ltx-2.5"}[entry.version or "2.0"]
        card = replace(read_card(Source(version, weights="random", kind=entry.kind)), note="")
    card = replace(card, name=served_name(deployment), revision=revision, preset=deployment.preset)
    resolve(request(prompt="x"), card)
    return card


def trial(deployment: Deployment, card: Card, shape: str) -> Plan:
    """The Plan of a warm-up `shape`. Raises RefusedRequest for one that cannot be made."""
    return shapes.plan_of(shape, replace(card, preset=deployment.preset))


def served_name(deployment: Deployment) -> str:
    """The name that clients use."""
    known = {hub: name for name, hub in PUBLISHED.items()}
    return known.get(deployment.model, deployment.model)


def fetch(deployment: Deployment, say: Any = print) -> list[Pin]:
    """Download the model and what it needs into the volume, verified; what is there already is only verified.

    Raises what `ltx2 download` raises.
    """
    from ltx2.models import checkup, hub

    pins: list[Pin] = []
    root = deployment.folder("weights")
    for number, entry in enumerate(parts(deployment)):
        revision = (deployment.revision if number == 0 else None) or entry.revision
        repository = hub.listing(entry.hub, revision)
        # One folder for each commit: what is being served is never overwritten.
        folder = place_of(root, entry) / repository.revision
        files = checkup.wanted(entry, repository)
        hub.check_disk(repository, files, folder)
        wrong = [finding for finding in checkup.check_remote(entry, repository) if not finding.ok]
        if wrong:
            raise CheckpointError(
                f"{entry.name} is not what it should be: {wrong[0].subject}: {wrong[0].text}", knob="model"
            )
        size = sum(file.size for file in files)
        say(f"{entry.name}: {len(files)} files of {entry.hub} at {repository.revision}, {size / 1e9:.1f} GB")
        began = time.monotonic()
        place = hub.download(repository, files, folder, revision, lambda _: None)
        path = place if entry.form in checkup.WHOLE else place / files[0].path
        pins.append(Pin(entry.name, repository.revision, str(path), len(files), size))
        write_pin(root, entry, pins[-1])
        say(f"{entry.name}: there, in {time.monotonic() - began:.0f} s")
    return pins


def trouble(deployment: Deployment) -> str | None:
    """Why nothing can be made from the volume as it is; None when something can."""
    try:
        source_of(deployment)
    except Ltx2Error as error:
        return str(error)
    return None
