"""What ails a run, in words: from the first failing rank to the likely cause and its mend. It changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.clusters.base import ClusterError
from controlplane.domain.diagnoses import diagnose
from controlplane.domain.errors import NotFound
from controlplane.domain.phases import Phase
from controlplane.services import attempts, runs
from controlplane.services.context import Context
from controlplane.services.logs import logs
from controlplane.services.views import AttemptView, RunView

LINES = 50
STATES = {
    Phase.QUEUED: "waits to be submitted",
    Phase.SUBMITTING: "is being submitted",
    Phase.PENDING: "waits for its place",
    Phase.STARTING: "is starting",
    Phase.RUNNING: "is running",
    Phase.RESTARTING: "is about to start again",
    Phase.CANCELLING: "is being cancelled",
    Phase.SUSPENDING: "is being suspended",
    Phase.SUSPENDED: "is suspended",
    Phase.SUCCEEDED: "has succeeded",
    Phase.FAILED: "has failed",
    Phase.CANCELLED: "was cancelled",
}


@dataclass(frozen=True)
class Explanation:
    """Why a run is where it is. From `attempt` to `last_lines` it tells of the rank that failed first, if one did.

    `text` says all of it in a paragraph. Where nothing is wrong, `reason`, `cause` and `mend` are None.
    """

    run: str
    phase: str
    text: str
    reason: str | None
    message: str | None
    cause: str | None
    mend: str | None
    attempt: int | None
    rank: int | None
    exit_code: int | None
    signal: str | None
    step: int | None
    last_lines: list[str]


def explain(context: Context, run_id: str, number: int | None = None) -> Explanation:
    """Why a run is where it is, or why one of its attempts ended. Raises NotFound."""
    run = runs.get(context, run_id)
    if number is None:
        ended = [one for one in attempts.attempts(context, run.id) if one.reason]
        blamed = next((one for one in reversed(ended) if run.reason in {None, one.reason}), None)
        if blamed is None and Phase(run.phase).terminal and ended:
            blamed = ended[-1]
        reason, message = (run.reason, run.message) if run.reason else _words(blamed)
    else:
        blamed = attempts.attempt(context, run.id, number)
        reason, message = _words(blamed)
    row = diagnose(reason) if reason else None
    return Explanation(
        run=run.id,
        phase=run.phase,
        text=_text(run, blamed, reason, message),
        reason=reason,
        message=message,
        cause=row.cause if row else None,
        mend=row.mend if row else None,
        attempt=blamed.attempt if blamed else None,
        rank=blamed.rank if blamed else None,
        exit_code=blamed.exit_code if blamed else None,
        signal=blamed.signal if blamed else None,
        step=blamed.step if blamed else None,
        last_lines=_last_lines(context, run, blamed) if blamed and blamed.reason else [],
    )


def _words(attempt: AttemptView | None) -> tuple[str | None, str | None]:
    return (attempt.reason, attempt.message) if attempt else (None, None)


def _text(run: RunView, blamed: AttemptView | None, reason: str | None, message: str | None) -> str:
    """One paragraph: where the run is, what ended first, the likely cause, the mend."""
    sentences = [f"Run {run.name} ({run.id}) {STATES[Phase(run.phase)]}."]
    if reason is None:
        return " ".join([*sentences, run.message or "Nothing is known to be wrong with it."])
    at = f" at step {blamed.step}" if blamed and blamed.step is not None else ""
    where = f"Attempt {blamed.attempt} ended{at}: {reason}" if blamed and blamed.reason else reason
    row = diagnose(reason)
    said = f"{where}: {message}" if message else where
    return " ".join([*sentences, said if said.endswith((".", "!", "?")) else f"{said}.", row.cause, row.mend])


def _last_lines(context: Context, run: RunView, attempt: AttemptView) -> list[str]:
    """The last lines of the rank that failed first: what its pod kept of them, more where the log has more."""
    rank = attempt.rank
    if rank is None:  # the pod never said which: what its first rank wrote
        failed = min((pod.rank for pod in attempt.pods if pod.phase == "Failed"), default=0)
        rank = failed * int(run.resolved["processes_per_node"])
    try:
        logged = logs(context, run.id, attempt=attempt.attempt, rank=rank, tail=LINES).lines
    except (ClusterError, NotFound):
        logged = []
    return max(attempt.last_lines, logged, key=len)[-LINES:]
