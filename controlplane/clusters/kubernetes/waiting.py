"""Why a pod waits: a stable word, and a sentence that its owner can act on. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from controlplane.clusters.kubernetes.events import EventRecord
from controlplane.clusters.kubernetes.nodes import Room
from controlplane.clusters.kubernetes.records import Condition, ObjectRecord, PodRecord, State
from controlplane.domain.diagnoses import HELD_BACK

TAKEN_UP = timedelta(seconds=20)  # a controller that is awake says something of an object sooner
PULLS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"})
CREATION = frozenset({"FailedCreate", "FailedCreatePod"})
MOUNTS = frozenset({"FailedMount", "FailedAttachVolume"})
MASTER_WAIT = "init-pytorch"
CONTROLLERS = {"PyTorchJob": "the training operator", "TrainJob": "Kubeflow Trainer", "Job": "the Job controller"}
LACK = re.compile(r"Insufficient ([A-Za-z0-9./-]*[A-Za-z0-9])")
QUOTA = re.compile(r"(?:exceeded|failed) quota: ([^,:]+)[,:] (.*)")
LIMIT_RANGE = re.compile(
    r"(?:m(?:ax|in)imum \S+ usage|max limit to request ratio) per (?:Container|Pod) is .*"
    r'|\S+ Invalid value: "[^"]*": must be less than or equal to \S+ limit of \S+'  # one that it gave to the pod
)
DENIED = re.compile(r"denied (the )?request")  # by a webhook, by a ValidatingAdmissionPolicy
TAINT = re.compile(r"untolerated taint")
VOLUME = re.compile(
    r'(persistentvolumeclaim "[^"]+" (?:not found|is being deleted)|unbound immediate PersistentVolumeClaims)'
)


class Wait(NamedTuple):
    """A stable `reason`, and a `message` for people."""

    reason: str
    message: str


def uncreated(job: ObjectRecord, there: int, events: Sequence[EventRecord], admission: str, now: datetime) -> Wait:
    """Why a pod does not exist yet, `there` being how many of the object's pods do. `admission`: what Kueue says."""
    if job.suspended:
        if job.queue:
            return Wait(HELD_BACK, admission or f"queue {job.queue} has not admitted it yet")
        return Wait("Suspended", f"{job.kind} {job.name} is suspended, by someone other than the control plane")
    if refused := next((event for event in events if event.reason in CREATION), None):
        return _refused(refused.message)
    if not job.started and not there and now - job.created > TAKEN_UP:
        told = f"nothing has taken up {job.kind} {job.name} since {job.created:%Y-%m-%dT%H:%M:%SZ}"
        return Wait("OperatorAbsent", f"{told}: does {CONTROLLERS[job.kind]} run?")
    return Wait("PodsNotCreated", f"{there} of {job.nodes} pods have been created")


def placing(pod: PodRecord, events: Sequence[EventRecord], room: Room | None) -> Wait:
    """Why a pod that exists does not run yet."""
    if pod.unscheduled is not None:
        return unscheduled(pod, pod.unscheduled, room)
    if not pod.node:
        return Wait("Scheduling", "the scheduler has not looked at it yet")
    for name, state in pod.init:
        if not (state.what == "terminated" and state.exit_code == 0):
            return _initializing(name, state, pod, events)
    state = pod.main or State("waiting", "ContainerCreating")
    return _starting(state.reason or "ContainerCreating", state.message, pod.image, events)


def unscheduled(pod: PodRecord, why: Condition, room: Room | None) -> Wait:
    """Why no node takes it."""
    if why.reason == "SchedulingGated":
        return Wait("SchedulingGated", why.message or "a scheduling gate holds it back")
    said = why.message.split(" preemption:")[0].strip()
    if volume := VOLUME.search(why.message):
        return Wait("VolumeNotBound", f"a volume is not ready: {volume[1]}; the scheduler says: {said}")
    lacking = list(dict.fromkeys(LACK.findall(said)))
    parts = [_lack(resource, dict(pod.asks), room) for resource in lacking]
    if TAINT.search(said) and room is not None and (taints := room.taints()):
        parts.append(f"nodes are kept for others by the taint {', '.join(taints)}")
    if lacking and room is not None and (fitting := room.fits(lacking)):
        parts.append(f"on one node would fit: {fitting}")
    told = "; ".join(parts)
    return Wait("Unschedulable", f"{told}; the scheduler says: {said}" if told else said or "no node takes it")


def _lack(resource: str, asks: dict[str, str], room: Room | None) -> str:
    asked = f"asks for {asks.get(resource, 'more')} {resource}" if resource in asks else f"not enough {resource}"
    if room is None or resource not in asks:
        return asked
    return f"{asked}, {room.short(resource, asks[resource])}"


def _refused(message: str) -> Wait:
    if quota := QUOTA.search(message):
        return Wait("QuotaExceeded", f"the namespace's quota {quota[1]} does not allow its pods: {quota[2]}")
    if bound := LIMIT_RANGE.search(message):
        return Wait("LimitRange", f"a LimitRange of the namespace does not allow its pods: {bound[0]}")
    if "violates PodSecurity" in message:
        return Wait("PodSecurity", f"the namespace's Pod Security refuses its pods: {message}")
    if "failed calling webhook" in message:
        return Wait("WebhookUnavailable", f"a webhook that must see its pods does not answer: {message}")
    if DENIED.search(message):
        return Wait("AdmissionDenied", f"the cluster's admission rules refuse its pods: {message}")
    return Wait("FailedCreate", f"its pods cannot be created: {message}")


def _initializing(name: str, state: State, pod: PodRecord, events: Sequence[EventRecord]) -> Wait:
    if state.what == "running" and name == MASTER_WAIT:
        return Wait("InitWaitingForMaster", f"{name} waits until the master's name can be looked up")
    if state.what == "waiting" and state.reason not in ("PodInitializing", ""):
        return _starting(state.reason, state.message, f"of init container {name}", events)
    del pod
    return Wait("PodInitializing", f"init container {name} is at work")


def _starting(reason: str, message: str, image: str, events: Sequence[EventRecord]) -> Wait:
    """A container that the kubelet has not started."""
    if reason in PULLS:
        return Wait("ImagePullBackOff", f"image {image} cannot be pulled: {message or reason}")
    if reason not in ("ContainerCreating", "PodInitializing"):
        return Wait(reason, message or f"its container cannot be started: {reason}")
    if failed := _latest(events, MOUNTS):
        return Wait("VolumeNotMounted", failed.message)
    if failed := _latest(events, {"FailedCreatePodSandBox"}):
        return Wait("SandboxFailed", failed.message)
    if pulling := _latest(events, {"Pulling"}):
        return Wait("ImagePulling", pulling.message)
    return Wait(reason, message or "its container is being created")


def _latest(events: Iterable[EventRecord], reasons: Iterable[str]) -> EventRecord | None:
    return next((event for event in events if event.reason in reasons), None)
