"""The phases of a run and the moves between them, as data: the table of docs/lifecycle.md, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """What was last observed of a run. Written by the reconciler alone."""

    QUEUED = "queued"
    SUBMITTING = "submitting"
    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"
    CANCELLING = "cancelling"
    SUSPENDING = "suspending"
    SUSPENDED = "suspended"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether it is the last: written once, never left."""
        return self in TERMINAL


class Desired(StrEnum):
    """What a run's user wants of it. Written by the services alone."""

    RUNNING = "running"
    SUSPENDED = "suspended"
    CANCELLED = "cancelled"


TERMINAL = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED})
LIVE = frozenset(Phase) - TERMINAL
ON_CLUSTER = frozenset({Phase.PENDING, Phase.STARTING, Phase.RUNNING})  # an object exists, and nobody wants its end


@dataclass(frozen=True)
class Transition:
    """A numbered row of the table: the phases it may leave, the one it enters, what must be desired, and its cause."""

    number: int
    sources: frozenset[Phase]
    target: Phase
    desired: frozenset[Desired]
    trigger: str


def _row(
    number: int, sources: set[Phase] | frozenset[Phase], target: Phase, trigger: str, *desired: Desired
) -> Transition:
    return Transition(number, frozenset(sources), target, frozenset(desired or {Desired.RUNNING}), trigger)


CREATED = _row(0, set(), Phase.QUEUED, "a run was asked for")
SUBMIT = _row(1, {Phase.QUEUED, Phase.RESTARTING, Phase.SUBMITTING}, Phase.SUBMITTING, "its object is due")
UNREACHABLE = _row(2, {Phase.SUBMITTING}, Phase.SUBMITTING, "the cluster does not answer", *Desired)
SUBMITTED = _row(3, {Phase.SUBMITTING}, Phase.PENDING, "its object exists", *Desired)
REFUSED = _row(4, {Phase.SUBMITTING}, Phase.FAILED, "the cluster refuses its object for good")
PLACED = _row(5, {Phase.PENDING}, Phase.STARTING, "every pod has its place")
RUNS = _row(6, {Phase.PENDING, Phase.STARTING}, Phase.RUNNING, "every pod runs")
SUCCESS = _row(
    7, ON_CLUSTER | {Phase.SUSPENDING}, Phase.SUCCEEDED, "every pod ended with 0", Desired.RUNNING, Desired.SUSPENDED
)
RESTART = _row(8, ON_CLUSTER, Phase.RESTARTING, "the attempt failed and may be tried again")
WAITING = _row(9, {Phase.PENDING, Phase.STARTING}, Phase.PENDING, "the reason for waiting changed")
FAILURE = _row(10, ON_CLUSTER | {Phase.RESTARTING}, Phase.FAILED, "the attempt failed for good")
CANCELLING = _row(
    11, ON_CLUSTER | {Phase.SUBMITTING, Phase.SUSPENDING}, Phase.CANCELLING, "a cancel was asked for", Desired.CANCELLED
)
CANCELLED_EARLY = _row(
    12,
    {Phase.QUEUED, Phase.RESTARTING, Phase.SUSPENDED},
    Phase.CANCELLED,
    "a cancel found no object",
    Desired.CANCELLED,
)
CANCELLED = _row(13, {Phase.CANCELLING}, Phase.CANCELLED, "the cancelled pods are quiet", Desired.CANCELLED)
SUSPENDING = _row(14, ON_CLUSTER | {Phase.SUBMITTING}, Phase.SUSPENDING, "a suspend was asked for", Desired.SUSPENDED)
SUSPENDED_EARLY = _row(
    15, {Phase.QUEUED, Phase.RESTARTING}, Phase.SUSPENDED, "a suspend found no object", Desired.SUSPENDED
)
SUSPENDED = _row(
    16, {Phase.SUSPENDING}, Phase.SUSPENDED, "the suspended pods are quiet", Desired.SUSPENDED, Desired.RUNNING
)
TURN = _row(18, {Phase.QUEUED}, Phase.QUEUED, "another run's pods are still to find their places")
RESUMED = _row(17, {Phase.SUSPENDED}, Phase.QUEUED, "a resume was asked for")
UPSTREAM_ENDED = _row(19, {Phase.QUEUED}, Phase.FAILED, "the run that it waits for did not succeed")
HELD = _row(20, {Phase.RESTARTING}, Phase.RESTARTING, "its queue is paused")
TAKEN_BACK = _row(21, ON_CLUSTER, Phase.QUEUED, "its queue was closed before its pods had their places")

TRANSITIONS = (
    CREATED,
    SUBMIT,
    UNREACHABLE,
    SUBMITTED,
    REFUSED,
    PLACED,
    RUNS,
    SUCCESS,
    RESTART,
    WAITING,
    FAILURE,
    CANCELLING,
    CANCELLED_EARLY,
    CANCELLED,
    SUSPENDING,
    SUSPENDED_EARLY,
    SUSPENDED,
    RESUMED,
    TURN,
    UPSTREAM_ENDED,
    HELD,
    TAKEN_BACK,
)
