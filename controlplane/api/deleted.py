"""Deleted runs: hidden from everywhere else, shown here, and here alone restored or purged for good."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import Field

from controlplane.api.body import JsonRoute
from controlplane.api.lists import Cursor, Limit, RunPage, Words, show_page
from controlplane.api.runs import TAGGED, Run, tagged
from controlplane.api.views import RUN_ID, Services, User, View
from controlplane.services import changes, lists, purges

router = APIRouter(tags=["deleted runs"], route_class=JsonRoute)
DeletedRun = Annotated[
    str, Path(alias="run", description="A deleted run's id.", examples=[RUN_ID], min_length=1, max_length=128)
]


class Remains(View):
    """What a run has left, and what goes with a purge."""

    id: str = Field(description="The run's id.", examples=[RUN_ID])
    name: str = Field(description="Its name.", examples=["first-try"])
    tasks: list[str] = Field(description="Samples, exports and copies of it, which go with it.", examples=[[]])
    attempts: int = Field(description="Attempts, each with its logs; their hours leave the usage.", examples=[2])
    events: int = Field(description="Events.", examples=[14])
    points: int = Field(description="Points of its curves.", examples=[200])
    folder: str = Field(description="The run folder.", examples=[f"/data/runs/{RUN_ID}"])
    folder_removed: bool = Field(
        description="Whether the folder goes too. It stays where its user named it, where another run has it, and "
        "where only pods can see it.",
        examples=[True],
    )
    size: int = Field(description="Bytes of the folder, where it goes.", examples=[129_600_000])


@router.get("/deleted", summary="List deleted runs")
def list_deleted(context: Services, q: Words = None, limit: Limit = 50, cursor: Cursor = None) -> RunPage:
    """Runs that were deleted and not purged, newest first."""
    return show_page(lists.list_runs(context, lists.Filter(query=q, deleted=True), cursor=cursor, limit=limit))


@router.get("/deleted/{run}", summary="Show what a purge would remove")
def remains(run: DeletedRun, context: Services) -> Remains:
    """What a deleted run has left. Nothing is removed."""
    return Remains.model_validate(purges.remains(context, run))


@router.post("/deleted/{run}/restore", summary="Restore a deleted run", responses=TAGGED)
def restore(run: DeletedRun, response: Response, context: Services, user: User) -> Run:
    """Show a deleted run again, as it was."""
    return tagged(changes.restore_run(context, run, actor=user), response)


@router.delete("/deleted/{run}", summary="Purge a deleted run")
def purge(run: DeletedRun, context: Services, user: User) -> Remains:
    """Remove a deleted run for good, with all that `GET` shows; what went."""
    return Remains.model_validate(purges.purge(context, run, actor=user))
