"""How a pod ended, from its record: the words that `controlplane.reconcile.verdicts` judges by. Pure functions."""

from __future__ import annotations

import signal as signals
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from controlplane.clusters.base import PodPhase, termination_of
from controlplane.clusters.kubernetes.records import PodRecord, State

OVERDUE = timedelta(seconds=60)  # a kubelet that answers is done with a pod soon after its grace period
DISRUPTIONS = {  # the reasons of the condition DisruptionTarget
    "PreemptionByScheduler": "Preempted",
    "DeletionByTaintManager": "NodeLost",
    "DeletionByPodGC": "NodeLost",
    "EvictionByEvictionAPI": "Evicted",
    "TerminationByKubelet": "Evicted",
}
NODE_REASONS = {  # of the pod's own status
    "Evicted": "Evicted",
    "Preempting": "Preempted",
    "NodeLost": "NodeLost",
    "NodeShutdown": "Shutdown",
    "Shutdown": "Shutdown",
    "Terminated": "Shutdown",  # what the kubelet calls a pod that it stopped for the node's shutdown
    "NodeAffinity": "NodeLost",
}


@dataclass(frozen=True)
class Ending:
    """What `ObservedPod` says of a pod that has ended."""

    phase: PodPhase
    reason: str | None
    message: str | None = None
    exit_code: int | None = None
    signal: str | None = None
    termination: dict[str, Any] | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


def ending_of(pod: PodRecord, now: datetime) -> Ending | None:
    """How the pod ended; None while it lives."""
    main = pod.main
    if main is not None and main.what == "terminated":
        return _terminated(pod, main)
    if pod.phase == "Succeeded":
        return Ending("Succeeded", None, exit_code=0)
    if pod.phase == "Failed":
        return _never_ran(pod)
    if pod.deleted is not None and now > pod.deleted + OVERDUE:
        told = f"node {pod.node or 'unknown'} has not ended it since its deletion"
        return Ending("Failed", "NodeLost", told, started_at=main.started if main else None, finished_at=pod.deleted)
    return None


def interrupted(pod: PodRecord) -> str | None:
    """Who ended it, where that was neither the pod nor we: a stable word."""
    if word := NODE_REASONS.get(pod.reason):
        return word
    return DISRUPTIONS.get(pod.disrupted.reason) if pod.disrupted else None


def _terminated(pod: PodRecord, main: State) -> Ending:
    code = main.exit_code
    termination = termination_of(main.message)
    interruption = interrupted(pod) if code != 0 else None
    text = (_why(pod) if interruption else None if termination is not None else main.message) or None
    return Ending(
        phase="Succeeded" if code == 0 else "Failed",
        reason=interruption or (None if code == 0 else _word(pod, main)),
        message=text,
        exit_code=code,
        signal=signal_of(code),
        termination=termination,
        started_at=main.started,
        finished_at=main.finished,
    )


def _why(pod: PodRecord) -> str:
    """Why it was interrupted, in the cluster's words, and on which node."""
    why = pod.message or (pod.disrupted.message if pod.disrupted else "")
    return f"node {pod.node}: {why}" if pod.node and why else why


def _word(pod: PodRecord, main: State) -> str:
    """The container's own reason; the pod's, where that says more ("DeadlineExceeded")."""
    if main.reason == "OOMKilled":
        return main.reason
    return pod.reason or main.reason or "Error"


def _never_ran(pod: PodRecord) -> Ending:
    """A failed pod whose container was never started."""
    if word := interrupted(pod):
        return Ending("Failed", word, _why(pod) or None)
    for name, state in pod.init:
        if state.what == "terminated" and state.exit_code != 0:
            told = f"init container {name} ended with exit code {state.exit_code}"
            said = state.message.strip() or state.reason
            return Ending("Failed", "InitError", f"{told}: {said}" if said else told, finished_at=state.finished)
    return Ending("Failed", pod.reason or "Unknown", pod.message or None)


def signal_of(code: int | None) -> str | None:
    """The name of the signal that an exit code of 128 + n tells of."""
    try:
        return signals.Signals(code - 128).name if code is not None and code > 128 else None
    except ValueError:
        return None
