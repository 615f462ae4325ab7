"""The app: routes under /v1 and without it, behind the access rules, measured and named from outside in.

It is made of what it is given and reads no setting of its own; starting and stopping are the server's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute

from controlplane.api import (
    attempts,
    changes,
    checkpoints,
    clusters,
    deleted,
    docs,
    events,
    explanations,
    health,
    lists,
    logs,
    metrics,
    notifications,
    plans,
    preparations,
    problems,
    queues,
    runs,
    sizes,
    stacks,
    store,
    sweeps,
    tasks,
    usage,
)
from controlplane.api.access import Access
from controlplane.api.addresses import Addresses
from controlplane.api.heads import Heads
from controlplane.api.reports import Reports
from controlplane.api.streams import Hub
from controlplane.api.submissions import Submissions
from controlplane.api.telemetry import Measurements, Telemetry
from controlplane.services import state, users
from controlplane.services.context import Context
from controlplane.settings import Settings, hosts

RUNS = (
    runs,
    lists,
    changes,
    tasks,
    preparations,
    attempts,
    checkpoints,
    explanations,
    stacks,
    events,
    logs,
    metrics,
    deleted,
    usage,
)
NOUNS = (*RUNS, sweeps, queues, sizes, plans, clusters, notifications, store, health)
REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": problems.Problem, "description": "The request was refused."},
    "5XX": {"model": problems.Problem, "description": "The control plane could not answer."},
}


def create_app(context: Context, settings: Settings, *, token: str | None = None) -> FastAPI:
    """The API over the services of `context`. `token`: what every caller must show, if anything."""
    hub = Hub(settings.streams)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        hub.close()

    app = FastAPI(
        title="TeraGPT",
        version=product_version(),
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.context, app.state.settings, app.state.hub = context, settings, hub
    app.state.measurements = Measurements(
        phases=lambda: state.runs_by_phase(context),
        outbox=lambda: state.outbox_length(context),
        outbox_age=lambda: state.outbox_age(context),
        notifications=lambda: state.notifications_by_state(context),
        watch_restarts=state.watch_restarts,
        streams=lambda: hub.open,
        scheduling=state.SCHEDULING,
    )
    problems.install(app)
    app.router.routes += routes(whole=settings.database.role != "reconciler")
    everywhere = settings.listen.host in {"0.0.0.0", "::"}
    known = users.users_of(context, settings.authentication)
    for short in (Submissions, Reports) if settings.database.role != "reconciler" else ():
        app.add_middleware(short, context=context, max_body_bytes=settings.max_body_bytes)
    app.add_middleware(Addresses)
    app.add_middleware(Access, hosts=hosts(settings), any_address=everywhere, token=token, users=known)
    app.add_middleware(Heads)
    app.add_middleware(Telemetry, measurements=app.state.measurements)
    return app


@cache
def routes(*, whole: bool) -> list[BaseRoute]:
    """Every address, or only those of health; what FastAPI reads of each is read once a process, not once an app."""
    everything = APIRouter()
    routers = [*(noun.router for noun in NOUNS), tasks.files] if whole else [health.router]
    for router in routers:  # each by itself: FastAPI counts a nested router's routes anew at every request
        everything.include_router(router, prefix="/v1", responses=REFUSALS)
    for router in routers:
        everything.include_router(router, include_in_schema=False)
    for prefix in ("", "/v1"):
        everything.include_router(docs.router, prefix=prefix)
    return everything.routes


def product_version() -> str:
    """The version of the installed distribution; `0+source` in a checkout that was not installed."""
    try:
        return version("teragpt")
    except PackageNotFoundError:
        return "0+source"
