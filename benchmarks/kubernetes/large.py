"""How long a job of many nodes takes from its manifest to its last pod, beside the training operator's own limit.

`python -m benchmarks.kubernetes.large [NODES [FLAG=VALUE ...]]` starts an etcd and a kube-apiserver of its own, the
training operator beside them as it is built for tests/cluster, with its own flags and those that are given, and a
control plane. A run of NODES (128) is asked for; what counts is from the creation of its object until the API server
has all its pods. The operator makes a pod and a Service for each node and may ask --kube-api-qps (20) times a second
after --kube-api-burst (30): the limit that is printed.
"""

from __future__ import annotations

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

SYSTEM = "kubeflow"
USUAL = {"kube-api-qps": 20, "kube-api-burst": 30, "controller-threads": 1}
LONGEST_S = 600.0
ROOM = {"cpu": "100000", "memory": "400000Gi", "pods": "100000"}


@contextmanager
def operator(folder: Path, kubeconfig: Path, flags: dict[str, int]) -> Generator[None]:
    """The operator, once it works; it makes the certificate of its webhook itself, which nobody can call here."""
    kubectl = [str(BIN / "kubectl"), f"--kubeconfig={kubeconfig}"]
    hooks = [*kubectl, "kustomize", str(programs.manifests("training-operator") / "base/webhook")]
    made = subprocess.run(hooks, check=True, capture_output=True, text=True).stdout
    named = [one for one in yaml.safe_load_all(made) if one["kind"] == "ValidatingWebhookConfiguration"]
    for hook in named[0]["webhooks"]:
        hook["objectSelector"] = {"matchLabels": {"nobody": "nothing"}}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "training-operator-webhook-cert", "namespace": SYSTEM},
    }
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
        yield
    except BaseException:
        tell((folder / "operator.log").read_text()[-3000:])
        raise
    finally:
        process.kill()
        process.wait()


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
    run = next(plane.client.runs())["id"]
    until(lambda: len(plane.client.pods(run)["items"]) == nodes or None, LONGEST_S)
    return {
        "object_s": round(made - asked, 2),
        "first_pod_s": round(first - made, 2),
        "all_pods_s": round(last - made, 2),
        "pods_a_second": round((nodes - 1) / (last - first), 1),
    }


def main(nodes: int, flags: dict[str, int]) -> None:
    """Print the measurements."""
    used = {**USUAL, **flags}
    with tempfile.TemporaryDirectory() as name, closing(Server(Path(name))) as server:
        folder, status = Path(name), {"allocatable": ROOM, "capacity": ROOM}
        server.call("PATCH", f"/api/v1/nodes/{NODE}/status", {"status": status})
        known = config(f"https://{server.address}", server.token, folder / "pki/ca.crt")
        with beside(folder, known) as (_, plane), operator(folder, folder / "config", flags):
            tell(f"{NAMESPACE} has a control plane and an operator")
            found = measured(server, plane, nodes)
    limit = max(0.0, 2 * nodes - used["kube-api-burst"]) / used["kube-api-qps"]
    about = {
        "command": " ".join(["python", "-m", "benchmarks.kubernetes.large", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}",
        "operator": used,
        "nodes": nodes,
        "operators_limit_s": round(limit, 2),
    }
    print(json.dumps({**about, **found}, indent=2))


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 128,
        {name: int(value) for name, _, value in (one.partition("=") for one in sys.argv[2:])},
    )
