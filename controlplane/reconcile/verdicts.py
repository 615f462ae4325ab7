"""Why an attempt ended, from what was seen of its pods: the table of docs/lifecycle.md, "Verdicts". Pure functions."""

from __future__ import annotations

import signal as signals
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from controlplane.clusters.base import ObservedJob, ObservedPod
from controlplane.clusters.pods import not_running
from controlplane.domain.diagnoses import HELD_BACK
from teragpt.launcher.termination import crash

FINAL_CODES = {2: "ConfigError", 3: "Diverged"}
STOPPED, KILLED = 143, 137
INTERRUPTIONS = frozenset({"Preempted", "Evicted", "NodeLost", "Lost", "Shutdown", "ImagePull", "InitError"})
SET_ASIDE = {HELD_BACK: "Preempted", "Suspended": "PodLost"}  # an object's pods are gone, and itself waits
REQUEUED = "Requeued"
KEPT_LINES = 50
LONGEST_MESSAGE = 2000


class Handling(StrEnum):
    """What a verdict leads to."""

    FINAL = "final"
    FREE = "free"
    CHARGED = "charged"


@dataclass(frozen=True)
class Verdict:
    """Why an attempt ended: a stable `reason`, a `message` for people, and what the first failing rank left behind."""

    reason: str
    message: str
    handling: Handling
    rank: int | None = None
    exit_code: int | None = None
    signal: str | None = None
    step: int | None = None
    last_lines: tuple[str, ...] = ()


def verdict_of(job: ObservedJob, known: Sequence[Mapping[str, Any]]) -> Verdict | None:
    """The verdict on an attempt whose object nobody of us has ended; None while it may still succeed.

    `known` are the pods as they were stored at the last look.
    """
    others = not_running(job.pods)
    failed = [pod for pod in others if pod.phase == "Failed" and not _swept(pod, job)]
    if failed:
        return _of_pod(min(failed, key=_ended))
    finished = any(pod.role == "master" and pod.phase == "Succeeded" for pod in others)
    if not finished and (lost := _replaced(job.pods, known)):
        if held := next((pod for pod in job.pods if pod.reason in SET_ASIDE), None):
            return Verdict(SET_ASIDE[str(held.reason)], f"pod {lost} was stopped: {held.message}", Handling.FREE)
        return Verdict("PodLost", f"pod {lost} is gone or was replaced", Handling.FREE)
    if job.deleting and not succeeded(job):
        return Verdict("ObjectLost", f"{job.name} is being deleted by someone else", Handling.FREE)
    if job.gone and not succeeded(job):
        return Verdict("ObjectLost", f"{job.name} was deleted by someone else, who left its pods", Handling.FREE)
    return None


def object_lost(name: str) -> Verdict:
    """The verdict on an attempt whose object is gone."""
    return Verdict("ObjectLost", f"{name} is gone from the cluster", Handling.FREE)


def succeeded(job: ObservedJob) -> bool:
    """Whether every pod ended with 0, or was stopped because the first one had."""
    return bool(job.pods) and all(pod.phase == "Succeeded" or _swept(pod, job) for pod in job.pods)


def quiet(job: ObservedJob) -> bool:
    """Whether every pod has ended, one way or the other; an object whose pods are still to come is not quiet."""
    return bool(job.pods or job.deleting) and all(pod.phase in ("Succeeded", "Failed") for pod in job.pods)


def _swept(pod: ObservedPod, job: ObservedJob) -> bool:
    """Whether a pod was stopped on its way out: the cluster ends the others as soon as the first has succeeded."""
    first = next((one for one in job.pods if one.rank == 0), None)
    done = first is not None and first.phase == "Succeeded"
    return done and pod.phase == "Failed" and pod.exit_code in {None, STOPPED, KILLED}


def _ended(pod: ObservedPod) -> tuple[datetime, int]:
    return pod.finished_at or datetime.max.replace(tzinfo=UTC), pod.rank


def _replaced(pods: Iterable[ObservedPod], known: Sequence[Mapping[str, Any]]) -> str | None:
    """A pod that was there at the last look and is not now, or is another one."""
    now = {pod.name: pod.uid for pod in pods} if known else {}
    return next((str(pod["name"]) for pod in known if pod["uid"] and now.get(str(pod["name"])) != pod["uid"]), None)


def _of_pod(pod: ObservedPod) -> Verdict:
    told = pod.termination or {}
    code = pod.exit_code if pod.exit_code is not None else _whole(told.get("code"))
    name = pod.signal or (told.get("signal") if isinstance(told.get("signal"), str) else None) or _signal(code)
    reason, handling = _judge(pod, code, name, told)
    rank = _whole(told.get("rank"))
    lines = tuple(str(line) for line in told.get("last_lines") or _log_end(pod))[-KEPT_LINES:]
    return Verdict(
        reason=reason,
        message=_message(pod, rank, code, name, lines),
        handling=handling,
        rank=rank,
        exit_code=code,
        signal=name,
        step=_whole(told.get("step")),
        last_lines=lines,
    )


def _judge(pod: ObservedPod, code: int | None, name: str | None, told: Mapping[str, Any]) -> tuple[str, Handling]:
    """The reason and what follows from it."""
    said = told.get("reason") if isinstance(told.get("reason"), str) else None
    if pod.reason in INTERRUPTIONS:
        return str(pod.reason), Handling.FREE
    if code in FINAL_CODES:
        return said or FINAL_CODES[code], Handling.FINAL
    if code == STOPPED:
        return "Stopped", Handling.FREE
    if code is None:
        return pod.reason or "Unknown", Handling.FREE
    if pod.reason == "OOMKilled":
        return "OOMKilled", Handling.CHARGED
    return said or ("Killed" if name else crash(pod.message or "")), Handling.CHARGED


def _message(pod: ObservedPod, rank: int | None, code: int | None, name: str | None, lines: Sequence[str]) -> str:
    ended = f"{pod.name} ended" if rank is None else f"rank {rank} ended"
    ended += f" with exit code {code}" if code is not None else ""
    ended += f" ({name})" if name else ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), None) or pod.message
    known = pod.reason in INTERRUPTIONS or (pod.reason == "OOMKilled" and not _log_end(pod))
    last = pod.message if pod.message and known else last
    return f"{ended}: {last}"[:LONGEST_MESSAGE] if last else ended


def _log_end(pod: ObservedPod) -> list[str]:
    """The end of a pod's log, where that stands for a termination message: several lines, where a sentence is one."""
    lines = (pod.message or "").splitlines() if pod.reason not in INTERRUPTIONS else []
    return lines if len(lines) > 1 else []


def _signal(code: int | None) -> str | None:
    """The name of the signal that an exit code beyond 128 tells of."""
    if code is None or code <= 128 or code == STOPPED:
        return None
    try:
        return signals.Signals(code - 128).name
    except ValueError:
        return None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
