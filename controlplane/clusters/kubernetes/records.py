"""What is kept of the API server's objects and pods: some 0.4 kB each, read once when they arrive.

It knows how each kind of attempt spells its parts, and nothing of what they mean.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from controlplane.clusters.base import Kind, ObservedPod, PodRole
from controlplane.render.models import ATTEMPT, RUN_ID, SPEC_HASH

INSTANCE = "teragpt.io/instance"
QUEUE = "kueue.x-k8s.io/queue-name"
CONTAINERS = ("pytorch", "node")  # of PyTorchJob and Job, and of TrainJob
REPLICA_TYPE, REPLICA_INDEX = "training.kubeflow.org/replica-type", "training.kubeflow.org/replica-index"
COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"
JOB_NAMES: dict[str, Kind] = {"training.kubeflow.org/job-name": "PyTorchJob", "batch.kubernetes.io/job-name": "Job"}
NODE_SUFFIX = "-node-0"  # of the Job that a TrainJob becomes
ENDED_WELL = frozenset({"Succeeded", "Complete"})
LONGEST_TEXT = 4096  # a termination message is no longer
T = TypeVar("T", bound=Hashable)


@lru_cache(maxsize=2048)
def shared(value: T) -> T:
    """An equal value that is kept already: thousands of pods say the same."""
    return value


class Key(NamedTuple):
    """Whose object or pod it is."""

    run_id: str
    attempt: int


class Owner(NamedTuple):
    """The object of an attempt that a pod belongs to, as the pod tells it; without `uid` where it let go of the pod."""

    kind: Kind
    name: str
    uid: str


class Condition(NamedTuple):
    """Why something is so."""

    reason: str
    message: str
    since: datetime | None


class State(NamedTuple):
    """A container: `waiting`, `running` or `terminated`, and why."""

    what: str
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    started: datetime | None = None
    finished: datetime | None = None


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """An attempt's object."""

    kind: Kind
    name: str
    uid: str
    key: Key
    spec_hash: str
    instance: str
    created: datetime
    deleting: bool
    nodes: int
    suspended: bool
    queue: str
    started: bool  # its controller has said anything of it
    succeeded: bool
    failed: Condition | None


@dataclass(frozen=True, slots=True)
class PodRecord:
    """A pod of an attempt. `index` is that of the node: the master is 0."""

    name: str
    uid: str
    key: Key
    index: int
    phase: str
    created: datetime
    node: str
    container: str
    image: str
    asks: tuple[tuple[str, str], ...]
    reason: str
    message: str
    unscheduled: Condition | None
    disrupted: Condition | None
    init: tuple[tuple[str, State], ...]
    main: State | None
    deleted: datetime | None  # when its grace period ends
    owner: Owner | None = None

    def observed(self) -> ObservedPod:
        """The pod as the protocol shows it, while it just runs."""
        role, number = role_of(self.index)
        started = self.main.started if self.main else None
        return ObservedPod(self.name, self.uid, role, number, "Running", started_at=started, node=self.node or None)


def key_of(labels: Mapping[str, str]) -> Key | None:
    """Whose attempt these labels name; None where they name none."""
    run_id, attempt = labels.get(RUN_ID), labels.get(ATTEMPT, "")
    return shared(Key(run_id, int(attempt))) if run_id and attempt.isdecimal() else None


def read_object(kind: Kind, raw: Mapping[str, Any]) -> ObjectRecord | None:
    """An object of ours; None for anyone else's."""
    metadata, spec = raw["metadata"], raw.get("spec") or {}
    status = raw.get("status") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    key = key_of(labels)
    if key is None:
        return None
    policy = (spec.get("runPolicy") or {}) if kind == "PyTorchJob" else spec
    true = {entry["type"]: entry for entry in status.get("conditions") or () if entry.get("status") == "True"}
    return ObjectRecord(
        kind=kind,
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        key=key,
        spec_hash=annotations.get(SPEC_HASH, ""),
        instance=annotations.get(INSTANCE, ""),
        created=_required(metadata.get("creationTimestamp")),
        deleting="deletionTimestamp" in metadata,
        nodes=nodes_of(kind, spec),
        suspended=bool(policy.get("suspend")),
        queue=labels.get(QUEUE, ""),
        started=any(status.values()),
        succeeded=bool(ENDED_WELL & true.keys()),
        failed=_condition(true["Failed"]) if "Failed" in true else None,
    )


def unlabelled(kind: Kind, raw: Mapping[str, Any]) -> ObjectRecord | None:
    """An object of ours whose labels somebody has taken away: of no known attempt."""
    labels = {**(raw["metadata"].get("labels") or {}), RUN_ID: "-", ATTEMPT: "0"}
    return read_object(kind, {**raw, "metadata": {**raw["metadata"], "labels": labels}})


def nodes_of(kind: Kind, spec: Mapping[str, Any]) -> int:
    """How many pods the object is to have."""
    if kind == "PyTorchJob":
        roles = spec.get("pytorchReplicaSpecs") or {}
        return sum(int(role.get("replicas", 1)) for role in roles.values())
    if kind == "TrainJob":
        return int((spec.get("trainer") or {}).get("numNodes") or 1)
    return int(spec.get("completions") or 1)


def pod_name(kind: Kind, name: str, index: int) -> str:
    """What an object's pod is called; Kubernetes adds five letters to those of a Job and a TrainJob."""
    if kind == "PyTorchJob":
        return f"{name}-worker-{index - 1}" if index else f"{name}-master-0"
    return f"{name}-node-0-{index}" if kind == "TrainJob" else f"{name}-{index}"


def role_of(index: int) -> tuple[PodRole, int]:
    """A node's role, and its number within that."""
    return ("worker", index - 1) if index else ("master", 0)


def read_pod(raw: Mapping[str, Any]) -> PodRecord | None:
    """A pod of an attempt; None for any other."""
    metadata, spec, status = raw["metadata"], raw["spec"], raw.get("status") or {}
    labels = metadata.get("labels") or {}
    key, index = key_of(labels), _index(labels, metadata.get("annotations") or {})
    if key is None or index is None:
        return None
    container = next((one for one in spec["containers"] if one["name"] in CONTAINERS), spec["containers"][0])
    states = {one["name"]: _state(one) for one in status.get("containerStatuses") or ()}
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    scheduled, disrupted = conditions.get("PodScheduled", {}), conditions.get("DisruptionTarget", {})
    resources = container.get("resources") or {}
    asked = {**resources.get("limits", {}), **resources.get("requests", {})}
    return PodRecord(
        name=metadata["name"],
        uid=metadata["uid"],
        key=key,
        index=index,
        phase=shared(status.get("phase", "Pending")),
        created=shared(_required(metadata.get("creationTimestamp"))),
        node=shared(spec.get("nodeName", "")),
        container=shared(container["name"]),
        image=shared(container.get("image", "")),
        asks=shared(tuple(sorted(asked.items()))),
        reason=shared(status.get("reason", "")),
        message=status.get("message", "")[:LONGEST_TEXT],
        unscheduled=_condition(scheduled) if scheduled.get("status") == "False" else None,
        disrupted=_condition(disrupted) if disrupted.get("status") == "True" else None,
        init=shared(tuple((one["name"], _state(one)) for one in status.get("initContainerStatuses") or ())),
        main=states.get(container["name"]),
        deleted=when(metadata.get("deletionTimestamp")),
        owner=shared(_owner(metadata.get("ownerReferences") or ()) or _former(labels)),
    )


def when(text: str | None) -> datetime | None:
    """A Kubernetes timestamp; None for none."""
    return datetime.fromisoformat(text) if text else None


def _owner(references: Iterable[Mapping[str, Any]]) -> Owner | None:
    """A TrainJob's pods belong to a Job that is called after it."""
    for one in references:
        name, uid = str(one["name"]), str(one["uid"])
        if one.get("controller") and one["kind"] in ("PyTorchJob", "Job"):
            return _of_attempt("PyTorchJob" if one["kind"] == "PyTorchJob" else "Job", name, uid)
    return None


def _former(labels: Mapping[str, str]) -> Owner | None:
    """Whom a pod was made for that nobody owns any more, as after a deletion that left it behind."""
    return next((_of_attempt(kind, labels[label], "") for label, kind in JOB_NAMES.items() if label in labels), None)


def _of_attempt(kind: Kind, name: str, uid: str) -> Owner:
    of_train_job = kind == "Job" and name.endswith(NODE_SUFFIX)
    return Owner("TrainJob", name.removesuffix(NODE_SUFFIX), uid) if of_train_job else Owner(kind, name, uid)


def _required(text: str | None) -> datetime:
    return datetime.fromisoformat(text or "1970-01-01T00:00:00+00:00")


def _index(labels: Mapping[str, str], annotations: Mapping[str, str]) -> int | None:
    number = labels.get(REPLICA_INDEX, "")
    if number.isdecimal():
        return 0 if labels.get(REPLICA_TYPE) == "master" else int(number) + 1
    number = labels.get(COMPLETION_INDEX) or annotations.get(COMPLETION_INDEX) or ""
    return int(number) if number.isdecimal() else None


def _condition(raw: Mapping[str, Any]) -> Condition:
    since = when(raw.get("lastTransitionTime"))
    return Condition(raw.get("reason") or "", (raw.get("message") or "")[:LONGEST_TEXT], since)


def _state(raw: Mapping[str, Any]) -> State:
    for what, state in (raw.get("state") or {}).items():
        found = State(
            what=shared(what),
            reason=shared(state.get("reason", "")),
            message=state.get("message", "")[:LONGEST_TEXT],
            exit_code=state.get("exitCode"),
            started=shared(when(state.get("startedAt"))),
            finished=shared(when(state.get("finishedAt"))),
        )
        return found if found.message else shared(found)
    return State("waiting")
