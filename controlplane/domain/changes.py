"""What may be changed of a run that is there, and how one JSON document is patched with another.

The form is the spec's own, so that what was read can be sent back: what is left out stays, null takes a value away.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from controlplane.domain.fields import LabelValue, OwnLabel, Section, Subdomain
from controlplane.domain.spec import YEAR, Notes

MOST_LABELS = 64


class ChangedLimits(Section):
    """Limits that hold from the next look on."""

    max_restarts: int | None = Field(
        default=None, ge=0, le=10_000, description="Restarts after failures; null: the default, 3.", examples=[10]
    )
    max_runtime_s: int | None = Field(
        default=None, ge=1, le=YEAR, description="Seconds from its first start; null: no deadline.", examples=[7200]
    )
    max_silence_s: int | None = Field(
        default=None, ge=10, le=YEAR, description="Seconds of silence; null: as the plan tells.", examples=[1800]
    )
    max_pending_s: int | None = Field(
        default=None, ge=1, le=YEAR, description="Seconds an attempt may wait; null: no limit.", examples=[None]
    )


class ChangedScheduling(Section):
    """Who goes first, from the next object on."""

    priority: Subdomain | None = Field(
        description="As in a spec; null: the installation's. The object that is there keeps its own.", examples=["high"]
    )


class RunChanges(Section):
    """What to change of a run. What is left out stays; null takes a value away."""

    labels: Annotated[dict[OwnLabel, LabelValue | None], Field(max_length=2 * MOST_LABELS)] | None = Field(
        default_factory=dict,
        description="Labels to set, and with null to take away; null: none. Pods keep those that they began with.",
        examples=[{"team": "lm", "draft": None}],
    )
    notes: Notes | None = Field(default=None, description="Its notes; null: none.", examples=["diverged at 2e-3"])
    pinned: bool | None = Field(default=False, description="Whether it is pinned; null: not.", examples=[True])
    limits: ChangedLimits | None = Field(
        default_factory=ChangedLimits,
        description="Limits of a run that lives; null: all as where a spec says nothing.",
        examples=[{"max_restarts": 10}],
    )
    scheduling: ChangedScheduling | None = Field(
        default=None,
        description="Priority of a run that lives; null: the installation's.",
        examples=[{"priority": "high"}],
    )


def merged(document: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """A document with a JSON merge patch (RFC 7396): objects merge, null removes, anything else replaces."""
    result = dict(document)
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict):
            below = result.get(name)
            result[name] = merged(below if isinstance(below, dict) else {}, value)
        else:
            result[name] = value
    return result
