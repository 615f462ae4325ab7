"""The training operator, the garbage collector and a kubelet, in one thread, on the real API server; no proxy between.

Every pod is a thread that behaves as the trainer does: it writes lines, posts metric points with its projected token
until each is acknowledged, and ends with the exit code that its run's variable CHAOS names for the attempt; well only
once every rank of the attempt has come that far. What pods really did is kept in `lives`, which the control plane
never sees.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

import httpx

from controlplane.render.models import ATTEMPT, RUN_ID
from tests.cluster.chaos.api import ACCOUNTS, JOBS, NODE, PODS, Down, Server

TICK_S = 0.1
STEP_S = 0.05
FLUSH_S = 1.0  # that a stopped trainer tries to get its last points through
LINGER_S = 0.6  # at most, between the end of training and a worker's own
AUDIENCE = "teragpt"
NODES = "PET_NNODES"
ROLE, INDEX = "training.kubeflow.org/replica-type", "training.kubeflow.org/replica-index"
STOPPED, KILLED = 143, 137
POINTS = 12  # of an attempt that is not disturbed
NOW = {"gracePeriodSeconds": 0}


@dataclass
class Life:
    """A pod as its node knows it. `sent` and `kept`: its points, and those that the control plane said it has."""

    name: str
    uid: str
    run: str
    attempt: int
    rank: int
    nodes: int  # of its attempt
    code: int  # that it is to end with
    url: str
    began: float = 0.0
    ended: float = 0.0
    exit: int | None = None
    sent: list[dict[str, Any]] = field(default_factory=list)
    kept: int = 0
    trained: bool = False  # it has nothing left to do but to leave together with its peers
    left: bool = False  # together with all of them, so that the attempt's work is done
    lines: list[bytes] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    killed: threading.Event = field(default_factory=threading.Event)
    served: bool = True  # whether the kubelet still has its log

    @property
    def alive(self) -> bool:
        return bool(self.began) and not self.ended


class Node:
    """Works until `close`. `trouble` is what the suite itself could not do."""

    def __init__(self, server: Server, seed: int) -> None:
        self._server, self._chance = server, random.Random(seed)
        self.lives: dict[str, Life] = {}
        self.trouble: list[str] = []
        self._door = threading.Lock()
        self._stopping = threading.Event()
        self._http = httpx.Client(timeout=5, trust_env=False)
        self._thread = threading.Thread(target=self._work, name="node", daemon=True)
        self._thread.start()

    def of_run(self, run: str) -> list[Life]:
        """Its pods that ever ran, in the order in which they began."""
        return sorted((life for life in [*self.lives.values()] if life.run == run and life.began), key=_began)

    def log(self, pod: str, query: str) -> Iterator[bytes] | None:
        """What the kubelet answers for the pod's log."""
        found = [life for life in [*self.lives.values()] if life.name == pod and life.served and life.began]
        return self._lines(found[-1], parse_qs(query)) if found else None

    def close(self) -> None:
        self._stopping.set()
        for life in self.lives.values():
            life.killed.set()
        self._thread.join(10)
        self._http.close()

    def _lines(self, life: Life, query: dict[str, list[str]]) -> Iterator[bytes]:
        since = query.get("sinceTime", [""])[0].removesuffix("Z")
        for place in itertools.count():
            while place >= len(life.lines):
                if "follow" not in query or not life.alive or self._stopping.is_set():
                    return
                time.sleep(STEP_S)
            if life.lines[place].decode()[: len(since)] >= since:
                yield life.lines[place]

    # --- the operator, the collector, the kubelet --------------------------------------------------------------------

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                self._look()
            except Down:
                time.sleep(TICK_S)
            except Exception as error:  # noqa: BLE001 - a fault of the suite's own must end it, not a thread
                self.trouble.append(f"{type(error).__name__}: {error}")
            time.sleep(TICK_S)

    def _look(self) -> None:
        jobs = {job["metadata"]["uid"]: job for job in self._server.items(JOBS)}
        pods = self._server.items(PODS)
        for job in jobs.values():
            its = [pod for pod in pods if _owner(pod) == job["metadata"]["uid"]]
            if "deletionTimestamp" in job["metadata"]:
                self._collect(job, its)
            else:
                self._operate(job, its)
        for pod in pods:
            if _owner(pod) not in jobs and "deletionTimestamp" not in pod["metadata"]:
                self._fresh_orphan(pod)
        there = {pod["metadata"]["uid"] for pod in pods}
        for pod in pods:
            self._tend(pod)
        for life in self.lives.values():
            if life.uid not in there:
                life.killed.set()
                life.served = False

    def _fresh_orphan(self, pod: Any) -> None:
        """Its object is gone, unless it was made after the objects were listed."""
        name = pod["metadata"]["ownerReferences"][0]["name"]
        found = self._server.call("GET", f"{JOBS}/{name}")
        if found is None or found["metadata"]["uid"] != _owner(pod):
            self._server.call("DELETE", f"{PODS}/{pod['metadata']['name']}", _exactly(pod))

    def _collect(self, job: Any, its: list[Any]) -> None:
        """Foreground deletion: its pods first, each with its grace period."""
        for pod in its:
            if "deletionTimestamp" not in pod["metadata"]:
                self._server.call("DELETE", f"{PODS}/{pod['metadata']['name']}", _exactly(pod))
        if not its and job["metadata"].get("finalizers"):
            self._server.call("PATCH", f"{JOBS}/{job['metadata']['name']}", {"metadata": {"finalizers": None}})

    def _operate(self, job: Any, its: list[Any]) -> None:
        """Make what is missing; say how it stands; end workers when the master has, as cleanPodPolicy Running says."""
        name, status = job["metadata"]["name"], job.get("status") or {}
        done = any(one["type"] in {"Succeeded", "Failed"} for one in status.get("conditions") or ())
        phases = {pod["metadata"]["name"]: (pod.get("status") or {}).get("phase") for pod in its}
        ended = "Failed" if "Failed" in phases.values() else None
        ended = "Succeeded" if phases.get(f"{name}-master-0") == "Succeeded" else ended
        if done or ended:
            for pod in its:
                live = phases[pod["metadata"]["name"]] not in {"Succeeded", "Failed"}
                if live and "deletionTimestamp" not in pod["metadata"]:
                    self._server.call("DELETE", f"{PODS}/{pod['metadata']['name']}", _exactly(pod))
            if not done:
                self._condition(name, str(ended))
            return
        for role, spec in job["spec"]["pytorchReplicaSpecs"].items():
            for number in range(spec.get("replicas", 1)):
                if f"{name}-{role.lower()}-{number}" not in phases:
                    self._make(job, role.lower(), number, spec["template"])

    def _make(self, job: Any, role: str, number: int, template: Any) -> None:
        metadata = job["metadata"]
        owner = {"apiVersion": job["apiVersion"], "kind": job["kind"], "name": metadata["name"], "uid": metadata["uid"]}
        labels = {**(template.get("metadata") or {}).get("labels", {}), ROLE: role, INDEX: str(number)}
        about = {
            "name": f"{metadata['name']}-{role}-{number}",
            "labels": labels,
            "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
        }
        count = sum(one.get("replicas", 1) for one in job["spec"]["pytorchReplicaSpecs"].values())
        spec = copy.deepcopy(template["spec"]) | {"restartPolicy": "Never"}
        spec["containers"][0]["env"].append({"name": NODES, "value": str(count)})
        self._server.call("POST", PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": about, "spec": spec})

    def _condition(self, name: str, kind: str) -> None:
        entry = {"type": kind, "status": "True", "reason": f"PyTorchJob{kind}", "message": ""}
        stamps = dict.fromkeys(("lastTransitionTime", "lastUpdateTime"), _now())
        self._server.call("PATCH", f"{JOBS}/{name}/status", {"status": {"conditions": [{**entry, **stamps}]}})

    def _tend(self, pod: Any) -> None:
        metadata, status = pod["metadata"], pod.get("status") or {}
        life = self.lives.get(metadata["uid"])
        deleting, told = "deletionTimestamp" in metadata, status.get("phase") in {"Succeeded", "Failed"}
        if life is None:
            life = self.lives[metadata["uid"]] = _born(pod)
        if not pod["spec"].get("nodeName") and not deleting:
            target = {"target": {"kind": "Node", "name": NODE}, "metadata": {"name": life.name}}
            self._server.call("POST", f"{PODS}/{life.name}/binding", {"apiVersion": "v1", "kind": "Binding", **target})
        elif not life.began and not deleting:
            if self._chance.random() < 0.7:  # else it takes a little longer to start
                life.killed.clear()  # it was gone, and is there again with an older snapshot
                life.began = time.time()
                threading.Thread(target=self._live, args=(life,), name=life.name, daemon=True).start()
        elif life.alive:
            if deleting:
                life.stopping.set()
            if status.get("phase") != "Running":
                self._report(life, "Running", {"running": {"startedAt": _now()}})
        elif deleting and (told or not life.began):
            self._server.call("DELETE", f"{PODS}/{life.name}", _exactly(pod) | NOW)
        elif life.ended and not told:
            said = {"exitCode": life.exit, "reason": "Error" if life.exit else "Completed", "message": _message(life)}
            stamps = {"startedAt": _now(life.began), "finishedAt": _now(life.ended)}
            self._report(life, "Failed" if life.exit else "Succeeded", {"terminated": {**said, **stamps}})

    def _report(self, life: Life, phase: str, state: Any) -> None:
        container = {"name": "pytorch", "state": state, "image": "x", "imageID": "", "ready": False, "restartCount": 0}
        body = {"metadata": {"uid": life.uid}, "status": {"phase": phase, "containerStatuses": [container]}}
        self._server.call("PATCH", f"{PODS}/{life.name}/status", body)

    # --- a pod's own thread -------------------------------------------------------------------------------------------

    def _live(self, life: Life) -> None:
        token = ""
        for step in range(1, POINTS + 1):
            if life.killed.wait(STEP_S) or life.stopping.is_set():
                break
            life.lines.append(_line(f"step {step}/{POINTS} of attempt {life.attempt} on rank {life.rank}"))
            if life.rank == 0:
                life.sent.append({"seq": step, "step": step, "time": time.time(), "loss": 1.0 / step})
                token = self._post(life, token)
            if life.code == KILLED and step == POINTS // 2:
                break
        stopped, until = life.stopping.is_set(), 0.0
        while not life.killed.is_set() and life.rank == 0 and life.kept < len(life.sent) and life.code != KILLED:
            if life.stopping.is_set():  # its grace period is not for ever, and nobody may want its points any more
                until = until or time.time() + FLUSH_S
                stopped = True
                if time.time() > until:
                    break
            token = self._post(life, token)
            time.sleep(2 * STEP_S)
        if not stopped and life.code == 0:
            stopped = not self._leave(life)
        life.exit = KILLED if life.killed.is_set() else STOPPED if stopped else life.code
        life.lines.append(_line(f"ended with {life.exit}"))
        life.ended = time.time()

    def _leave(self, life: Life) -> bool:
        """Through the barrier at the end of training, for which every rank must have come; False when stopped there.

        Ranks leave it one after another: the operator may stop a worker that is still at it when the master has ended.
        """
        life.trained = True
        while not self._meet(life):
            if life.killed.wait(STEP_S) or life.stopping.is_set():
                with self._door:
                    life.trained = life.left
                return False
        lingers_s = random.Random(life.uid).uniform(0, LINGER_S) if life.rank else 0
        return not (life.stopping.wait(lingers_s) or life.killed.is_set())

    def _meet(self, life: Life) -> bool:
        """Whether it may leave; the last one to come opens the door to all."""
        with self._door:
            here = [one for one in self.of_run(life.run) if one.attempt == life.attempt and _waits(one)]
            if len({one.rank for one in here}) == life.nodes:
                for one in here:
                    one.left = True
            return life.left

    def _post(self, life: Life, token: str) -> str:
        """Send what is not acknowledged; the token to go on with."""
        with contextlib.suppress(Down, httpx.TransportError):
            token = token or self._token(life)
            body = {"attempt": life.attempt, "points": life.sent[life.kept :]}
            headers = {"authorization": f"Bearer {token}"}
            answer = self._http.post(f"{life.url}/metrics", json=body, headers=headers)
            if answer.is_success:
                life.kept = max(life.kept, answer.json()["acknowledged"])
            elif answer.status_code not in {401, 503}:
                self.trouble.append(f"{life.name}: its points were refused: {answer.text}")
        return token

    def _token(self, life: Life) -> str:
        bound = {"apiVersion": "v1", "kind": "Pod", "name": life.name, "uid": life.uid}
        spec = {"audiences": [AUDIENCE], "expirationSeconds": 3600, "boundObjectRef": bound}
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        made = self._server.call("POST", f"{ACCOUNTS}/default/token", asked)
        return str(made["status"]["token"]) if made else ""


def _born(pod: Any) -> Life:
    labels = pod["metadata"]["labels"]
    told = {entry["name"]: entry.get("value") or "" for entry in pod["spec"]["containers"][0]["env"]}
    attempt, rank = int(labels[ATTEMPT]), 0 if labels[ROLE] == "master" else int(labels[INDEX]) + 1
    codes = [int(code) for code in told["CHAOS"].split(",")]
    code = codes[min(attempt, len(codes)) - 1]
    return Life(
        pod["metadata"]["name"],
        pod["metadata"]["uid"],
        labels[RUN_ID],
        attempt,
        rank,
        int(told[NODES]),
        code if rank == 0 else 0,
        told["TERAGPT_RUN_URL"],
    )


def _owner(pod: Any) -> str:
    return str(pod["metadata"]["ownerReferences"][0]["uid"])


def _exactly(pod: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": pod["metadata"]["uid"]}}


def _waits(life: Life) -> bool:
    return life.trained and not life.ended and not life.killed.is_set() and not life.stopping.is_set()


def _message(life: Life) -> str:
    return json.dumps({"rank": life.rank, "code": life.exit, "step": len(life.sent)}) if life.exit else ""


def _line(text: str) -> bytes:
    return f"{datetime.now(UTC).strftime('%Y-%m-%dT%H:%M:%S.%f')}000Z {text}\n".encode()


def _now(at: float | None = None) -> str:
    return datetime.fromtimestamp(time.time() if at is None else at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _began(life: Life) -> float:
    return life.began
