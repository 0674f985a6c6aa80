"""The settings of a deployment on Modal, from the environment (LTX2_MODAL_…) or the table [modal] of ltx2.toml, and what
its GPUs cost. They are read once, where `modal deploy` runs, and travel to the containers as one text.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ltx2.spec import shapes
from ltx2.spec.errors import RefusedRequest
from ltx2.spec.shapes import DEFAULT, NOTHING, ORIGINAL

PREFIX = "LTX2_MODAL_"
FILE = "ltx2.toml"
# How the settings of the deploying machine reach the containers.
CARRIED = "LTX2_DEPLOYMENT"
SNAPSHOTS = ("none", "cpu", "gpu")
PRECISIONS = ("auto", "bf16", "fp8")
GB = 10**9


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU at Modal: memory in bytes, dollars a second (public prices of 2026), and whether it computes in fp8,
    which came with compute capability 8.9."""

    memory: int
    price: float
    fp8: bool = True


GPUS: dict[str, Gpu] = {
    "T4": Gpu(16 * GB, 0.000164, fp8=False),
    "L4": Gpu(24 * GB, 0.000222),
    "A10": Gpu(24 * GB, 0.000306, fp8=False),
    "L40S": Gpu(48 * GB, 0.000542),
    "A100-40GB": Gpu(40 * GB, 0.000583, fp8=False),
    "A100-80GB": Gpu(80 * GB, 0.000694, fp8=False),
    "H100": Gpu(80 * GB, 0.001097),
    "H100!": Gpu(80 * GB, 0.001097),
    "H200": Gpu(141 * GB, 0.001261),
    "B200": Gpu(180 * GB, 0.001736),
    "B300": Gpu(288 * GB, 7.10 / 3600),
}
CPU_CORE_PRICE = 0.0000131
# A pinned region costs 1.5 to 1.75 times as much; estimates and the spend cap take the higher.
REGION_FACTOR = 1.75


@dataclass(frozen=True)
class Deployment:
    """What `modal deploy ltx2_video.py` makes. The defaults are the frugal ones.

    `app`: the name in Modal, and the beginning of the names of its volumes and dicts. `model`: a name of `ltx2 models`
    or a hub id of a Diffusers folder; `revision`: its commit (None: the one that the download found and pinned).
    `gpus`: ranked, with fallbacks. `precision`: auto is bf16 where the weights fit, else fp8. `preset`: of requests that
    name none (None: what suits the model). `warm_up`: what a container makes once, with few steps, before its first job:
    shapes as in 768x512x97 or 768x512x97:classic; `default`, what a request gets that names none, and `original`, what
    the original routes make; () is nothing.
    `min_containers`, `max_containers`, `buffer_containers`: of the GPU class; `scaledown_window`: seconds that an idle one
    stays; `web_containers`: the most of the web function. `region`: None is anywhere, which is cheapest.
    `timeout`: seconds of one video; `startup_timeout`: seconds of loading. `attempts`: how often a job is begun when
    containers die. `snapshot`: of imports (cpu), also of the GPU (gpu, which Modal calls alpha), or none.
    `daily_cap`: dollars a day (UTC) beyond which nothing new is taken; 0 is no cap. `keep_days`: of files and records.
    `database_secret`: name of a Modal secret with LTX2_DB=postgresql://…; jobs then live there, with webhooks and fairness.
    `hub_secret`, `token_secret`: names of the secrets with HF_TOKEN and ENTER_TOKEN.
    `root`: the folder of containers under which volumes are mounted.
    """

    app: str = "ltx2-video"
    model: str = "ltx-2"
    revision: str | None = None
    gpus: tuple[str, ...] = ("H200", "B200", "H100")
    precision: str = "auto"
    preset: str | None = None
    warm_up: tuple[str, ...] = (DEFAULT, ORIGINAL)
    min_containers: int = 0
    max_containers: int = 1
    buffer_containers: int = 0
    scaledown_window: int = 60
    web_containers: int = 4
    region: str | None = None
    timeout: int = 900
    startup_timeout: int = 1200
    attempts: int = 3
    snapshot: str = "cpu"
    daily_cap: float = 20.0
    keep_days: float = 7.0
    database_secret: str | None = None
    hub_secret: str = "huggingface-secret"
    token_secret: str = "enter-token"
    root: str = "/ltx2"

    @property
    def price(self) -> float:
        """Dollars a second of the dearest GPU of the list: what the spend cap counts with before a GPU is known."""
        return max(self.price_of(gpu) for gpu in self.gpus)

    def price_of(self, gpu: str) -> float:
        """Dollars a second of one GPU in this deployment's region."""
        return GPUS[gpu].price * (REGION_FACTOR if self.region else 1.0)

    def folder(self, name: str) -> Path:
        """Where a volume is mounted: weights, outputs or compiled."""
        return Path(self.root) / name

    def carried(self) -> str:
        """The settings as one text."""
        return json.dumps(asdict(self), sort_keys=True)


KNOBS = {field.name: str(field.type) for field in fields(Deployment)}


def read_deployment(environment: Mapping[str, str], file: Path | None = None) -> Deployment:
    """The settings: in a container those that were carried there, else of the environment, else of `file`.

    Raises RefusedRequest for unknown names, values that cannot be used, and GPUs that Modal does not have.
    """
    carried = environment.get(CARRIED)
    if carried:
        values: dict[str, Any] = json.loads(carried)
        for name in ("gpus", "warm_up"):
            values[name] = tuple(values[name])
        return Deployment(**values)
    chosen = _read_table(file) if file is not None and file.exists() else {}
    for variable in sorted(environment):
        if variable.startswith(PREFIX) and environment[variable]:
            name = variable.removeprefix(PREFIX).lower()
            _check_known(name, variable)
            chosen[name] = _value(name, environment[variable], variable)
    return checked(Deployment(**chosen))


def checked(deployment: Deployment) -> Deployment:
    """The same settings, if they can be deployed. Raises RefusedRequest naming the knob and a value that works."""
    for gpu in deployment.gpus:
        if gpu not in GPUS:
            near = difflib.get_close_matches(gpu.upper(), GPUS, n=1, cutoff=0.3)
            hint = f"did you mean {near[0]}? " if near else ""
            raise RefusedRequest(f"gpus: Modal has no {gpu!r}", knob="gpus", hint=f"{hint}one of {', '.join(GPUS)}")
    if not deployment.gpus:
        raise RefusedRequest("gpus: name at least one", knob="gpus", hint="H200 works")
    _one_of("snapshot", deployment.snapshot, SNAPSHOTS)
    _one_of("precision", deployment.precision, PRECISIONS)
    _check_numbers(deployment)
    for shape in deployment.warm_up:
        shapes.check(shape, "warm_up")
    # It becomes a part of the service's host name.
    if not re.fullmatch(r"[a-z0-9](-?[a-z0-9]){0,39}", deployment.app):
        raise RefusedRequest(
            "app: lower-case letters, digits and dashes, up to 40", knob="app", hint="ltx2-video works"
        )
    return replace(deployment, gpus=tuple(dict.fromkeys(deployment.gpus)))


def _check_numbers(deployment: Deployment) -> None:
    # What Modal's client takes, and relations that would only show as money or as a container that never starts.
    bounds = {
        "min_containers": (0, 100), "max_containers": (1, 100), "buffer_containers": (0, 100), "web_containers": (1, 100),
        "scaledown_window": (2, 3600), "timeout": (30, 86_400), "startup_timeout": (60, 86_400), "attempts": (1, 10),
        "daily_cap": (0, 1_000_000), "keep_days": (0.04, 7),
    }  # fmt: skip
    for name, (least, most) in bounds.items():
        value = getattr(deployment, name)
        if not least <= value <= most:
            raise RefusedRequest(f"{name}: {value} is out of range", knob=name, hint=f"{least} to {most}")
    if deployment.min_containers > deployment.max_containers:
        raise RefusedRequest(
            f"min_containers: {deployment.min_containers} are more than max_containers", knob="min_containers",
            hint=f"{deployment.max_containers} works",
        )  # fmt: skip


def _read_table(file: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(file.read_text()).get("modal", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RefusedRequest(
            f"{file}: {error}", knob="modal", hint='[modal] and lines such as gpus = ["H200"]'
        ) from None
    for name in table:
        _check_known(name, f"{file}: {name}")
    return {name: _value(name, value, f"{file}: {name}") for name, value in table.items()}


def _check_known(name: str, where: str) -> None:
    if name not in KNOBS:
        near = difflib.get_close_matches(name, KNOBS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "one of " + ", ".join(KNOBS)
        raise RefusedRequest(f"{where}: there is no setting {name!r}", knob=name, hint=hint)


def _value(name: str, value: Any, where: str) -> Any:
    kind = KNOBS[name]
    try:
        if kind.startswith("tuple"):
            parts = value.split(",") if isinstance(value, str) else value
            if name == "warm_up" and list(parts) == [NOTHING]:
                return ()
            return tuple(str(part).strip() for part in parts if str(part).strip())
        if isinstance(value, bool):
            raise ValueError
        if kind == "int":
            return int(value) if isinstance(value, (int, str)) else _whole(value)
        return float(value) if kind == "float" else str(value)
    except (ValueError, TypeError):
        hint = {"int": "a whole number", "float": "a number"}.get(kind, "as in H200,H100")
        raise RefusedRequest(f"{where}: {value!r} cannot be {name}", knob=name, hint=hint) from None


def _whole(value: float) -> int:
    if value != int(value):
        raise ValueError
    return int(value)


def _one_of(knob: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RefusedRequest(f"{knob}: there is no {value!r}", knob=knob, hint="one of " + ", ".join(known))
