"""What `ltx2_video.py` declares with: settings, secrets, volumes and images of one deployment, and what its functions do."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import modal

from ltx2.doors.modal import images, weights
from ltx2.doors.modal.board import Board
from ltx2.doors.modal.carried import carried_of
from ltx2.spec.deployment import CARRIED, FILE, Deployment, read_deployment
from ltx2.spec.errors import Ltx2Error
from ltx2.spec.plan import resolve
from ltx2.spec.request import request
from ltx2.spec.service import read_environment, read_file

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ltx2.doors.modal.hands import Hands
    from ltx2.doors.modal.outputs import Outputs

Spawn = Callable[[str, str], str]
SERVICE = "LTX2_SERVICE"
# Set in the environment by the secret that names a database.
DATABASE = "LTX2_DB"
CLASSIC = "classic"


def place(environment: Mapping[str, str], folder: Path) -> Place:
    """The deployment that the environment and ltx2.toml in `folder` describe; in a container the one it belongs to.

    A fault in the settings ends the program with one line: there is nothing to deploy then.
    """
    file = folder / FILE
    try:
        deployment = read_deployment(environment, file)
        service: dict[str, Any] = {}
        if CARRIED not in environment:
            given = {name: value for name, value in environment.items() if not name.startswith("LTX2_MODAL_")}
            service = (read_file(file) if file.exists() else {}) | read_environment(given)
            card = weights.card_of(deployment)
            for shape in deployment.warm_up:
                weights.trial(deployment, card, shape)
    except Ltx2Error as error:
        raise SystemExit(f"ltx2: error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else "")) from None
    if SERVICE in environment:
        # Before the memory snapshot of the web function is taken.
        import_module("ltx2.doors.modal.web")
    return Place(deployment, environment.get(SERVICE) or carried_of(service))


@dataclass(frozen=True)
class Place:
    """One deployment. `service`: the server's settings of the deploying machine as text."""

    deployment: Deployment
    service: str

    # What is declared

    @cached_property
    def web_image(self) -> modal.Image:
        """Without torch."""
        return images.web_image(self.deployment, self.service)

    @cached_property
    def engine_image(self) -> modal.Image:
        """With it."""
        return images.engine_image(self.deployment)

    @cached_property
    def token_secret(self) -> modal.Secret:
        """ENTER_TOKEN; a deploy without it fails with Modal's own message."""
        return modal.Secret.from_name(self.deployment.token_secret, required_keys=["ENTER_TOKEN"])

    @cached_property
    def hub_secret(self) -> modal.Secret:
        """HF_TOKEN, which only the download sees."""
        return modal.Secret.from_name(self.deployment.hub_secret, required_keys=["HF_TOKEN"])

    @cached_property
    def database_secrets(self) -> list[modal.Secret]:
        """LTX2_DB, where jobs are to be in PostgreSQL."""
        name = self.deployment.database_secret
        return [modal.Secret.from_name(name, required_keys=[DATABASE])] if name else []

    @property
    def web_secrets(self) -> list[modal.Secret]:
        """Of the web function and the sweep."""
        return [self.token_secret, *self.database_secrets]

    @property
    def gpu_secrets(self) -> list[modal.Secret]:
        """Of the GPU class: it sees neither the users' token nor the hub's."""
        return self.database_secrets

    @property
    def web_volumes(self) -> dict[str, modal.Volume]:
        """The web function writes to none."""
        return {self._at("weights"): self.weights.read_only(), self._at("outputs"): self.outputs.read_only()}

    @property
    def gpu_volumes(self) -> dict[str, modal.Volume]:
        """Weights cannot be changed by what serves them."""
        return {
            self._at("weights"): self.weights.read_only(),
            self._at("outputs"): self.outputs,
            self._at("compiled"): self.compiled,
        }

    @property
    def download_volumes(self) -> dict[str, modal.Volume]:
        """Of the download."""
        return {self._at("weights"): self.weights}

    @property
    def sweep_volumes(self) -> dict[str, modal.Volume]:
        """Of the sweep."""
        return {self._at("outputs"): self.outputs, self._at("weights"): self.weights.read_only()}

    @cached_property
    def weights(self) -> modal.Volume:
        """Model weights: few large files."""
        return self._volume("weights", 1)

    @cached_property
    def outputs(self) -> modal.Volume:
        """Videos: many files of many writers, which the second version is made for."""
        return self._volume("outputs", 2)

    @cached_property
    def compiled(self) -> modal.Volume:
        """Compiled kernels."""
        return self._volume("compiled", 1)

    @property
    def experimental(self) -> dict[str, Any]:
        """Options that Modal calls experimental."""
        return {"enable_gpu_snapshot": True} if self.deployment.snapshot == "gpu" else {}

    @property
    def sweep_hours(self) -> int:
        """Hours between sweeps; with a database webhooks and lost jobs wait for it, too."""
        return 1 if self.deployment.database_secret else 6

    def _at(self, name: str) -> str:
        return str(self.deployment.folder(name))

    def _volume(self, name: str, version: Any) -> modal.Volume:
        return modal.Volume.from_name(f"{self.deployment.app}-{name}", create_if_missing=True, version=version)

    # What runs

    def board(self) -> Board:
        """The Dicts of the jobs."""
        return Board(*(self._dict(name) for name in ("jobs", "index", "waiting")))

    def ledger(self) -> Any:
        """The Dict of the money."""
        return self._dict("ledger")

    def files(self) -> Outputs:
        """The outputs, for who writes them."""
        from ltx2.doors.modal.outputs import Outputs

        return Outputs(self.deployment.folder("outputs"), self.outputs)

    def make_app(self, spawn: Spawn) -> FastAPI:
        """The application of the web function; `spawn` begins the making of a job."""
        from ltx2.doors.modal.calls import FunctionCalls
        from ltx2.doors.modal.web import Shelves, make_app

        shelves = Shelves(self.board(), self.ledger(), self.outputs, self.weights)
        scratch = Path(tempfile.gettempdir()) / f"{self.deployment.app}-{os.getpid()}"
        return make_app(self.deployment, shelves, FunctionCalls(spawn), scratch)

    def begin(self) -> Hands:
        """A GPU container: imports, before its snapshot."""
        from ltx2.doors.http import logs
        from ltx2.doors.modal.boot import Boot
        from ltx2.doors.modal.hands import Hands

        logs.configure()
        # What serves asks the hub for nothing: the volume has it all, at the pinned commit.
        os.environ["HF_HUB_OFFLINE"] = "1"
        boot = Boot(self.deployment)
        boot.load_code()
        return Hands(self, boot)

    def download(self) -> None:
        """Fill the volume of weights. Raises what `ltx2 download` raises."""
        weights.fetch(self.deployment)
        self.weights.commit()

    def sweep(self, spawn: Spawn) -> dict[str, int]:
        """Clean up; see sweep.py."""
        from ltx2.doors.http import logs
        from ltx2.doors.modal.calls import FunctionCalls
        from ltx2.jobs.job import Rules

        logs.configure()
        calls, outputs, keep = FunctionCalls(spawn), self.files(), self.deployment.keep_days * 86_400
        self.outputs.reload()
        if os.environ.get(DATABASE):
            from ltx2.doors.modal.database import sweep_store
            from ltx2.jobs.store import Store

            return sweep_store(Store(os.environ[DATABASE], Rules(files=keep, rows=keep)), outputs, calls)
        from ltx2.doors.modal.ledger import Ledger
        from ltx2.doors.modal.queue import DictQueue
        from ltx2.doors.modal.sweep import sweep

        ledger = Ledger(self.ledger(), self.deployment.daily_cap)
        queue = DictQueue(self.board(), calls, lambda ask, promised: 0.0, Rules(files=keep, rows=keep))
        return sweep(queue, outputs, ledger, keep)

    def _dict(self, name: str) -> Any:
        return modal.Dict.from_name(f"{self.deployment.app}-{name}", create_if_missing=True)


def fields_of(deployment: Deployment, prompt: str, *given: float) -> dict[str, Any]:
    """The request of `modal run`: the original service's parameters, by the original's recipe where the model has it.

    `given`: width, height, num_frames, fps, num_inference_steps (0: the recipe's own) and seed (-1: drawn).
    """
    width, height, frames, fps, steps, seed = given
    card = weights.card_of(deployment)
    classic = card.kind == "dev" and card.family != weights.EMBEDDED
    fields: dict[str, Any] = {"prompt": prompt, "preset": CLASSIC if classic else deployment.preset}
    fields |= {"width": int(width), "height": int(height), "frames": int(frames), "fps": str(fps) if fps else None}
    if classic:
        fields["steps"] = int(steps)
    elif steps:
        print(f"ltx2: {card.name} has its own steps: --num-inference-steps {int(steps)} is left out", file=sys.stderr)
    if seed >= 0:
        fields["seed"] = int(seed)
    fields = {name: value for name, value in fields.items() if value}
    try:
        resolve(request(**fields), card)
    except Ltx2Error as error:
        raise SystemExit(f"ltx2: error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else "")) from None
    return fields


def check_weights(deployment: Deployment) -> None:
    """End the program when the volume lacks what a video needs: no GPU is started to find that out."""
    from ltx2.doors.modal.doctor import missing

    for finding in missing(deployment):
        raise SystemExit(f"ltx2: error: {finding.subject}: {finding.text}")


def save(output: Path, data: bytes, report: dict[str, Any]) -> None:
    """Write what `modal run` brought back, in one rename."""
    part = output.with_suffix(".part")
    part.write_bytes(data)
    part.rename(output)
    print(f"{output}: {len(data)} bytes, {json.dumps(report)}")
