"""A job as clients see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ltx2.doors.http import links
from ltx2.doors.http.estimates import Estimates, share_done
from ltx2.doors.http.schemas import Failure, Usage, Video
from ltx2.doors.http.service import Service
from ltx2.jobs.job import Job, State
from ltx2.jobs.line import Place
from ltx2.spec.card import Card
from ltx2.spec.plan import Plan

Status = Literal["queued", "in_progress", "completed", "failed"]
STATUS: dict[State, Status] = {
    "queued": "queued",
    "running": "in_progress",
    "done": "completed",
    "failed": "failed",
    "cancelled": "failed",
    "expired": "failed",
}
# The API's own names of two endings; the queue's codes are the same words for all others.
SIGNED = ("video", "thumbnail")


@dataclass(frozen=True)
class View:
    """Where a job is looked at from: the service, what it has learned, and the address that the client used."""

    service: Service
    estimates: Estimates
    base: str

    def served(self, job: Job) -> tuple[str, Card | None]:
        """The name under which a job's model is served, and its card; a model of former days has only its name."""
        model = str(job.plan["model"])
        asked = str(job.request.get("model", model))
        if asked in self.service.models:
            return asked, self.service.models[asked]
        for name, card in self.service.models.items():
            if card.name == model:
                return name, card
        return model, None

    def video(self, job: Job, place: Place | None = None) -> Video:
        """The whole object. `place`: where a queued one stands in line, where that was counted."""
        plan = Plan.from_dict(job.plan)
        name, card = self.served(job)
        if card is not None:
            self.estimates.learn(job, card)
        done, running = job.state == "done", job.state == "running"
        share = share_done(plan, job.progress) if running else float(done)
        progress = job.progress if running and job.progress is not None else {}
        asked, urls = job.request.get("seconds", job.request.get("duration")), self._urls(job)
        return Video(
            id=job.id,
            created_at=int(job.created),
            completed_at=None if job.finished is None or not done else int(job.finished),
            expires_at=int(job.expires) if done and job.expires is not None else None,
            status=STATUS[job.state],
            progress=100 if done else min(99, int(100 * share)),
            model=name,
            prompt=job.request.get("prompt", plan.prompt),
            seconds=f"{plan.seconds if asked is None else asked:.6g}",
            size=f"{plan.width}x{plan.height}",
            remixed_from_video_id=job.request.get("remixed_from"),
            error=None if job.error is None else Failure(**job.error),
            state=job.state,
            stage=progress.get("phase"),
            step=progress.get("step"),
            steps=progress.get("steps"),
            eta_seconds=self._eta(job, plan, card, share, place),
            queue_position=None if place is None or job.state != "queued" else place.ahead,
            attempt=job.attempt,
            seed=plan.seed,
            width=plan.width,
            height=plan.height,
            frames=plan.frames,
            fps=float(plan.fps),
            duration=plan.seconds,
            warnings=[*job.request.get("warnings", ()), *(job.result or {}).get("warnings", ())],
            usage=self._usage(job, plan),
            polling_url=f"{self.base}/v1/videos/{job.id}",
            unsigned_urls=[urls["content"]] if "content" in urls else [],
            urls=urls,
        )

    def _eta(self, job: Job, plan: Plan, card: Card | None, share: float, place: Place | None) -> float | None:
        if not job.open or card is None:
            return None
        seconds = self.estimates.seconds(plan, card)
        if seconds is None:
            return None
        if job.state == "running":
            return round(seconds * (1 - share), 1)
        return None if place is None else round(seconds * (place.wait(self.estimates.workers()) + 1), 1)

    def _usage(self, job: Job, plan: Plan) -> Usage | None:
        if job.result is None:
            return None
        seconds = float(job.result["seconds"])
        return Usage(
            gpu_seconds=round(seconds, 3),
            megapixel_frames=plan.megapixel_frames,
            peak_memory_mb=round(job.result["peak_bytes"] / 2**20, 1),
            skipped_steps=int(job.result.get("skipped", 0)),
            # A worker that knows its price has counted it.
            cost=round(float(job.result.get("cost", seconds / 3600 * self.service.settings.price_per_hour)), 6),
        )

    def _urls(self, job: Job) -> dict[str, str]:
        own = f"/v1/videos/{job.id}"
        urls = {"self": own, "events": f"{own}/events", "cancel": f"{own}/cancel"}
        if job.published is not None:
            urls["content"] = f"{own}/content"
            for variant in SIGNED:
                link = links.sign(self.service.secret, f"{own}/content", job.token, {"variant": variant})
                urls[f"signed_{variant}"] = link
        return {name: self.base + path for name, path in urls.items()}
