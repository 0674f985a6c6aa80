"""What clips cost on Modal, by the formula of docs/06-modal.md: seconds of GPU, times its price."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from ltx2.doors.modal import weights
from ltx2.models.describe import Source, read_card
from ltx2.spec.card import Card
from ltx2.spec.cost import need
from ltx2.spec.deployment import FILE, Deployment, read_deployment
from ltx2.spec.plan import Plan, resolve
from ltx2.spec.request import request

# Seconds from nothing to a loaded model. Not measured here: what the service that this one succeeds reported (60 to
# 100 s); `/readyz` of a deployment tells its own.
COLD_SECONDS = 100.0
DAY = 86_400
CLIPS = (("classic", "10 steps, two passes"), ("dev", "40 steps, four passes"))
DISTILLED = (("distilled", "8 steps"), ("distilled-two-stage", "8 + 3 steps to 1536x1024"))


@dataclass(frozen=True)
class Profile:
    """A way to run the service. `about` says for whom."""

    name: str
    about: str
    scaledown_window: int
    min_containers: int


PROFILES = (
    Profile("cheap", "now and then a clip; the default", 60, 0),
    Profile("balanced", "clips in groups: the next one within five minutes finds a warm GPU", 300, 0),
    Profile("always warm", "nobody ever waits for a start", 300, 1),
)


@dataclass(frozen=True)
class Costs:
    """Dollars of one clip: `warm` on a GPU that is there, `alone` with its start and the idle time after it."""

    seconds: float
    warm: float
    alone: float


def costs(deployment: Deployment, card: Card, plan: Plan, cold: float = COLD_SECONDS) -> Costs:
    """One clip, by the first GPU of the list. The counted seconds are those of one H200 in bf16."""
    price = deployment.price_of(deployment.gpus[0])
    seconds = need(plan, card).seconds
    start = 0.0 if deployment.min_containers else cold + deployment.scaledown_window
    return Costs(seconds, seconds * price, (seconds + start) * price)


def profiled(deployment: Deployment, profile: Profile) -> Deployment:
    """The deployment under a profile."""
    return replace(deployment, scaledown_window=profile.scaledown_window, min_containers=profile.min_containers)


def table() -> str:
    """The table of docs/06-modal.md: three profiles, four clips, on an H200."""
    base = Deployment(gpus=("H200",))
    dev = read_card(Source("ltx-2", weights="random"))
    distilled = replace(dev, kind="distilled")
    rows = [*((dev, *clip) for clip in CLIPS), *((distilled, *clip) for clip in DISTILLED)]
    head = ["clip", "seconds", "warm", *(f"{profile.name}, alone" for profile in PROFILES)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for card, preset, about in rows:
        plan = resolve(request(prompt="x", preset=preset), card)
        each = [costs(profiled(base, profile), card, plan) for profile in PROFILES]
        cells = [f"`{preset}`: {about}", f"{each[0].seconds:.0f}", f"${each[0].warm:.3f}"]
        lines.append(f"| {' | '.join([*cells, *(f'${cost.alone:.3f}' for cost in each)])} |")
    return "\n".join(lines)


def standing(deployment: Deployment) -> float:
    """Dollars a day that are paid without a single clip."""
    return deployment.min_containers * DAY * deployment.price_of(deployment.gpus[0])


def show(as_json: bool) -> int:
    """Print what the preset of this deployment costs under each profile."""
    deployment = read_deployment(os.environ, Path(FILE))
    card = weights.card_of(deployment)
    plan = resolve(request(prompt="x"), card)
    found = {
        profile.name: costs(profiled(deployment, profile), card, plan).__dict__
        | {"standing_per_day": standing(profiled(deployment, profile))}
        for profile in PROFILES
    }
    if as_json:
        print(json.dumps({"gpu": deployment.gpus[0], "preset": plan.preset, "profiles": found}))
        return 0
    print(f"{plan.preset}, {plan.width}x{plan.height}, {plan.frames} frames on {deployment.gpus[0]}, in dollars:")
    for profile in PROFILES:
        row = found[profile.name]
        print(
            f"{profile.name:<12} warm {row['warm']:.3f}  alone {row['alone']:.3f}  a day without clips"
            f" {row['standing_per_day']:.2f}  ({profile.about})"
        )
    return 0
