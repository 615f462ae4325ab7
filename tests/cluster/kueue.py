"""Plays Kueue: what its controllers do to the objects of one namespace.

Made after `pkg/controller/jobframework`, `pkg/controller/core` and `pkg/scheduler` of Kueue: a Workload for each
object of a queue, quota of CPUs by priority and age, preemption within a ClusterQueue, queues that are stopped or not
there, conditions and messages as theirs. Objects are suspended as they are made by `manifests/kueue/suspend.yaml`.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from controlplane.clusters.kubernetes.connection import Connection, Refused, Trouble
from controlplane.clusters.kubernetes.resources import ATTEMPTS, PODS, Resource
from tests.cluster import kubectl
from tests.cluster.layout import HERE

Raw = dict[str, Any]
GROUP, VERSION = "kueue.x-k8s.io", "v1beta2"
LABEL, PRIORITY = f"{GROUP}/queue-name", f"{GROUP}/priority-class"
WORKLOADS = Resource(GROUP, VERSION, "workloads", "Workload")
LOCAL_QUEUES = Resource(GROUP, VERSION, "localqueues", "LocalQueue")
CLUSTER_QUEUES = Resource(GROUP, VERSION, "clusterqueues", "ClusterQueue")
PRIORITIES = Resource(GROUP, VERSION, "workloadpriorityclasses", "WorkloadPriorityClass")
FOLDER = HERE / "manifests" / "kueue"
EVERY_S = 0.3
SETS = {"Master": "master", "Worker": "worker"}


@contextmanager
def kinds(kubeconfig: Path) -> Iterator[None]:
    """Kueue's kinds on the cluster, and what suspends the objects of its queues."""
    kubectl.must("apply", "--server-side", f"--filename={FOLDER}", kubeconfig=kubeconfig)
    try:
        kubectl.must(
            "wait", "crd", "--selector=teragpt.io/test=kueue", "--for=condition=Established", kubeconfig=kubeconfig
        )
        yield
    finally:
        kubectl.must("delete", f"--filename={FOLDER}", "--ignore-not-found", kubeconfig=kubeconfig)


class Kueue:
    """Looks at its namespace again and again, on a thread, until it is closed. `errors`: what went wrong."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self.errors: list[str] = []
        self._api, self._namespace = Connection(kubeconfig, namespace), namespace
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="kueue", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join(30)
        if self._thread.is_alive():
            self.errors.append("it did not end within 30 s")
        self._api.close()

    def _work(self) -> None:
        while not self._over.wait(EVERY_S):
            try:
                self.step()
            except Trouble:
                continue
            except Refused as error:
                # An object that has gone or changed meanwhile, or a server that is not ready yet, is looked at again.
                if error.status not in {404, 409, 429, 503}:
                    self.errors.append(str(error))
            except Exception:  # noqa: BLE001 - the test that waits for what does not come shall say why
                self.errors.append(traceback.format_exc())

    def step(self) -> None:
        """One look at everything."""
        queues = {one["metadata"]["name"]: one["spec"] for one in self._list(LOCAL_QUEUES)}
        clusters = {one["metadata"]["name"]: one for one in self._list(CLUSTER_QUEUES, everywhere=True)}
        known = {one["metadata"]["ownerReferences"][0]["uid"]: one for one in self._list(WORKLOADS)}
        loads: list[Raw] = []  # one whose object has gone holds no quota, though it waits to be collected
        for kind, resource in ATTEMPTS.items():
            for job in self._list(resource):
                if LABEL in job["metadata"].get("labels", {}) and not job["metadata"].get("ownerReferences"):
                    load = known.get(job["metadata"]["uid"]) or self._made(kind, resource, job)
                    loads.append(self._job(kind, resource, job, load, queues))
        self._schedule(loads, queues, clusters)

    def _job(self, kind: str, resource: Resource, job: Raw, load: Raw, queues: Mapping[str, Raw]) -> Raw:
        """An object follows its Workload."""
        told = conditions(load)
        if ended := {"Succeeded", "Complete", "Failed"} & {name for name, one in conditions(job).items() if one[0]}:
            reason = "Failed" if "Failed" in ended else "Succeeded"
            return self._say(load, Finished=(True, reason, "Job finished"))
        if is_true(told, "Evicted"):
            self._suspend(kind, resource, job, suspended=True)
            if is_true(told, "QuotaReserved") and not self._active(job):
                why, message = told["Evicted"][1:]
                gone = (False, "Pending", message)
                return self._say(load, QuotaReserved=gone, Admitted=gone, Requeued=(why == "Preempted", why, message))
            return load
        if queues.get(load["spec"]["queueName"], {}).get("stopPolicy") == "HoldAndDrain" and is_true(told, "Admitted"):
            return self._say(load, Evicted=(True, "LocalQueueStopped", "The LocalQueue is stopped"))
        self._suspend(kind, resource, job, suspended=not is_true(told, "Admitted"))
        return load

    def _schedule(self, loads: list[Raw], queues: Mapping[str, Raw], clusters: Mapping[str, Raw]) -> None:
        """Reserve quota for who is next, and say to the others why not for them."""
        told = {id(load): conditions(load) for load in loads}
        live = [one for one in loads if not is_true(told[id(one)], "Finished")]
        used = [one for one in live if is_true(told[id(one)], "QuotaReserved")]
        for load in sorted((one for one in live if one not in used), key=_order):
            name = load["spec"]["queueName"]
            if not load["spec"].get("active", True):
                continue
            if message := _blocked(name, queues, clusters):
                self._say(
                    load, QuotaReserved=(False, "Inadmissible", message), Admitted=(False, "NoReservation", message)
                )
                continue
            queue = queues[name]
            cluster = clusters[queue["clusterQueue"]]
            beside = [one for one in used if queues[one["spec"]["queueName"]]["clusterQueue"] == queue["clusterQueue"]]
            lacks = cpus(load) + sum(map(cpus, beside)) - quota(cluster)
            if lacks <= 0:
                used.append(load)
                before = f"Previously: {told[id(load)]['Evicted'][2]}" if "Evicted" in told[id(load)] else ""
                reserved = f"Quota reserved in ClusterQueue {queue['clusterQueue']}, wait time since queued was 1s"
                left = {"Evicted": (False, "QuotaReserved", before)} if before else {}
                load["status"] = {**load.get("status", {}), "admission": {"clusterQueue": queue["clusterQueue"]}}
                self._say(
                    load,
                    QuotaReserved=(True, "QuotaReserved", reserved),
                    Admitted=(True, "Admitted", f"Admitted by ClusterQueue {queue['clusterQueue']}"),
                    **left,
                )
                continue
            short = f"insufficient unused quota for cpu in flavor default, {int(lacks * 1000)}m more needed"
            message = f"couldn't assign flavors to pod set {load['spec']['podSets'][0]['name']}: {short}"
            self._say(load, QuotaReserved=(False, "Pending", message), Admitted=(False, "NoReservation", message))
            self._preempt(load, lacks, beside)

    def _preempt(self, load: Raw, lacks: Decimal, beside: list[Raw]) -> None:
        """Evict those of lower priority, the lowest first, where that gives enough."""
        lower = sorted((one for one in beside if _order(one)[0] > _order(load)[0]), key=_order, reverse=True)
        chosen: list[Raw] = []
        while lower and sum(map(cpus, chosen)) < lacks:
            chosen.append(lower.pop(0))
        if sum(map(cpus, chosen)) < lacks:
            return
        uid, job = load["metadata"]["uid"], load["metadata"]["ownerReferences"][0]["uid"]
        who = f"workload (UID: {uid}, JobUID: {job})"
        message = f"Preempted to accommodate a {who} due to prioritization in the ClusterQueue"
        for one in chosen:
            if not is_true(conditions(one), "Evicted"):
                self._say(one, Evicted=(True, "Preempted", message), Preempted=(True, "InClusterQueue", message))

    def _made(self, kind: str, resource: Resource, job: Raw) -> Raw:
        metadata = job["metadata"]
        owner = {"apiVersion": resource.api_version, "kind": kind, "name": metadata["name"], "uid": metadata["uid"]}
        spec: Raw = {"queueName": metadata["labels"][LABEL], "podSets": pod_sets(kind, job["spec"]), "priority": 0}
        if (name := metadata["labels"].get(PRIORITY)) is not None:
            spec["priority"] = self._api.call("GET", PRIORITIES.path(None, name))["value"]
            spec["priorityClassRef"] = {"group": GROUP, "kind": "WorkloadPriorityClass", "name": name}
        name = f"{kind.lower()}-{metadata['name']}-{metadata['uid'][:5]}"
        body = {
            "apiVersion": WORKLOADS.api_version,
            "kind": "Workload",
            "metadata": {"name": name, "ownerReferences": [{**owner, "controller": True}]},
            "spec": spec,
        }
        return self._api.call("POST", WORKLOADS.path(self._namespace), body)

    def _suspend(self, kind: str, resource: Resource, job: Raw, *, suspended: bool) -> None:
        policy = job["spec"]["runPolicy"] if kind == "PyTorchJob" else job["spec"]
        if bool(policy.get("suspend")) != suspended:
            policy["suspend"] = suspended
            self._api.call("PUT", resource.path(self._namespace, job["metadata"]["name"]), job)

    def _active(self, job: Raw) -> bool:
        """Whether a pod of the object has not ended."""
        labels = job["metadata"]["labels"]
        query = {
            "labelSelector": ",".join(f"{key}={labels[key]}" for key in ("teragpt.io/run-id", "teragpt.io/attempt"))
        }
        found = self._api.call("GET", PODS.path(self._namespace), query=query)["items"]
        return any(pod["status"].get("phase") in ("Pending", "Running") for pod in found)

    def _say(self, load: Raw, **told: tuple[bool, str, str]) -> Raw:
        """The Workload with these conditions, each a status, a reason and a message; written where that is news."""
        known = conditions(load)
        if all(known.get(name) == one for name, one in told.items()):
            return load
        there = {one["type"]: one for one in load.get("status", {}).get("conditions", ())}
        for name, (status, reason, message) in told.items():
            at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            word = {"type": name, "status": str(status), "reason": reason, "message": message}
            there[name] = {**word, "lastTransitionTime": at}
        load["status"] = {**load.get("status", {}), "conditions": [*there.values()]}
        path = WORKLOADS.path(self._namespace, load["metadata"]["name"], "status")
        load.update(self._api.call("PUT", path, load))
        return load

    def _list(self, resource: Resource, *, everywhere: bool = False) -> list[Raw]:
        try:
            found = self._api.call("GET", resource.path(None if everywhere else self._namespace))
        except Refused as error:
            if error.status == 404:  # a kind that this cluster does not have
                return []
            raise
        return list(found["items"])


def conditions(raw: Raw) -> dict[str, tuple[bool, str, str]]:
    """By type: whether it holds, why, and in which words."""
    found = (raw.get("status") or {}).get("conditions") or ()
    return {one["type"]: (one["status"] == "True", one.get("reason", ""), one.get("message", "")) for one in found}


def is_true(told: Mapping[str, tuple[bool, str, str]], name: str) -> bool:
    return name in told and told[name][0]


def pod_sets(kind: str, spec: Raw) -> list[Raw]:
    """As Kueue reads them off an object."""
    if kind == "PyTorchJob":
        roles = spec["pytorchReplicaSpecs"]
        return [
            {"name": SETS[role], "count": one["replicas"], "template": one["template"]} for role, one in roles.items()
        ]
    if kind == "TrainJob":
        container = {"name": "node", "resources": spec["trainer"].get("resourcesPerNode", {})}
        template = {"spec": {"containers": [container]}}
        return [{"name": "node", "count": spec["trainer"]["numNodes"], "template": template}]
    return [{"name": "main", "count": spec["completions"], "template": spec["template"]}]


def cpus(load: Raw) -> Decimal:
    """What its pods ask for in all."""

    def asked(template: Raw) -> Decimal:
        each = (one.get("resources", {}).get("requests", {}).get("cpu", 0) for one in template["spec"]["containers"])
        return sum(map(parse_quantity, each), Decimal(0))

    return sum((one["count"] * asked(one["template"]) for one in load["spec"]["podSets"]), Decimal(0))


def quota(cluster: Raw) -> Decimal:
    flavors = cluster["spec"]["resourceGroups"][0]["flavors"]
    return sum(
        (parse_quantity(one["nominalQuota"]) for one in flavors[0]["resources"] if one["name"] == "cpu"), Decimal(0)
    )


def _blocked(name: str, queues: Mapping[str, Raw], clusters: Mapping[str, Raw]) -> str:
    """Why nothing of a queue is admitted; empty where something may be."""
    if (queue := queues.get(name)) is None:
        return f"LocalQueue {name} doesn't exist"
    if queue.get("stopPolicy", "None") != "None":
        return f"LocalQueue {name} is stopped"
    return "" if queue["clusterQueue"] in clusters else f"ClusterQueue {queue['clusterQueue']} doesn't exist"


def _order(load: Raw) -> tuple[int, str, str]:
    """By priority, then by age, as Kueue's queues are."""
    return -load["spec"].get("priority", 0), load["metadata"]["creationTimestamp"], load["metadata"]["name"]
