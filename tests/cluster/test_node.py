"""What a test of TeraGPT may count on from the cluster itself."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.cluster import lifecycle
from tests.cluster.conftest import SCRATCH, Cluster, Namespace, with_claim
from tests.cluster.layout import Failed


def test_the_node_is_ready_and_every_addon_is_available(cluster: Cluster) -> None:
    conditions = {each["type"]: each["status"] for each in cluster.read("node", cluster.node)["status"]["conditions"]}
    found = cluster.read("deployments", "--all-namespaces")["items"]
    available = {each["metadata"]["name"] for each in found if each["status"].get("availableReplicas")}
    assert conditions["Ready"] == "True"
    assert available >= {"training-operator", *(["coredns", "local-path-provisioner"] if cluster.registry else [])}


def test_logs_and_exec_reach_a_pod_that_runs_restricted(namespace: Namespace) -> None:
    namespace.start("one", "sh", "-c", "echo hello; id -u; sleep 100")
    namespace.wait("pod/one", "condition=Ready")
    assert namespace.kubectl("logs", "one") == "hello\n10001\n"
    assert namespace.kubectl("exec", "one", "--", "hostname") == "one\n"
    assert namespace.environment("one")["HOSTNAME"] == "one"


def test_a_pod_finds_another_by_its_headless_name(namespace: Namespace) -> None:
    namespace.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "peers"},
            "spec": {"clusterIP": "None", "selector": {"app": "server"}, "publishNotReadyAddresses": True},
        }
    )
    namespace.start(
        "server",
        "sh",
        "-c",
        "echo found >/tmp/index.html; httpd -f -p 8080 -h /tmp",
        subdomain="peers",
        hostname="server",
    )
    ask = 'until wget -q -O - "http://$(/usr/bin/nslookup server.peers):8080/"; do sleep 0.2; done 2>/dev/null'
    namespace.start("client", "sh", "-c", ask)
    assert namespace.output("client") == "found\n"


def test_a_pod_reaches_a_server_on_this_machine(cluster: Cluster, namespace: Namespace) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"the control plane\n")

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer((cluster.host_address, 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        namespace.start("client", "wget", "-q", "-O", "-", f"http://{cluster.host_address}:{server.server_port}/")
        assert namespace.output("client") == "the control plane\n"
        server.shutdown()


def test_two_pods_share_a_claim_that_many_may_write(cluster: Cluster) -> None:
    with with_claim(cluster) as namespace:
        namespace.start("writer", "sh", "-c", "echo kept >/claim/file; sleep 100", claim=True)
        namespace.start("reader", "sh", "-c", "until cat /claim/file; do sleep 0.2; done 2>/dev/null", claim=True)
        assert namespace.output("reader") == "kept\n"


def test_a_claim_that_names_no_class_gets_the_default_one(namespace: Namespace) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}
    namespace.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "own"}, "spec": spec})
    volume = {"name": "own", "persistentVolumeClaim": {"claimName": "own"}}
    namespace.start("user", "true", volumes=[SCRATCH, volume])
    assert namespace.output("user") == ""
    assert namespace.read("pvc", "own")["status"]["phase"] == "Bound"


def test_a_pod_that_is_not_restricted_is_refused(namespace: Namespace) -> None:
    container = {"name": "main", "image": namespace.cluster.shell}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "lax"}, "spec": {"containers": [container]}}
    with pytest.raises(Failed, match="violates PodSecurity"):
        namespace.apply(pod)


@pytest.mark.alone
@pytest.mark.parametrize("program", ["kubelet", "kube-apiserver", "etcd", "containerd"])
def test_a_killed_program_comes_back_and_pods_live_on(own_cluster: Cluster, namespace: Namespace, program: str) -> None:
    namespace.start("lasting", "sleep", "100")
    namespace.wait("pod/lasting", "condition=Ready")
    before = own_cluster.kill(program)
    lifecycle.wait(f"{program} again", lambda: _pid(program) not in {0, before})
    lifecycle.wait("an answer from the pod", lambda: _answers(namespace, "lasting"))
    assert namespace.read("pod", "lasting")["status"]["containerStatuses"][0]["restartCount"] == 0


def _pid(program: str) -> int:
    try:
        return lifecycle.pid_of(program)
    except Failed:
        return 0


def _answers(namespace: Namespace, pod: str) -> bool:
    try:
        return namespace.kubectl("exec", pod, "--", "echo", "here", timeout_s=5) == "here\n"
    except Failed:
        return False
