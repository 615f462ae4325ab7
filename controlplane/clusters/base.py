"""The protocol between the control plane and whatever executes its manifests, with its own errors and observations.

Callers see objects (one per attempt) and their pods, never a process, a socket or a client library. A cluster knows
nothing of runs beyond the labels of `controlplane.render`: what an observation means for a run is decided elsewhere.

    ClusterError
    ├── Unavailable     nothing was decided: ask again later
    ├── NameConflict    the name belongs to something else: final
    └── Rejected        the manifest cannot be executed here, field by field: final
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol, TypeAlias

from controlplane.domain.logs import LogExtent

Manifest: TypeAlias = dict[str, Any]  # a Kubernetes object as JSON
PodPhase: TypeAlias = Literal["Pending", "Running", "Succeeded", "Failed"]
PodRole: TypeAlias = Literal["master", "worker"]
Kind: TypeAlias = Literal["PyTorchJob", "TrainJob", "Job"]


class ClusterError(Exception):
    """What a cluster says instead of doing what was asked."""


class Unavailable(ClusterError):
    """The cluster could not be reached or could not answer; nothing is known about the request. Retry it."""


class NameConflict(ClusterError):
    """An object of that name exists and belongs to another run, attempt or spec. Final."""


@dataclass(frozen=True)
class Refusal:
    """One field of a manifest that cannot be honoured: its `path`, what was `given`, what is `allowed`."""

    path: str
    given: object
    allowed: str

    def __str__(self) -> str:
        return f"{self.path}: got {self.given!r}; allowed: {self.allowed}"


class Rejected(ClusterError):
    """A manifest that this cluster can never execute, with every field that stands in the way (`problems`). Final."""

    def __init__(self, problems: Iterable[Refusal]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, self.problems)))


@dataclass(frozen=True)
class Traits:
    """What a manifest may count on here.

    Its objects live in `namespace`, or in one of `others` where they say so. `kinds` can be made, the best one first;
    `reasons` says of each kind why it can or cannot. `shared_folders`: a path means the same to the control plane and
    to pods, so that storage is folders; elsewhere it is claims and object stores. `audience`: of the service-account
    tokens by which pods prove who they are (`Cluster.authenticate`); without one, each attempt has a secret of its own.
    `gang`: an object's pods start together or not at all; where they do not, objects of several pods are made one at a
    time, but for those of runs with a queue where there are `queues` (Kueue's). `quotas`: GPUs that runs of a namespace
    may hold at once, where the cluster itself does not see to that.
    """

    namespace: str = "default"
    others: tuple[str, ...] = ()
    kinds: tuple[Kind, ...] = ("PyTorchJob",)
    reasons: Mapping[Kind, str] = field(default_factory=dict[Kind, str])
    shared_folders: bool = True
    audience: str | None = None
    gang: bool = True
    queues: bool = False
    quotas: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def namespaces(self) -> tuple[str, ...]:
        """All that objects may live in."""
        return (self.namespace, *self.others)


@dataclass(frozen=True)
class Capacity:
    """What the cluster has in all and free now: CPUs, bytes of memory, GPUs and their type (None: no GPU).

    `largest`: CPUs, bytes and GPUs of the node that has the most, which bounds a pod. `known` is false where nodes may
    not be listed: the numbers then say nothing.
    """

    cpus: int
    memory: int
    gpus: int
    gpu_type: str | None
    free_cpus: int
    free_memory: int
    free_gpus: int
    largest: tuple[int, int, int] | None = None
    known: bool = True


@dataclass(frozen=True)
class Check:
    """One thing that a cluster must have: whether it is there (`ok`), how it is, and how to `mend` it where not."""

    name: str
    ok: bool
    detail: str
    mend: str = ""


@dataclass(frozen=True)
class Caller:
    """The pod that a service-account token was made for."""

    pod: str
    uid: str


@dataclass(slots=True)  # not frozen, which takes four times as long to make; nobody changes one all the same
class ObservedPod:
    """A pod as last seen.

    `reason` and `message` say why it is Pending ("Queued", "needs 4 cpus, 2 free") or how it ended ("Error", "Lost",
    "StartError"). `exit_code` is the container's (128 + n for a signal n, which `signal` names, as "SIGKILL"); both are
    None while it lives, and when it was lost. `termination` is its termination message where that is a JSON object;
    any other text stands in `message`. `node`: the machine that it was placed on, where the cluster has several.
    `log_from`: the first byte of its log that is kept.
    """

    name: str
    uid: str
    role: PodRole
    index: int
    phase: PodPhase
    reason: str | None = None
    message: str | None = None
    exit_code: int | None = None
    signal: str | None = None
    termination: dict[str, Any] | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    node: str | None = None
    log_from: int = 0

    @property
    def rank(self) -> int:
        """Its place among the nodes: the master is 0."""
        return 0 if self.role == "master" else self.index + 1


def termination_of(message: str) -> dict[str, Any] | None:
    """What a termination message says, where it is the launcher's: a JSON object."""
    try:
        value = json.loads(message)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


@dataclass(frozen=True)
class ObservedJob:
    """An object of ours as last seen, with every pod it should have. Times are aware and in UTC.

    `gone`: the object itself is there no more, and these are the pods that it left; nobody ends them unless `deleting`.
    """

    name: str
    uid: str
    run_id: str
    attempt: int
    spec_hash: str
    created_at: datetime
    deleting: bool
    pods: Sequence[ObservedPod]
    gone: bool = False


@dataclass(frozen=True)
class Stacks:
    """Where the threads of an object's processes stand: `text` for people, of how many `processes`; else the `problem`.

    Both may be there: the problem is then that of the first process which the text lacks.
    """

    text: str = ""
    processes: int = 0
    problem: str = ""


class Cluster(Protocol):
    """Executes manifests. Every method is thread-safe and may raise Unavailable."""

    @property
    def name(self) -> str:
        """The cluster's name, as runs show it."""
        ...

    def traits(self) -> Traits:
        """What a manifest may count on here. Cheap: what was last found out."""
        ...

    def create(self, manifest: Manifest, secret: Mapping[str, str] | None = None) -> str:
        """Take on an object and return its uid; its pods start as soon as they fit, in order of arrival.

        `secret` holds the values that the manifest's `secretKeyRef`s name by key; they are stored beside the object
        under its name and never shown. Idempotent: an object of that name with the same run-id, attempt and spec-hash
        is adopted, also after its deletion (it does not run again). The uid is empty where an earlier call had no
        answer and there is no such object: whether it was there is not known. Raises NameConflict and Rejected.
        """
        ...

    def dry_run(self, manifest: Manifest) -> None:
        """As `create`, but nothing is made. Raises Rejected and NameConflict."""
        ...

    def observe(self) -> list[ObservedJob]:
        """Every object of ours, live, finished or being deleted, until its deletion is complete. Cheap.

        A pod that is still to come has no uid; it is Pending, and its reason says what it waits for.
        """
        ...

    def delete(self, name: str, uid: str | None = None) -> None:
        """End an object: SIGTERM to its pods, SIGKILL after their grace period. Returns at once.

        The object stays in `observe` with `deleting` set until its last pod has ended. An unknown name, or a name that
        meanwhile belongs to another `uid`, is success; pods that an object of that name left are ended.
        """
        ...

    def logs(self, name: str, pod: str, offset: int = 0, limit: int = 1 << 20) -> bytes:
        """Up to `limit` bytes of what a pod wrote, from byte `offset`; empty past the end or for an unknown pod.

        Readable while the pod lives and until `forget`; what was given up is empty too.
        """
        ...

    def log_extent(self, name: str, pod: str) -> LogExtent:
        """From which byte to which `logs` has what a pod wrote; nothing for an unknown pod."""
        ...

    def stacks(self, name: str) -> Stacks:
        """Where every process of an object stands now. Takes seconds; disturbs none of them."""
        ...

    def forget(self, name: str) -> None:
        """Remove what is left of a purged run's object, logs and records; of one that is there yet no more is kept."""
        ...

    def capacity(self) -> Capacity:
        """What there is and what is free."""
        ...

    def access_modes(self, claim: str, namespace: str) -> frozenset[str] | None:
        """The access modes of a volume claim there, as "ReadWriteMany"; None where there is no such claim."""
        ...

    def authenticate(self, token: str) -> Caller | None:
        """The pod that holds this service-account token of our audience; None where it is no such token."""
        ...

    def admit(self, token: str, verb: str) -> str | None:
        """The user whose token of our audience this is, where the cluster lets them `verb` jobs in every namespace.

        `verb` is get, create or delete. None where it is no such token, or they may not.
        """
        ...

    def checks(self, claim: str = "") -> list[Check]:
        """Everything that runs need of the cluster, looked at now; `claim` is the one that they write to, if any.

        Raises nothing: what fails is a check.
        """
        ...

    def watch(self, wake: Callable[[], None]) -> None:
        """Begin to look after the objects: `observe` and `delete` are for who has called this.

        `wake` is called, from any thread, soon after what `observe` returns has changed. A hint, not a promise.
        """
        ...

    def close(self) -> None:
        """Stop looking after the objects. Their pods go on; another instance takes them up again."""
        ...
