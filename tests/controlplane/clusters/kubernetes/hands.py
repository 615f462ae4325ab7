"""Does by hand what controllers, kubelets and schedulers do, through the API server: the small one or a real one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from controlplane.clusters.base import Kind, Manifest, ObservedJob, Unavailable
from controlplane.clusters.kubernetes import KubernetesCluster
from controlplane.clusters.kubernetes.connection import Connection, Refused
from controlplane.clusters.kubernetes.records import COMPLETION_INDEX, REPLICA_INDEX, REPLICA_TYPE
from controlplane.clusters.kubernetes.resources import ATTEMPTS, EVENTS, PODS, Resource
from controlplane.clusters.shelf import Folder
from controlplane.render import Attempt, render
from controlplane.render.models import RUN_ID

T = TypeVar("T")
Open = Callable[..., KubernetesCluster]
DEADLINE_S = 60.0
HELD = "teragpt.io/held"  # a finalizer


def kubeconfig(path: Path, server: str, namespace: str = "default", token: str = "secret") -> Path:
    """A kubeconfig for a server on loopback."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": server}}],
        "users": [{"name": "me", "user": {"token": token}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": namespace}}],
    }
    path.write_text(json.dumps(config), "utf-8")
    return path


def eventually(look: Callable[[], T], deadline_s: float = DEADLINE_S) -> T:
    """What `look` returns once it neither raises nor is false."""
    deadline = time.monotonic() + deadline_s
    while True:
        try:
            if found := look():
                return found
            problem: object = "it stayed false"
        except (AssertionError, LookupError, Unavailable) as error:
            problem = error
        assert time.monotonic() < deadline, problem
        time.sleep(0.01)


def manifest(
    name: str, *, kind: Kind = "PyTorchJob", nodes: int = 1, run: str = "run_1", attempt: int = 1, **more: Any
) -> Manifest:
    """An attempt's object."""
    usual: dict[str, Any] = {"cpus_per_node": 4, "memory_per_node": 8 << 30, "image": "trainer"}
    return render(
        Attempt(
            run_id=run,
            name=name,
            attempt=attempt,
            nodes=nodes,
            processes_per_node=1,
            spec={"size": "tiny"},
            run_url="http://127.0.0.1:8000/v1/runs/run_1",
            spec_hash="hash",
            kind=kind,
            audience="teragpt",
            **{"gpus_per_node": 0, **usual, **more},
        )
    )


def watched(archive: Path, **given: Any) -> KubernetesCluster:
    """A backend that looks after its objects, and keeps their logs in a folder."""
    made = KubernetesCluster(archive=Folder(archive), **given)
    made.watch(lambda: None)
    return made


class Hands:
    """Everything that a cluster does to objects and pods."""

    def __init__(self, connection: Connection) -> None:
        self._api, self._namespace = connection, connection.namespace

    def hold(self, of: Manifest) -> None:
        """Nobody removes the object but `remove`."""
        self._edit(resource_of(of), of["metadata"]["name"], lambda raw: raw["metadata"].update(finalizers=[HELD]))

    def make_pods(self, of: Manifest, indices: Iterable[int]) -> list[str]:
        """The pods of an object, as its controller makes them; their names."""
        return [self.make_pod(of, index) for index in indices]

    def make_pod(self, of: Manifest, index: int) -> str:
        """One of them. No real scheduler or kubelet touches it, and nobody removes it but `remove_pod`."""
        name, labels = of["metadata"]["name"], dict(of["metadata"]["labels"])
        if of["kind"] == "PyTorchJob":
            role, number = ("worker", index - 1) if index else ("master", 0)
            labels |= {REPLICA_TYPE: role, REPLICA_INDEX: str(number)}
            pod = f"{name}-{role}-{number}"
        else:
            labels |= {COMPLETION_INDEX: str(index)}
            pod = f"{name}{'-node-0' if of['kind'] == 'TrainJob' else ''}-{index}-abcde"
        owner = self._api.call("GET", resource_of(of).path(self._namespace, name))
        reference = {"apiVersion": of["apiVersion"], "kind": of["kind"], "name": name, "uid": owner["metadata"]["uid"]}
        metadata = {"name": pod, "labels": labels, "finalizers": [HELD]}
        metadata["ownerReferences"] = [{**reference, "controller": True, "blockOwnerDeletion": True}]
        container = {"name": "node" if of["kind"] == "TrainJob" else "pytorch", "image": "trainer"}
        spec: dict[str, Any] = {"containers": [{**container, "resources": {"requests": {"cpu": "4", "memory": "8Gi"}}}]}
        spec |= {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "schedulerName": "hands"}
        self._api.call(
            "POST", PODS.path(self._namespace), {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        )
        return pod

    def bind(self, pod: str, node: str = "node-a") -> None:
        """The scheduler's word."""
        raw = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": pod},
            "target": {"kind": "Node", "name": node},
        }
        try:
            self._api.call("POST", PODS.path(self._namespace, pod, "binding"), raw)
        except Refused as error:
            if error.status != 404:  # the small server knows no bindings
                raise
            self._edit(PODS, pod, lambda found: found["spec"].update(nodeName=node))

    def status(self, pod: str, **status: Any) -> None:
        """What the kubelet or the scheduler says of a pod."""
        self._edit(PODS, pod, lambda raw: raw.setdefault("status", {}).update(status), sub="status")

    def run(self, pod: str) -> None:
        """Its container runs."""
        self.bind(pod)
        self.state(pod, "Running", running={"startedAt": now()})

    def end(self, pod: str, code: int, message: str = "", reason: str = "", **status: Any) -> None:
        """Its container has ended."""
        reason = reason or ("Completed" if code == 0 else "Error")
        ended = {"exitCode": code, "reason": reason, "message": message, "startedAt": now(), "finishedAt": now()}
        self.state(pod, "Failed" if code else "Succeeded", terminated=ended, **status)

    def state(self, pod: str, phase: str, *, init: dict[str, Any] | None = None, **status: Any) -> None:
        """A container's state ("running", "waiting" or "terminated" is the one keyword that must be given)."""
        what = next(key for key in ("running", "waiting", "terminated") if key in status)
        states = [_container("pytorch", {what: status.pop(what)})]
        if init is not None:
            status["initContainerStatuses"] = [_container("init-pytorch", init)]
        self.status(pod, phase=phase, containerStatuses=states, **status)

    def condition(self, of: Manifest, kind: str, reason: str = "", message: str = "") -> None:
        """What the controller says of an object."""
        entry = {"type": kind, "status": "True", "reason": reason, "message": message}
        stamps = dict.fromkeys(("lastTransitionTime", "lastUpdateTime"), now())

        def add(raw: Manifest) -> None:
            raw.setdefault("status", {}).setdefault("conditions", []).append({**entry, **stamps})

        self._edit(resource_of(of), of["metadata"]["name"], add, sub="status")

    def event(self, about: str, kind: str, reason: str, message: str) -> None:
        """Something happened to an object or a pod."""
        name = f"{about}.{time.monotonic_ns():x}"
        raw = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": self._namespace},
            "involvedObject": {"kind": kind, "name": about, "namespace": self._namespace},
            "reason": reason,
            "message": message,
            "type": "Warning",
            "firstTimestamp": now(),
            "lastTimestamp": now(),
        }
        self._api.call("POST", EVENTS.path(self._namespace), raw)

    def remove_pod(self, pod: str) -> None:
        """The pod is gone, whoever else removes it."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
        try:
            self._edit(PODS, pod, lambda raw: raw["metadata"].update(finalizers=[]))
            self._api.call("DELETE", PODS.path(self._namespace, pod), options)
        except Refused as error:
            if error.status != 404:
                raise

    def remove_pods(self, of: Manifest) -> None:
        """All pods of an object."""
        query = {"labelSelector": f"{RUN_ID}={of['metadata']['labels'][RUN_ID]}"}
        for raw in self._api.call("GET", PODS.path(self._namespace), query=query)["items"]:
            self.remove_pod(raw["metadata"]["name"])

    def remove(self, of: Manifest) -> None:
        """The garbage collector's last act on an object that is being deleted, or someone's on one that is not."""
        resource, name = resource_of(of), of["metadata"]["name"]
        try:
            self._edit(resource, name, lambda raw: raw["metadata"].update(finalizers=[]))
            self._api.call("DELETE", resource.path(self._namespace, name), {"propagationPolicy": "Background"})
        except Refused as error:
            if error.status != 404:
                raise

    def orphan(self, of: Manifest, pods: Iterable[str]) -> None:
        """Someone's deletion of an object with --cascade=orphan: these pods of it are nobody's."""
        for pod in pods:
            label = {"PyTorchJob": "training.kubeflow.org/job-name"}.get(of["kind"], "batch.kubernetes.io/job-name")

            def let_go(raw: Manifest, label: str = label) -> None:
                raw["metadata"]["ownerReferences"] = []
                raw["metadata"]["labels"][label] = of["metadata"]["name"]

            self._edit(PODS, pod, let_go)
        self.remove(of)

    def suspend(self, of: Manifest, queue: str) -> None:
        """What Kueue does to an object of its."""

        def change(raw: Manifest) -> None:
            spec = raw["spec"]
            (spec["runPolicy"] if raw["kind"] == "PyTorchJob" else spec)["suspend"] = True
            raw["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = queue

        self._edit(resource_of(of), of["metadata"]["name"], change)

    def _edit(self, resource: Resource, name: str, change: Callable[[Manifest], None], sub: str | None = None) -> None:
        while True:
            raw = self._api.call("GET", resource.path(self._namespace, name))
            change(raw)
            try:
                self._api.call("PUT", resource.path(self._namespace, name, sub), raw)
                return
            except Refused as error:
                if error.status != 409:  # someone else was faster
                    raise


def resource_of(of: Manifest) -> Resource:
    return ATTEMPTS[of["kind"]]


def observed(cluster: KubernetesCluster, name: str) -> ObservedJob:
    """One object, as it is seen now. Raises LookupError and Unavailable."""
    return {job.name: job for job in cluster.observe()}[name]


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _container(name: str, state: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "state": state, "image": "trainer", "imageID": "", "ready": False, "restartCount": 0}
