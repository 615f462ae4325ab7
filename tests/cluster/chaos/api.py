"""An API server and an etcd of the suite's own, on free ports of loopback: killed, held down, and read behind its back.

Nothing of the shared test cluster is touched but its programs. etcd keeps every revision, so what was ever made is told
by etcd itself, whatever control plane, watches and caches saw of it.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.cluster import pki, programs
from tests.cluster.layout import BIN, SERVICE_NETWORK
from tests.cluster.plane import LEASH
from tests.cluster.supervisor import accepts

NODE = "chaos-node"
NAMESPACE = "chaos"
CLAIM = "runs"
CRD = "base/crds/kubeflow.org_pytorchjobs.yaml"
JOBS = f"/apis/kubeflow.org/v1/namespaces/{NAMESPACE}/pytorchjobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
ACCOUNTS = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts"
ASKED = ("/readyz", *(f"{kind}/none" for kind in (JOBS, PODS, ACCOUNTS)))
KEPT = "/registry/kubeflow.org/pytorchjobs"  # where etcd has them
READY_S = 180.0
HELD = "5s"  # at most, while etcd is away
LEAP = 1_000_000  # revisions that a restored etcd skips: more than were made since the snapshot


class Down(Exception):
    """The API server did not answer, or answered with a 5xx."""


class Server:
    """etcd and kube-apiserver below `folder`. A killed one stays down until `revive`."""

    def __init__(self, folder: Path) -> None:
        programs.provide([*programs.API, "training-operator"])
        self._folder = folder
        self._port, self._etcd, self._peers = free_port(), free_port(), free_port()
        self.address = f"127.0.0.1:{self._port}"
        self._data, self._peer_url = folder / "etcd", f"http://127.0.0.1:{self._peers}"
        pki.make(folder / "pki", "127.0.0.1")
        self.token = pki.tokens(folder / "pki", NODE)["admin"]
        self.tls = ssl.create_default_context(cafile=str(folder / "pki" / "ca.crt"))
        self._http = httpx.Client(
            base_url=f"https://{self.address}",
            headers={"authorization": f"Bearer {self.token}"},
            verify=self.tls,
            timeout=30,
            trust_env=False,
        )
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        try:
            self.revive()
            self._furnish()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        """Its answer; None for what is not there or is not as it was. Raises Down."""
        patch = {"content-type": "application/merge-patch+json"} if method == "PATCH" else {}
        try:
            answer = self._http.request(method, path, json=body, params={"timeout": HELD, **query}, headers=patch)
        except httpx.TransportError as error:
            raise Down(str(error)) from error
        if answer.status_code in {404, 409}:
            return None
        if answer.status_code >= 500 or answer.status_code in {401, 403, 429}:  # also while it starts
            raise Down(answer.text)
        assert answer.is_success, (method, path, answer.text)
        return answer.json()

    def items(self, path: str) -> list[Any]:
        """What is there. Raises Down."""
        return list(self.call("GET", path)["items"])

    def kill(self, program: str) -> None:
        """SIGKILL to `etcd` or `kube-apiserver`."""
        with self._lock:
            process = self._processes.pop(program)
            process.kill()
            process.wait()

    def revive(self) -> None:
        """Have both running, and the API server ready to answer for all that runs are made of."""
        for name, argv in self._programs().items():
            if name not in self._processes:
                log = (self._folder / f"{name}.log").open("ab")
                with log:
                    self._processes[name] = subprocess.Popen(
                        [*LEASH, *argv], stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
                    )
            if name == "etcd":
                wait("etcd", lambda: accepts(f"127.0.0.1:{self._etcd}"))
        wait("the API server", self._ready)

    def revision(self) -> int:
        """etcd's own count of changes."""
        answer = self._ask("kv/range", {"key": _coded("/"), "limit": "1"})
        return int(answer.json()["header"]["revision"])

    def history(self, since: int) -> list[dict[str, Any]]:
        """Every PyTorchJob as it was first stored, made after revision `since`: in etcd's order, deleted ones too."""
        mark = f"{KEPT}~{since}"  # beside the API server's own keys, and inside the range that is watched
        self._ask("kv/put", {"key": _coded(mark), "value": _coded("-")})
        wanted = {"key": _coded(KEPT), "range_end": _coded(f"{KEPT}\x7f"), "start_revision": str(since + 1)}
        found: list[dict[str, Any]] = []
        for event in self._events(wanted):
            if "compact_revision" in event:  # it was restored since
                return self.history(int(event["compact_revision"]))
            key = base64.b64decode(event["kv"]["key"]).decode()
            if key == mark:
                return found
            if event["kv"].get("version") == "1" and "~" not in key:
                found.append(json.loads(base64.b64decode(event["kv"]["value"])))
        raise AssertionError("etcd ended the watch")

    def snapshot(self) -> Path:
        """All that etcd has now, in a file."""
        file = self._folder / "snapshot"
        url = f"http://127.0.0.1:{self._etcd}/v3/maintenance/snapshot"
        with file.open("wb") as out, httpx.stream("POST", url, json={}, timeout=60, trust_env=False) as answer:
            for line in answer.iter_lines():
                out.write(base64.b64decode(json.loads(line)["result"].get("blob", "")))
        return file

    def restore(self, snapshot: Path, since: int) -> list[dict[str, Any]]:
        """Go back to a snapshot, as etcd's manual says; the `history` since a revision, which is lost by that."""
        self.kill("kube-apiserver")
        lost = self.history(since)
        self.kill("etcd")
        shutil.rmtree(self._data)
        argv = [
            *(str(BIN / "etcdutl"), "snapshot", "restore", str(snapshot), f"--data-dir={self._data}"),
            *(f"--initial-cluster=default={self._peer_url}", f"--initial-advertise-peer-urls={self._peer_url}"),
            *(f"--bump-revision={LEAP}", "--mark-compacted"),  # so that no watch goes on as if nothing had been
        ]
        subprocess.run(argv, check=True, capture_output=True)
        self.revive()
        return lost

    def close(self) -> None:
        """End both, the last first. Nothing of them is needed again."""
        for process in reversed(list(self._processes.values())):
            process.kill()
            process.wait()
        self._http.close()

    def _events(self, wanted: dict[str, str]) -> Iterator[dict[str, Any]]:
        url = f"http://127.0.0.1:{self._etcd}/v3/watch"
        with httpx.stream("POST", url, json={"create_request": wanted}, timeout=60, trust_env=False) as answer:
            for line in answer.iter_lines():
                result = json.loads(line)["result"]
                yield from result.get("events", [result] if "compact_revision" in result else [])

    def _ask(self, what: str, body: dict[str, str]) -> httpx.Response:
        return httpx.post(f"http://127.0.0.1:{self._etcd}/v3/{what}", json=body, timeout=60, trust_env=False)

    def _ready(self) -> bool:
        """It has a connection to etcd for each kind, and tries each the less often the longer etcd was away."""
        assert all(process.poll() is None for process in self._processes.values()), self._folder
        try:
            return all(self._http.get(path, timeout=5).status_code in {200, 404} for path in ASKED)
        except httpx.TransportError:
            return False

    def _furnish(self) -> None:
        """What runs need: the kind of their objects, a namespace with an account, a claim, a node."""
        crd = programs.manifests("training-operator") / CRD
        kubeconfig = self._folder / "kubeconfig"
        kubeconfig.write_text(json.dumps(config(f"https://{self.address}", self.token, self._folder / "pki/ca.crt")))
        apply = [str(BIN / "kubectl"), f"--kubeconfig={kubeconfig}", "apply", "--server-side", "-f", str(crd)]
        subprocess.run(apply, check=True, capture_output=True)
        self.call("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        inside = f"/api/v1/namespaces/{NAMESPACE}"
        self.call("POST", ACCOUNTS, {"metadata": {"name": "default"}})
        storage = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        self.call("POST", f"{inside}/persistentvolumeclaims", {"metadata": {"name": CLAIM}, "spec": storage})
        room = {"cpu": "1000", "memory": "4000Gi", "pods": "1000"}
        status = {"allocatable": room, "capacity": room, "conditions": [{"type": "Ready", "status": "True"}]}
        self.call("POST", "/api/v1/nodes", {"metadata": {"name": NODE}})
        self.call("PATCH", f"/api/v1/nodes/{NODE}/status", {"status": status})
        self.call("PATCH", f"/api/v1/nodes/{NODE}", {"spec": {"taints": None}})
        wait("PyTorchJobs", self._serves_jobs)

    def _serves_jobs(self) -> bool:
        try:
            return self.call("GET", JOBS) is not None
        except Down:  # "storage is (re)initializing"
            return False

    def _programs(self) -> dict[str, list[str]]:
        keys, etcd, peers = self._folder / "pki", f"http://127.0.0.1:{self._etcd}", self._peer_url
        return {
            "etcd": [
                str(BIN / "etcd"),
                f"--data-dir={self._data}",
                f"--listen-client-urls={etcd}",
                f"--advertise-client-urls={etcd}",
                f"--listen-peer-urls={peers}",
                f"--initial-advertise-peer-urls={peers}",
                f"--initial-cluster=default={peers}",
                f"--quota-backend-bytes={8 << 30}",
                "--unsafe-no-fsync",  # SIGKILL takes nothing from a file that was written
            ],
            "kube-apiserver": [
                str(BIN / "kube-apiserver"),
                f"--etcd-servers={etcd}",
                "--etcd-compaction-interval=0",  # every revision is kept
                f"--secure-port={self._port}",
                "--bind-address=127.0.0.1",
                f"--tls-cert-file={keys / 'api.crt'}",
                f"--tls-private-key-file={keys / 'api.key'}",
                f"--client-ca-file={keys / 'ca.crt'}",
                f"--token-auth-file={keys / 'tokens.csv'}",
                "--authorization-mode=RBAC",
                f"--service-account-key-file={keys / 'sa.pub'}",
                f"--service-account-signing-key-file={keys / 'sa.key'}",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-cluster-ip-range={SERVICE_NETWORK}",
            ],
        }


def config(server: str, token: str, authority: Path | None = None) -> dict[str, Any]:
    """A kubeconfig for the suite's namespace."""
    trusted = {"certificate-authority": str(authority)} if authority else {}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "chaos",
        "clusters": [{"name": "chaos", "cluster": {"server": server, **trusted}}],
        "users": [{"name": "chaos", "user": {"token": token}}],
        "contexts": [{"name": "chaos", "context": {"cluster": "chaos", "user": "chaos", "namespace": NAMESPACE}}],
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait(what: str, done: Any, timeout_s: float = READY_S) -> None:
    """Until `done`; looked at ten times a second."""
    end = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < end, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(0.1)


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
