"""Changes of a run that is there: labels, notes, limits, priority; and hiding one that has ended."""

from __future__ import annotations

from fastapi import APIRouter, Response

from controlplane.api.body import JsonRoute
from controlplane.api.runs import TAGGED, Run, tagged
from controlplane.api.views import IfMatch, RunRef, Services, User, revisions
from controlplane.domain.changes import RunChanges
from controlplane.services import changes

router = APIRouter(tags=["runs"], route_class=JsonRoute)


@router.patch("/runs/{run}", summary="Change a run", responses=TAGGED)
def change(
    run: RunRef, body: RunChanges, response: Response, context: Services, user: User, if_match: IfMatch = None
) -> Run:
    """Labels, notes and whether it is pinned at any time; limits and priority while it lives. The rest stays."""
    return tagged(changes.change_run(context, run, body, revisions=revisions(if_match), actor=user), response)


@router.delete("/runs/{run}", status_code=204, summary="Delete a run")
def delete(run: RunRef, context: Services, user: User, if_match: IfMatch = None) -> None:
    """Hide a run that has ended. Nothing of it goes: `/deleted` lists it, restores it, and purges it for good."""
    changes.delete_run(context, run, revisions=revisions(if_match), actor=user)
