"""`ltx2 modal doctor`: what would keep a deployment from working, found before it costs anything."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import modal
import modal.exception

from ltx2 import __version__
from ltx2.doors.modal import weights
from ltx2.doors.modal.boot import fitting
from ltx2.doors.modal.prices import costs
from ltx2.doors.verdict import tell
from ltx2.models.catalogue import Published
from ltx2.models.checkup import Finding
from ltx2.spec.card import Card
from ltx2.spec.cost import need
from ltx2.spec.deployment import FILE, GPUS, Deployment, read_deployment
from ltx2.spec.errors import Ltx2Error
from ltx2.spec.plan import Plan, resolve
from ltx2.spec.request import request

TESTED = "1.6"


def doctor(as_json: bool) -> int:
    """Look, print, and return 0 when all is well, 1 otherwise. Raises RefusedRequest for settings that cannot be."""
    deployment = read_deployment(os.environ, Path(FILE))
    return tell(list(examine(deployment)), as_json)


def examine(deployment: Deployment) -> Iterator[Finding]:
    """Findings about the client, the settings, the account, the secrets, the volume and the price of a clip."""
    tested = modal.__version__.startswith(f"{TESTED}.")
    versions = f"ltx2 {__version__}, modal {modal.__version__}"
    yield Finding("client", True, versions if tested else f"{versions}; tested with {TESTED}", note=not tested)
    yield from _guarded("settings", lambda: _settings(deployment))
    account = list(_guarded("account", _account))
    yield from account
    held: list[Finding] = []
    if account[0].ok:
        yield from _secrets(deployment)
        held = list(_guarded("weights", lambda: _weights(deployment)))
        yield from held
        yield from _guarded("service", lambda: _service(deployment))
    # Once the weights are on the volume nobody asks the hub.
    if not held or not all(finding.ok for finding in held):
        yield from _hub(deployment)


def _guarded(subject: str, look: Callable[[], list[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except (Ltx2Error, modal.exception.Error, OSError) as error:
        yield Finding(
            subject, False, str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        )


def _settings(deployment: Deployment) -> list[Finding]:
    card = weights.card_of(deployment)
    plan = resolve(request(prompt="x"), card)
    findings = [
        Finding(
            "settings", True, f"{deployment.app}: {weights.served_name(deployment)} on {', '.join(deployment.gpus)}"
        )
    ]
    findings += [_gpu(gpu, deployment, card, plan) for gpu in deployment.gpus]
    money = costs(deployment, card, plan)
    cap = f"the cap is ${deployment.daily_cap:g} a day" if deployment.daily_cap else "there is no daily cap"
    findings.append(
        Finding("a clip", True, f"${money.warm:.3f} warm, ${money.alone:.3f} alone with its cold start; {cap}")
    )
    return findings


def _gpu(gpu: str, deployment: Deployment, card: Card, plan: Plan) -> Finding:
    """Whether a kind of GPU holds the default video in the precision that a container would choose there."""
    memory, price = GPUS[gpu].memory, f"${deployment.price_of(gpu) * 3600:.2f} an hour"
    how = fitting(deployment, card, plan, memory)
    if how == "fp8" and not GPUS[gpu].fp8:
        chosen = f"{memory / 1e9:.0f} GB do not hold {plan.preset} in bf16" if deployment.precision == "auto" else "set"
        return Finding(gpu, False, f"it has no fp8 units, and precision is fp8 ({chosen}); {price}")
    fits = need(plan, card, how).resident_bytes <= memory
    hold = "hold" if fits else "do not hold"
    return Finding(gpu, fits, f"{memory / 1e9:.0f} GB {hold} {plan.preset} in {how}; {price}")


def _account() -> list[Finding]:
    modal.Client.from_env().hello()
    return [Finding("account", True, "Modal answers, and knows the token")]


def _secrets(deployment: Deployment) -> Iterator[Finding]:
    wanted = {deployment.token_secret: "ENTER_TOKEN", deployment.hub_secret: "HF_TOKEN"}
    if deployment.database_secret:
        wanted[deployment.database_secret] = "LTX2_DB"
    for name, key in wanted.items():
        try:
            modal.Secret.from_name(name, required_keys=[key]).hydrate()
            yield Finding(f"secret {name}", True, f"has {key}")
        except modal.exception.Error as error:
            yield Finding(f"secret {name}", False, f"{str(error).strip()}: modal secret create {name} {key}=…")


def _weights(deployment: Deployment) -> list[Finding]:
    findings: list[Finding] = []
    # Not made by looking for it.
    volume = modal.Volume.from_name(f"{deployment.app}-weights")
    for entry in weights.parts(deployment):
        held = _names(volume, entry)
        there = weights.PIN in held
        commits = ", ".join(sorted(held - {weights.PIN}))
        text = f"there, at {commits}" if there else f"not there: {weights.DOWNLOAD}"
        if there and entry.name == deployment.model and deployment.revision and deployment.revision not in held:
            there, text = False, f"there is {commits}, the settings pin {deployment.revision}: {weights.DOWNLOAD}"
        findings.append(Finding(f"weights {entry.name}", there, text))
    return findings or [Finding("weights", True, "the embedded model needs none")]


def _names(volume: modal.Volume, entry: Published) -> set[str]:
    try:
        listed: list[Any] = volume.listdir(f"/{entry.name.replace('/', '--')}")
    except (modal.exception.NotFoundError, FileNotFoundError):
        return set()
    return {Path(item.path).name for item in listed}


def _service(deployment: Deployment) -> list[Finding]:
    """What is deployed by this name; nothing yet is nothing wrong."""
    try:
        web: Any = modal.Function
        url = web.from_name(deployment.app, "web").get_web_url()
    except modal.exception.NotFoundError:
        return [Finding("service", True, "not deployed yet: modal deploy ltx2_video.py", note=True)]
    return [Finding("service", True, f"deployed at {url}: ltx2 modal smoke {url}")]


def missing(deployment: Deployment) -> list[Finding]:
    """What of the weights is not on the volume, as `modal run` asks before it starts a GPU."""
    return [finding for finding in _weights(deployment) if not finding.ok] if weights.parts(deployment) else []


def _hub(deployment: Deployment) -> Iterator[Finding]:
    """Whether the model can be fetched with the token of this machine; the secret's own cannot be read."""
    for entry in weights.parts(deployment):
        try:
            from ltx2.models import hub

            found = hub.listing(entry.hub, deployment.revision if entry.name == deployment.model else None)
            yield Finding(f"hub {entry.name}", True, f"{entry.hub} is at {found.revision}")
        except ModuleNotFoundError:
            yield Finding(f"hub {entry.name}", True, "not looked at: huggingface_hub is not installed here", note=True)
        except Ltx2Error as error:
            yield Finding(f"hub {entry.name}", False, str(error))
