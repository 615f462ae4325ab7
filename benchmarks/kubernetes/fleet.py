"""Nodes and pods that nobody runs, on a real API server: an operator that makes pods, kwok as all their kubelets.

kwok has pods run as soon as they have a node, and removes those that are deleted; what happens to one later is patched
in. Their logs are a few lines that do not grow, served as a kubelet serves them, since it is asked for them.
"""

from __future__ import annotations

import copy
import itertools
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.cluster import programs
from tests.cluster.chaos.api import JOBS, PODS, Down, Server, config, free_port
from tests.cluster.layout import BIN
from tests.cluster.plane import LEASH

ROLE, INDEX = "training.kubeflow.org/replica-type", "training.kubeflow.org/replica-index"
ROOM = {"cpu": "1000", "memory": "4000Gi", "pods": "1000", "nvidia.com/gpu": "8000"}
PODS_OF_A_NODE = 100
NODES = 200  # that the stand-in has
AT_ONCE = 8
PLAYED = "kwok.x-k8s.io/node"
STAGES = ("node/fast/node-initialize", "pod/fast/pod-ready", "pod/fast/pod-delete")
LOOK_S = 0.2
FOLLOWED_S = 30.0  # that a followed log is kept open for, with nothing in it
LINES = 20
NOW = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}


class Kubelet(ThreadingHTTPServer):
    """Serves the log of every pod, over TLS; `reads` counts how often one was asked for."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, keys: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Logs)
        self.reads = itertools.count()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(keys / "api.crt", keys / "api.key")
        self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.serve_forever, name="kubelet", daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever leaves in the middle of a log is no error."""


class _Logs(BaseHTTPRequestHandler):
    """One connection of the API server."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        """A pod's log: GET /containerLogs/NAMESPACE/POD/CONTAINER."""
        assert isinstance(self.server, Kubelet)
        next(self.server.reads)
        query = parse_qs(urlsplit(self.path).query)
        since = query.get("sinceTime", [""])[0].removesuffix("Z")
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in LOG:
            if line.decode() >= since:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
        if "follow" in query:
            time.sleep(FOLLOWED_S)
        self.wfile.write(b"0\r\n\r\n")


class Fleet:
    """Works until `close`, with its files in `folder`. `names` are those of the pods that were made."""

    def __init__(self, server: Server, folder: Path, pods: int) -> None:
        self._server, self._kubelet = server, Kubelet(folder / "pki")
        self._kwok = self._play(folder)
        self._pool = ThreadPoolExecutor(AT_ONCE, "fleet")
        self.names: list[str] = []
        self._had: set[str] = set()
        self._stopping = threading.Event()
        self._nodes = [f"fake-{number}" for number in range(-(-pods // PODS_OF_A_NODE) + 1)]
        list(self._pool.map(self._join, self._nodes))
        self._thread = threading.Thread(target=self._work, name="operator", daemon=True)
        self._thread.start()

    @property
    def reads(self) -> int:
        """How often a log was asked for."""
        return next(self._kubelet.reads)

    def flip(self, name: str, *, running: bool) -> None:
        """Have a pod's container run, or start."""
        state = {"running": {"startedAt": now()}} if running else {"waiting": {"reason": "ContainerCreating"}}
        self._server.call("PATCH", f"{PODS}/{name}/status", {"status": {"containerStatuses": [container(state)]}})

    def close(self) -> None:
        """Stop. What is there stays."""
        self._stopping.set()
        self._thread.join()
        self._pool.shutdown()
        self._kubelet.shutdown()
        self._kubelet.server_close()
        self._kwok.kill()
        self._kwok.wait()

    def _play(self, folder: Path) -> subprocess.Popen[bytes]:
        programs.provide(["kwok"])
        known = folder / "kwok.config"
        known.write_text(
            json.dumps(config(f"https://{self._server.address}", self._server.token, folder / "pki/ca.crt"))
        )
        argv = [str(BIN / "kwok"), f"--kubeconfig={known}", f"--manage-nodes-with-annotation-selector={PLAYED}=fake"]
        argv += [f"--config={programs.manifests('kwok') / 'stage' / stage}.yaml" for stage in STAGES]
        argv += ["--node-ip=127.0.0.1", f"--node-port={self._kubelet.server_address[1]}", "--v=WARN"]
        argv += [f"--server-address=127.0.0.1:{free_port()}"]  # else it would serve logs there itself
        with (folder / "kwok.log").open("wb") as log:
            return subprocess.Popen([*LEASH, *argv], stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def _join(self, node: str) -> None:
        named = {"metadata": {"name": node, "annotations": {PLAYED: "fake"}}}
        self._server.call("POST", "/api/v1/nodes", {**named, "status": {"allocatable": ROOM, "capacity": ROOM}})
        self._server.call("PATCH", f"/api/v1/nodes/{node}", {"spec": {"taints": None}})

    def _work(self) -> None:
        while not self._stopping.wait(LOOK_S):
            with suppress(Down):
                for job in self._server.items(JOBS):
                    if "deletionTimestamp" in job["metadata"]:
                        self._collect(job)
                    elif job["metadata"]["uid"] not in self._had:
                        self._operate(job)

    def _operate(self, job: Any) -> None:
        """Make the object's pods, which run once they are there."""
        self.names += self._pool.map(self._run, pods_of(job))
        self._had.add(job["metadata"]["uid"])

    def _run(self, pod: Any) -> str:
        name = str(pod["metadata"]["name"])
        del pod["status"]
        pod["spec"]["nodeName"] = self._nodes[hash(name) % len(self._nodes)]
        self._server.call("POST", PODS, pod)
        return name

    def _collect(self, job: Any) -> None:
        """Foreground deletion: its pods first."""
        owner, name = job["metadata"]["uid"], job["metadata"]["name"]
        its = [pod["metadata"]["name"] for pod in self._server.items(PODS) if _owner(pod) == owner]
        list(self._pool.map(lambda pod: self._server.call("DELETE", f"{PODS}/{pod}", NOW), its))
        self.names = [other for other in self.names if other not in its]
        self._server.call("PATCH", f"{JOBS}/{name}", {"metadata": {"finalizers": None}})


def pods_of(job: Any) -> Iterator[dict[str, Any]]:
    """The pods that the operator makes of a job, as they are when they run."""
    metadata = job["metadata"]
    owner = {"apiVersion": job["apiVersion"], "kind": job["kind"], "name": metadata["name"], "uid": metadata["uid"]}
    kinds = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    for role, spec in job["spec"]["pytorchReplicaSpecs"].items():
        template = spec["template"]
        for number in range(spec.get("replicas", 1)):
            labels = {**(template.get("metadata") or {}).get("labels", {}), ROLE: role.lower(), INDEX: str(number)}
            name = f"{metadata['name']}-{role.lower()}-{number}"
            yield {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": name,
                    "labels": labels,
                    "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
                },
                "spec": copy.deepcopy(template["spec"])
                | {"restartPolicy": "Never", "nodeName": f"node-{hash(name) % NODES}"},
                "status": {
                    "phase": "Running",
                    "conditions": [{"type": kind, "status": "True", "lastTransitionTime": now()} for kind in kinds],
                    "hostIP": "127.0.0.1",
                    "podIPs": [{"ip": "10.0.0.1"}],
                    "startTime": now(),
                    "containerStatuses": [container({"running": {"startedAt": now()}})],
                },
            }


def _owner(pod: Any) -> str:
    return str(pod["metadata"]["ownerReferences"][0]["uid"])


def container(state: Any) -> dict[str, Any]:
    """A container's status."""
    digest = f"sha256:{'0' * 64}"
    return {
        "name": "pytorch",
        "state": state,
        "ready": "running" in state,
        "started": "running" in state,
        "restartCount": 0,
        "image": "teragpt/trainer:latest",
        "imageID": f"docker.io/teragpt/trainer@{digest}",
        "containerID": f"containerd://{digest}",
    }


def _lines() -> Iterator[bytes]:
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
    for number in range(LINES):
        yield f"{stamp} rank 0 of the fleet says line {number}\n".encode()


def now() -> str:
    """As Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


LOG = tuple(_lines())
