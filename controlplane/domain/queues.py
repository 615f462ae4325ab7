"""Queues, as far as they are ours to open and close: who may be begun. Their order and quotas are the cluster's."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from pydantic import Field

from controlplane.domain.fields import Section
from controlplane.domain.spec import Notes

DEFAULT_QUEUE = "default"  # that of runs which name none


class QueueState(StrEnum):
    """`paused` begins no attempt; `draining` begins no run, but lets those that have begun go on, restarts included."""

    OPEN = "open"
    PAUSED = "paused"
    DRAINING = "draining"


REASONS = {QueueState.PAUSED: "QueuePaused", QueueState.DRAINING: "QueueDraining"}


class QueueChange(Section):
    """Why a queue is closed, for those who wait."""

    note: Notes | None = Field(
        default=None, description="What those who wait are told.", examples=["new disks, until 18:00"]
    )


class Closed(NamedTuple):
    """Why a run's queue begins it not: the `reason`, and its `words`."""

    reason: str
    words: str


def closed(name: str, state: str, note: str | None) -> Closed:
    """What a run is told whose queue, which is paused or drains, lets it wait."""
    told = f"queue {name!r} is {state}"
    return Closed(REASONS[QueueState(state)], f"{told}: {note}" if note else told)
