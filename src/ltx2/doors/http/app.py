"""The application: the routers of a service behind the gate, and what they share."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib import import_module
from typing import cast

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

from ltx2 import __version__
from ltx2.doors.http import docs, errors, parts, videos
from ltx2.doors.http.frame import Frame
from ltx2.doors.http.guard import Guard
from ltx2.doors.http.journal import Journal
from ltx2.doors.http.limits import Buckets, Disk
from ltx2.doors.http.metrics import Metrics
from ltx2.doors.http.service import Queue, Service
from ltx2.doors.http.tally import Tally

ROUTERS = ("ops", "videos", "content", "events", "facts", "classic")
EXPOSED = [
    "X-Request-Id",
    "Retry-After",
    "X-Seed",
    "X-Job-Id",
    "X-Model",
    "X-Warning",
    "Location",
    "ETag",
    "Content-Range",
]


def routers(service: Service) -> Sequence[APIRouter]:
    """The routers of the whole surface, as the settings have it."""
    names = [*ROUTERS, *(["adapter"] if service.settings.adapter else [])]
    return [import_module(f"ltx2.doors.http.{name}").router for name in names]


def create_app(service: Service, *given: APIRouter) -> FastAPI:
    """The ASGI application of a service; with all routers, or with those given."""
    app = FastAPI(
        title="ltx2",
        version=__version__,
        # Their pages load scripts from elsewhere; the document itself is at /openapi.json.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_name,
        lifespan=_lifespan,
    )
    app.state.buckets = Buckets()
    app.state.disk = Disk(service.folder)
    app.state.metrics = Metrics()
    ended = getattr(service.queue, "ended", None)
    app.state.tally = Tally(app.state.metrics.registry, ended, service.settings.price_per_hour)
    app.state.service = replace(service, queue=cast("Queue", Journal(service.queue, app.state.tally)))
    app.state.draining = service.duty.stopping
    included = given or routers(service)
    for router in included:
        app.include_router(router)
    if videos.router in included:
        docs.add_schemas(app)
    errors.install(app)
    # The last one added is the outermost.
    app.add_middleware(Guard, service=service, buckets=app.state.buckets)
    if service.settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.settings.origins),
            allow_methods=["GET", "HEAD", "POST", "PUT", "DELETE"],
            allow_headers=[
                "Authorization",
                "X-Api-Key",
                "Content-Type",
                "Idempotency-Key",
                "Prefer",
                "Last-Event-ID",
                "Range",
            ],
            expose_headers=EXPOSED,
            max_age=3600,
        )
    app.add_middleware(Frame, metrics=app.state.metrics)
    return app


def _name(route: APIRoute) -> str:
    return route.name


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    yield
    await parts.close(app)
