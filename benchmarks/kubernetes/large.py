"""How long a job of many nodes takes from its manifest to its last pod, beside the training operator's own limit.

`python -m benchmarks.kubernetes.large [NODES [FLAG=VALUE ...]]` starts an etcd and a kube-apiserver of its own, the
training operator beside them as it is built for tests/cluster, with its own flags and those that are given, and a
control plane. A run of NODES (128) is asked for; what counts is from the creation of its object until the API server
has all its pods, and all their Services. The operator makes the master's pod and Service, then the workers' pods, then
their Services, and may ask --kube-api-qps (20) times a second after --kube-api-burst (30): the limits that are printed.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import yaml

from benchmarks.controlplane.plane import tell
from benchmarks.kubernetes.pods import SEQUENCE, beside
from tests.cluster import programs
from tests.cluster.chaos.api import JOBS, NAMESPACE, NODE, PODS, Server, config, free_port, wait
from tests.cluster.layout import BIN
from tests.cluster.plane import LEASH, until

SYSTEM, SECRET = "kubeflow", "training-operator-webhook-cert"
CERTIFICATES = Path("/tmp/k8s-webhook-server/serving-certs")  # noqa: S108 - the operator's own
USUAL = {"kube-api-qps": 20, "kube-api-burst": 30, "controller-threads": 1}
LONGEST_S = 600.0
SERVICES = f"/api/v1/namespaces/{NAMESPACE}/services"
ROOM = {"cpu": "100000", "memory": "400000Gi", "pods": "100000"}


@contextmanager
def operator(server: Server, folder: Path, kubeconfig: Path, flags: dict[str, int]) -> Generator[None]:
    """The operator, once it works; it makes the certificate of its webhook itself, which nobody can call here."""
    kubectl = [str(BIN / "kubectl"), f"--kubeconfig={kubeconfig}"]
    hooks = [*kubectl, "kustomize", str(programs.manifests("training-operator") / "base/webhook")]
    made = subprocess.run(hooks, check=True, capture_output=True, text=True).stdout
    named = [one for one in yaml.safe_load_all(made) if one["kind"] == "ValidatingWebhookConfiguration"]
    for hook in named[0]["webhooks"]:
        hook["objectSelector"] = {"matchLabels": {"nobody": "nothing"}}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "namespace": SYSTEM}}
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}}
    for raw in (space, secret, *named):
        subprocess.run(
            [*kubectl, "apply", "-f", "-"], input=json.dumps(raw), text=True, check=True, capture_output=True
        )
    ports = {"webhook-server-port": str(free_port())}
    ports |= {name: f"127.0.0.1:{free_port()}" for name in ("metrics-bind-address", "health-probe-bind-address")}
    argv = [str(BIN / "training-operator"), f"--kubeconfig={kubeconfig}", "--enable-scheme=pytorchjob"]
    argv += [f"--{name}={value}" for name, value in {**ports, **flags}.items()]
    with (folder / "operator.log").open("wb") as log:
        process = subprocess.Popen([*LEASH, *argv], stdout=log, stderr=log)
    try:
        _mount(server)
        yield
    except BaseException:
        tell((folder / "operator.log").read_text()[-3000:])
        raise
    finally:
        process.kill()
        process.wait()


def _mount(server: Server) -> None:
    """Put the certificate that the operator made where it looks for it: a kubelet would mount its Secret there."""
    path = f"/api/v1/namespaces/{SYSTEM}/secrets/{SECRET}"
    wait("the certificate", lambda: "tls.crt" in (server.call("GET", path).get("data") or {}), LONGEST_S)
    CERTIFICATES.mkdir(parents=True, exist_ok=True)
    for name, value in server.call("GET", path)["data"].items():
        (CERTIFICATES / name).write_bytes(base64.b64decode(value))


def measured(server: Server, plane: Any, nodes: int) -> dict[str, float]:
    """Ask for a run, and see its object and its pods come: seconds."""
    spec = {"size": "tiny", "compute": {"nodes": nodes}, "train": {"global_batch_tokens": SEQUENCE * nodes}}
    asked = time.monotonic()
    plane.client.create(spec)
    wait("its object", lambda: server.items(JOBS), LONGEST_S)
    made = time.monotonic()
    wait("its first pod", lambda: server.items(PODS), LONGEST_S)
    first = time.monotonic()
    wait("its pods", lambda: len(server.items(PODS)) == nodes, LONGEST_S)
    last = time.monotonic()
    wait("its Services", lambda: len(server.items(SERVICES)) == nodes, LONGEST_S)
    whole = time.monotonic()
    run = next(plane.client.runs())["id"]
    until(lambda: len(plane.client.pods(run)["items"]) == nodes or None, LONGEST_S)
    return {
        "object_s": round(made - asked, 2),
        "first_pod_s": round(first - made, 2),
        "all_pods_s": round(last - made, 2),
        "all_services_s": round(whole - made, 2),
        "pods_a_second": round((nodes - 1) / (last - first), 1),
    }


def main(nodes: int, flags: dict[str, int]) -> None:
    """Print the measurements."""
    used = {**USUAL, **flags}
    with tempfile.TemporaryDirectory() as name, closing(Server(Path(name))) as server:
        folder, status = Path(name), {"allocatable": ROOM, "capacity": ROOM}
        server.call("PATCH", f"/api/v1/nodes/{NODE}/status", {"status": status})
        known = config(f"https://{server.address}", server.token, folder / "pki/ca.crt")
        with beside(folder, known) as (_, plane), operator(server, folder, folder / "config", flags):
            tell(f"{NAMESPACE} has a control plane and an operator")
            found = measured(server, plane, nodes)
    pods, whole = (max(0.0, asked - used["kube-api-burst"]) / used["kube-api-qps"] for asked in (nodes + 1, 2 * nodes))
    about = {
        "command": " ".join(["python", "-m", "benchmarks.kubernetes.large", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}",
        "operator": used,
        "nodes": nodes,
        "operators_limit_s": {"pods": round(pods, 2), "services": round(whole, 2)},
    }
    print(json.dumps({**about, **found}, indent=2))


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 128,
        {name: int(value) for name, _, value in (one.partition("=") for one in sys.argv[2:])},
    )
