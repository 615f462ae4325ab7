"""The store: how large it is, copies of it while it is in use, unused space given back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import StreamingResponse

from controlplane.api.body import JsonRoute
from controlplane.api.views import Services, View
from controlplane.services import upkeep

router = APIRouter(tags=["store"], route_class=JsonRoute)
SQLITE = "application/vnd.sqlite3"
PIECE = 1 << 20


class Retention(View):
    """How long the installation keeps what has ended."""

    delete_after_days: float = Field(
        description="Days after which a run that has ended is deleted; 0: never.", examples=[90.0]
    )
    purge_after_days: float = Field(description="Days after which a deleted run is purged; 0: never.", examples=[30.0])
    due_for_deletion: list[str] = Field(
        description="Runs that are deleted at the next turn, an hour apart at most.",
        examples=[["run_01JH5Z0V8W8Y7Q3N2M1K0J9H8G"]],
    )
    due_for_purge: list[str] = Field(
        description="Deleted runs that are purged then.", examples=[["run_01JH5Z0V8W8Y7Q3N2M1K0J9H8G"]]
    )


class Store(View):
    """The store."""

    database: str = Field(description="sqlite or postgres.", examples=["sqlite"])
    revision: str = Field(description="Its schema's revision.", examples=["0005"])
    bytes: int = Field(description="Its size.", examples=[4 << 20])
    reclaimable_bytes: int = Field(description="What of that a vacuum would give back.", examples=[1 << 20])
    runs: int = Field(description="Runs in it.", examples=[120])
    retention: Retention = Field(description="How long it keeps what has ended, and what is due to go.")


class Vacuumed(View):
    """What a vacuum has done."""

    bytes_before: int = Field(description="Size before.", examples=[4 << 20])
    bytes_after: int = Field(description="Size after.", examples=[3 << 20])


@router.get("/store", summary="Show the store")
def show(context: Services) -> Store:
    """What the store is, how large, and how much of it is unused."""
    return Store.model_validate(upkeep.state(context))


@router.get(
    "/store/backup",
    summary="Copy the store",
    response_class=StreamingResponse,
    responses={200: {"content": {SQLITE: {"schema": {"type": "string", "format": "binary"}}}}},
)
def backup(context: Services) -> StreamingResponse:
    """The whole SQLite database as it is at one moment, while it is in use; `teragpt restore` takes it."""
    copy = upkeep.backup(context)
    headers = {"content-length": str(os.fstat(copy.fileno()).st_size)}
    return StreamingResponse(_pieces(copy), media_type=SQLITE, headers=headers)


@router.post("/store/vacuum", summary="Give unused space back")
def vacuum(context: Services) -> Vacuumed:
    """Write the database anew without its unused pages. Requests that write wait meanwhile."""
    before, after = upkeep.vacuum(context)
    return Vacuumed(bytes_before=before, bytes_after=after)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(PIECE):
            yield piece
