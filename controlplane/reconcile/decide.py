"""What a look at one live run leads to: at most one decision. Pure: stored rows and an observation in, a decision out.

Whoever applies it writes it in one transaction, guarded; what was stored meanwhile makes it void.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from controlplane.clusters.base import ObservedJob, ObservedPod
from controlplane.clusters.pods import not_running
from controlplane.domain.chains import BROKEN, broken_words
from controlplane.domain.diagnoses import HELD_BACK, HUNG
from controlplane.domain.phases import (
    CANCELLED,
    CANCELLED_EARLY,
    CANCELLING,
    FAILURE,
    ON_CLUSTER,
    PLACED,
    RESUMED,
    RUNS,
    SUCCESS,
    SUSPENDED,
    SUSPENDED_EARLY,
    SUSPENDING,
    UPSTREAM_ENDED,
    WAITING,
    Desired,
    Phase,
    Transition,
)
from controlplane.domain.preparations import PREPARE
from controlplane.domain.queues import Closed
from controlplane.reconcile.verdicts import REQUEUED, Handling, Verdict, object_lost, quiet, succeeded, verdict_of
from controlplane.store.tables import Attempt, Run

PLACED_REASONS = frozenset(  # these pods have their node
    {"ContainerCreating", "PodInitializing", "InitWaitingForMaster", "ImagePulling", "Starting"}
)

SILENCE_S, SILENT_STEPS = 600.0, 100
PREPARATION_SILENCE_S = 3600.0


class Upstream(NamedTuple):
    """A run that another one comes after."""

    name: str
    run_id: str
    phase: str


@dataclass(frozen=True)
class Look:
    """What is known of one live run at one moment.

    `absent`: the object was missing in that many looks in a row. `patience_s`: how long its pods may take to find their
    places while others wait for that; None where nobody does. `heard_at`: when its first pod last wrote something, as
    far as that was looked at. `upstream`: the run that must succeed first, if there is one. `closed`: why its queue
    would not begin it now. `news`: the pods, by place, that are not as they are stored, where that is known though
    `attempt.pods` was not read; none was replaced.
    """

    run: Run
    attempt: Attempt
    job: ObservedJob | None
    absent: int
    now: float
    patience_s: float | None = None
    heard_at: float = 0.0
    upstream: Upstream | None = None
    closed: Closed | None = None
    news: Mapping[int, ObservedPod] | None = None

    @property
    def silent_s(self) -> float:
        """For how long the attempt has neither reported a step nor written a line; 0 for one that never reported.

        A preparation reports no steps: its lines alone count, the first of which is its process's first act. One that
        was never heard at all is not late, since then nothing tells it from one whose log cannot be read.
        """
        reported = (self.run.progress or {}).get("time") or 0.0
        began = self.attempt.started_at
        if self.run.phase != Phase.RUNNING or began is None:
            return 0.0
        if self.run.task == PREPARE:
            return self.now - max(began, self.heard_at)
        if reported <= began:
            return 0.0
        return self.now - max(reported, self.heard_at)

    @property
    def longest_silence_s(self) -> float:
        """How long it may be silent: what its user gave, else what 100 of its steps take, 10 minutes at least.

        An hour for a preparation, which tells every ten seconds how far it is, but for a file that comes slowly.
        """
        if self.run.max_silence_s is not None:
            return float(self.run.max_silence_s)
        if self.run.task == PREPARE:
            return PREPARATION_SILENCE_S
        known = self.run.progress or {}
        left = (known.get("steps") or 0) - (known.get("step") or 0)
        each = (known.get("eta_s") or 0.0) / left if left > 0 else 0.0
        return max(SILENCE_S, SILENT_STEPS * each)

    @property
    def gone(self) -> bool:
        """Whether the object is certainly not there: one look could be a slow list, two are not."""
        return self.job is None and self.absent >= 2

    @property
    def goes_on(self) -> bool:
        """Whether nothing is meant for the run but that it goes on as its pods do."""
        meant = self.run.phase in ON_CLUSTER and self.run.desired == Desired.RUNNING
        return meant and self.attempt.reason is None and self.job is not None

    @property
    def quiet(self) -> bool:
        """Whether no pod of the attempt works any more."""
        return quiet(self.job) if self.job is not None else self.gone


@dataclass(frozen=True)
class Decision:
    """What to store: a `transition` with its reason, a new `verdict`, the attempt's end, its object's deletion.

    `ends`: the attempt is over, and what follows from its verdict (restart or failure) is to be worked out, unless a
    transition says it. `resumes`: the run goes on with its next attempt. `pods`: all, or of a look with `news` those.
    """

    transition: Transition | None = None
    reason: str | None = None
    message: str | None = None
    verdict: Verdict | None = None
    ends: bool = False
    resumes: bool = False
    deletes: bool = False
    pods: list[dict[str, Any]] | None = None

    @property
    def simple(self) -> bool:
        """Whether it says no more than how the pods are, and which phase that is: the run goes on as it did."""
        plain = self.transition is None or self.transition in (WAITING, PLACED, RUNS)
        return plain and not (self.verdict or self.ends or self.resumes or self.deletes)


def decide(look: Look) -> Decision | None:
    """The next thing to store about this run; None where nothing has changed."""
    phase, desired = Phase(look.run.phase), look.run.desired
    if desired == Desired.CANCELLED:
        return _cancel(look, phase)
    if desired == Desired.SUSPENDED or phase in {Phase.SUSPENDING, Phase.SUSPENDED}:
        return _suspend(look, phase)
    if phase not in ON_CLUSTER:
        return _ahead(look, phase)
    if look.attempt.reason is not None:
        return _wind_down(look)
    return _follow(look, phase)


def _ahead(look: Look, phase: Phase) -> Decision | None:
    """What ends a run that has no object; all else is the outbox's to do."""
    if phase is Phase.RESTARTING and _overdue(look):
        return Decision(FAILURE, *_overdue_words(look), ends=True)
    if phase is Phase.QUEUED and look.upstream is not None and look.upstream.phase in BROKEN:
        return Decision(UPSTREAM_ENDED, *broken_words(*look.upstream), ends=True)
    return None


def _cancel(look: Look, phase: Phase) -> Decision | None:
    if phase in CANCELLED_EARLY.sources:
        return Decision(CANCELLED_EARLY, ends=True)
    if phase in CANCELLING.sources:
        return Decision(CANCELLING, deletes=True)
    if look.quiet:
        return Decision(CANCELLED, ends=True, deletes=look.job is not None, pods=_changed(look))
    return _delete_again(look)


def _suspend(look: Look, phase: Phase) -> Decision | None:
    """As a cancel, but the run can go on; a run that came to its end meanwhile has succeeded."""
    if phase is Phase.SUSPENDED:
        return Decision(RESUMED, resumes=True) if look.run.desired == Desired.RUNNING else None
    if phase in SUSPENDED_EARLY.sources:
        return Decision(SUSPENDED_EARLY, ends=True)
    if look.job is not None and succeeded(look.job):
        return Decision(SUCCESS, ends=True, deletes=True, pods=_changed(look))
    if phase in SUSPENDING.sources:
        return Decision(SUSPENDING, deletes=True)
    if look.quiet:
        return Decision(SUSPENDED, ends=True, deletes=look.job is not None, pods=_changed(look))
    return _delete_again(look)


def _wind_down(look: Look) -> Decision | None:
    """The attempt has its verdict: it is over when its pods are quiet."""
    if look.quiet:
        return Decision(ends=True, deletes=look.job is not None, pods=_changed(look))
    return _delete_again(look)


def _delete_again(look: Look) -> Decision | None:
    """A deletion that was asked for and is not under way, as after a failure on the way there."""
    pods = _changed(look)
    if look.job is not None and not look.job.deleting:
        return Decision(deletes=True, pods=pods)
    return Decision(pods=pods) if pods is not None else None


def _follow(look: Look, phase: Phase) -> Decision | None:
    """The attempt may still succeed: its phase is that of its pods."""
    job = look.job
    if job is None:
        return _end(look, object_lost(look.attempt.object_name)) if look.gone else None
    if succeeded(job):
        return Decision(SUCCESS, ends=True, deletes=True, pods=_changed(look))
    if verdict := verdict_of(job, look.attempt.pods if look.news is None else ()) or _late(look, job):
        return _end(look, verdict)
    return _progress(look, job, phase)


def _end(look: Look, verdict: Verdict) -> Decision:
    return Decision(verdict=verdict, ends=look.quiet, deletes=True, pods=_changed(look))


def _late(look: Look, job: ObservedJob) -> Verdict | None:
    """The verdict of our own timers."""
    if _overdue(look):
        return Verdict(*_overdue_words(look), Handling.FINAL)
    limit, since = look.run.max_pending_s, look.attempt.submitted_at
    if limit is not None and since is not None and _waiting(job) and look.now - since > limit:
        return Verdict("PendingTimeout", f"pending for more than limits.max_pending_s = {limit}", Handling.FINAL)
    if look.silent_s > look.longest_silence_s and not (look.run.task == PREPARE and look.heard_at == 0):
        told = f"no step and no line of output for {look.silent_s:.0f} s"
        return Verdict(HUNG, told, Handling.CHARGED)
    if look.closed is not None and look.run.phase == Phase.PENDING and _waiting(job):
        return Verdict(*look.closed, Handling.FREE)
    return _requeued(look, job)


def _requeued(look: Look, job: ObservedJob) -> Verdict | None:
    """The verdict on pods that hold up others and find no place."""
    since, patience = look.attempt.submitted_at, look.patience_s
    waiting = _waiting(job)
    if patience is None or since is None or waiting is None or look.now - since <= patience or look.run.nodes == 1:
        return None
    if waiting.reason == HELD_BACK:
        return None
    told = f"no place for all {look.run.nodes} pods within {patience:g} s: others go first ({waiting.message})"
    return Verdict(REQUEUED, told, Handling.FREE)


def _overdue(look: Look) -> bool:
    limit, since = look.run.max_runtime_s, look.run.started_at
    return limit is not None and since is not None and look.now - since - look.run.suspended_s > limit


def _overdue_words(look: Look) -> tuple[str, str]:
    return "DeadlineExceeded", f"running for more than limits.max_runtime_s = {look.run.max_runtime_s}"


def _progress(look: Look, job: ObservedJob, phase: Phase) -> Decision | None:
    pods = _changed(look)
    if waiting := _waiting(job):
        wanted, reason, message = WAITING, waiting.reason, waiting.message
    elif starting := next((pod for pod in not_running(job.pods) if pod.phase == "Pending"), None):
        wanted, reason, message = PLACED, starting.reason, None
    else:
        wanted, reason, message = RUNS, None, None
    same = (phase, look.run.reason, look.run.message) == (wanted.target, reason, message)
    if not same and phase in wanted.sources:
        return Decision(wanted, reason, message, pods=pods)
    return Decision(pods=pods) if pods is not None else None


def _waiting(job: ObservedJob) -> ObservedPod | None:
    """A pod that has not found its place."""
    pending = (pod for pod in not_running(job.pods) if pod.phase == "Pending")
    return next((pod for pod in pending if pod.reason not in PLACED_REASONS), None)


def _changed(look: Look) -> list[dict[str, Any]] | None:
    """The pods as they are to be stored, where they differ from what is: see `Decision.pods`."""
    if look.job is None:
        return None
    if look.news is not None:
        return [stored(pod) for pod in look.news.values()] or None
    seen = [stored(pod) for pod in look.job.pods]
    return seen if seen != look.attempt.pods else None


def stored(pod: ObservedPod) -> dict[str, Any]:
    """What is stored of a pod."""
    return {
        "name": pod.name,
        "uid": pod.uid,
        "rank": pod.rank,
        "phase": pod.phase,
        "reason": pod.reason,
        "message": pod.message,
        "exit_code": pod.exit_code,
        "node": pod.node,
        "started_at": pod.started_at.timestamp() if pod.started_at else None,
        "finished_at": pod.finished_at.timestamp() if pod.finished_at else None,
        **({"log_from": pod.log_from} if pod.log_from else {}),
    }
