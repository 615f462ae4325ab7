"""Preparations: datasets that are made of text where that lies."""

from __future__ import annotations

from fastapi import APIRouter, Response

from controlplane.api.body import JsonRoute
from controlplane.api.runs import MADE, Run, made
from controlplane.api.views import IdempotencyKey, Services, User
from controlplane.domain.preparations import PreparationSpec
from controlplane.services import preparations

router = APIRouter(tags=["tasks"], route_class=JsonRoute)


@router.post("/preparations", status_code=201, summary="Prepare a dataset", responses=MADE)
def create(
    spec: PreparationSpec, response: Response, context: Services, user: User, idempotency_key: IdempotencyKey = None
) -> Run:
    """A new run (`task: prepare`) that makes a dataset of text; its log tells how far it is, and what it has made."""
    run, replayed = preparations.create_preparation(context, spec, idempotency_key=idempotency_key, principal=user)
    return made(run, response, replayed=replayed)
