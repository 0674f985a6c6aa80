"""The web function: the server's own application on the deployment's queue, in a CPU container without torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.responses import JSONResponse

from ltx2.doors.http import logs
from ltx2.doors.http.app import create_app, routers
from ltx2.doors.http.keys import Keyring
from ltx2.doors.http.service import Duty, Queue, Service
from ltx2.doors.modal import weights
from ltx2.doors.modal.board import Board
from ltx2.doors.modal.boot import BOOT
from ltx2.doors.modal.calls import Calls
from ltx2.doors.modal.carried import settings_from
from ltx2.doors.modal.house import House
from ltx2.doors.modal.ledger import Ledger
from ltx2.doors.modal.outputs import Copies, Outputs, Volume
from ltx2.doors.modal.queue import DictQueue
from ltx2.jobs.job import Ask, Rules
from ltx2.jobs.tokens import Token
from ltx2.spec.card import Card
from ltx2.spec.cost import need
from ltx2.spec.deployment import GPUS, Deployment
from ltx2.spec.errors import DoesNotFit
from ltx2.spec.plan import Plan
from ltx2.spec.service import ServiceSettings

DAY = 86_400.0
CARRIED = "LTX2_SERVICE"


@dataclass(frozen=True)
class Shelves:
    """The Dicts and volumes of one deployment."""

    board: Board
    ledger: Any
    outputs: Volume
    weights: Volume


def settings_of(deployment: Deployment, carried: str) -> ServiceSettings:
    """The server's settings in the web function: those of the deploying machine, and what this place decides."""
    own = {"keep_files": deployment.keep_days, "price_per_hour": deployment.price * 3600}
    return settings_from(carried, own | {"host": "0.0.0.0", "min_free_gib": 0.2})


def link_secret(token: str) -> bytes:
    """What signs links: derived from the deployment's token, so that all web containers agree and a new token ends them."""
    return hashlib.sha256(b"ltx2 links " + token.encode()).digest()


def make_app(deployment: Deployment, shelves: Shelves, calls: Calls, scratch: Path) -> FastAPI:
    """The application. Raises KeyError without ENTER_TOKEN, which Modal does not deploy without."""
    logs.configure()
    token = os.environ["ENTER_TOKEN"]
    settings = settings_of(deployment, os.environ.get(CARRIED, ""))
    card = weights.card_of(deployment)
    duty = Duty(waiting=weights.trouble(deployment))
    ledger = Ledger(shelves.ledger, deployment.daily_cap)
    house = House(shelves.board, ledger, duty, lambda: weights.trouble(deployment), shelves.weights)
    rules = Rules(files=deployment.keep_days * DAY, rows=deployment.keep_days * DAY, depth=settings.depth)
    admit = pricing(deployment, card, ledger, house.check)
    queue, read = _queue(deployment, shelves, calls, rules, admit)
    outputs = Outputs(deployment.folder("outputs"), shelves.outputs)
    scratch.mkdir(parents=True, exist_ok=True)
    keys = Keyring(read, enter=token)
    keys.start()
    service = Service(
        queue=queue,
        files=Copies(outputs, scratch / "videos"),
        models={weights.served_name(deployment): card},
        settings=settings,
        folder=scratch,
        secret=link_secret(token),
        keys=keys,
        capacity=capacity_of(deployment, card),
        duty=duty,
    )
    app = create_app(service, readiness(duty, house, queue), *routers(service))
    house.start(app.state.metrics.registry)
    return app


def readiness(duty: Duty, house: House, queue: Queue) -> APIRouter:
    """/readyz of a deployment: also how long the last GPU container took to begin, by phase."""
    router = APIRouter(tags=["operations"])

    @router.get("/readyz", include_in_schema=False, name="ready")
    def readyz() -> JSONResponse:
        """Whether new jobs are taken and could begin; starts no GPU."""
        seen: dict[str, Any] = house.board.jobs.get(BOOT) or {}
        boot = {name: seen[name] for name in ("gpu", "phases", "seconds", "at") if name in seen}
        if duty.waiting:
            return JSONResponse({"status": "waiting", "reason": duty.waiting}, 503, headers={"Retry-After": "30"})
        return JSONResponse({"status": "ready", "last_start": boot or None, "jobs": queue.counts()})

    return router


def pricing(
    deployment: Deployment, card: Card, ledger: Ledger, check: Callable[[], None]
) -> Callable[[Ask, float], float]:
    """Whether a job may cost money now, by the spend cap and the state of the house."""

    def admit(ask: Ask, promised: float) -> float:
        check()
        dollars = need(ask.plan, card).seconds * deployment.price
        ledger.check(promised, dollars)
        return dollars

    return admit


def capacity_of(deployment: Deployment, card: Card) -> Callable[[Plan], None]:
    """Refuses Plans that the smallest GPU of the list cannot hold with one network at a time."""
    memory = min(GPUS[gpu].memory for gpu in deployment.gpus)

    def check(plan: Plan) -> None:
        wanted = need(plan, card, "bf16" if deployment.precision == "bf16" else "fp8").staged_bytes
        if wanted > memory:
            raise DoesNotFit(
                f"{plan.width}x{plan.height} with {plan.frames} frames needs {wanted / 1e9:.0f} GB,"
                f" the smallest GPU here has {memory / 1e9:.0f} GB",
                hint="ask for a smaller size or fewer frames",
            )

    return check


def _queue(
    deployment: Deployment, shelves: Shelves, calls: Calls, rules: Rules, admit: Callable[[Ask, float], float]
) -> tuple[Queue, Callable[[], Sequence[Token]]]:
    """The queue, and what reads the tokens that are kept with it."""
    url = os.environ.get("LTX2_DB")
    if not url:
        return DictQueue(shelves.board, calls, admit, rules), list
    from ltx2.doors.modal.database import open_queue

    return open_queue(url, rules, shelves.board, calls, admit)
