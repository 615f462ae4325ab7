"""Health: whether the process lives and can serve, and its measurements."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import Field

from controlplane.api.body import JsonRoute
from controlplane.api.telemetry import CONTENT_TYPE, Measurements
from controlplane.api.views import Services, View
from controlplane.services import state

router = APIRouter(tags=["health"], route_class=JsonRoute)


class Live(View):
    """The process answers."""

    live: bool = Field(description="Always true.", examples=[True])


class Component(View):
    """A part of the control plane."""

    ready: bool = Field(description="Whether it works.", examples=[True])
    detail: str = Field(description="How it is.", examples=["answers"])
    essential: bool = Field(description="Whether no request can be served without it.", examples=[True])


class Ready(View):
    """Whether requests can be served. An absent cluster does not stop them: runs wait for it."""

    ready: bool = Field(description="Whether every essential part works.", examples=[True])
    components: dict[str, Component] = Field(
        description="The parts by name.", examples=[{"store": {"ready": True, "detail": "answers", "essential": True}}]
    )


@router.get("/livez", summary="Does the process answer?")
async def live() -> Live:
    """Answers as long as the process does; asks nothing of its parts."""
    return Live(live=True)


@router.get(
    "/readyz", summary="Can it serve requests?", responses={503: {"model": Ready, "description": "A part is missing."}}
)
def ready(context: Services, response: Response) -> Ready:
    """Every part of the control plane. 503 where one is missing without which no request can be served."""
    parts = state.components(context)
    well = all(part.ready for part in parts.values() if part.essential)
    response.status_code = 200 if well else 503
    return Ready.model_validate({"ready": well, "components": parts})


@router.get(
    "/metrics",
    summary="Measurements for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"example": 'teragpt_runs{phase="running"} 1.0\n'}}}},
)
def measurements(request: Request) -> Response:
    """The process's measurements in Prometheus' text format."""
    found: Measurements = request.app.state.measurements
    return Response(found.page(), headers={"content-type": CONTENT_TYPE})
