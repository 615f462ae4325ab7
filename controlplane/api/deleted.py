"""Deleted runs: hidden from everywhere else, shown here, and here alone restored or purged for good."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
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


KeepFolder = Annotated[bool, Query(description="Leave the run folder where it is.", examples=[False])]


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
        description="Whether the folder goes too. It stays where its user named it and where another run has it.",
        examples=[True],
    )
    size: int = Field(
        description="Bytes of the folder, where it goes; 0 where only pods see it.", examples=[129_600_000]
    )
    removal: str | None = Field(
        description="The run whose pod removes the folder, while it does: nothing else goes before that.",
        examples=[None],
    )


UNDER_WAY: dict[int | str, dict[str, Any]] = {
    202: {"model": Remains, "description": "A pod removes the folder; ask again once that run has ended."}
}


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


@router.delete("/deleted/{run}", summary="Purge a deleted run", responses=UNDER_WAY)
def purge(
    run: DeletedRun,
    response: Response,
    context: Services,
    user: User,
    keep_folder: KeepFolder = False,  # noqa: FBT002 - a query's
) -> Remains:
    """Remove a deleted run for good, with all that `GET` shows; what went. 202 while a pod removes the folder."""
    left = purges.purge(context, run, keep_folder=keep_folder, actor=user)
    response.status_code = 202 if left.removal else 200
    return Remains.model_validate(left)
