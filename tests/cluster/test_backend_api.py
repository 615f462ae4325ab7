"""The Kubernetes backend against a real API server; what controllers and kubelets do is done by hand.

Needs no node: `python -m tests.cluster up --only api`. On a whole cluster `managedBy` keeps the controllers' hands off.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from controlplane.clusters.base import Caller, Manifest, Rejected
from controlplane.clusters.kubernetes import KubernetesCluster
from controlplane.clusters.kubernetes.connection import Connection, Refused
from controlplane.clusters.kubernetes.identity import Callers
from controlplane.clusters.kubernetes.submission import DRY, STRICT, Submission
from controlplane.render.models import ATTEMPT
from tests.cluster import programs
from tests.cluster.kubectl import kubectl, must
from tests.cluster.layout import KUBECONFIG
from tests.controlplane.clusters.kubernetes.hands import Hands, eventually, observed, watched
from tests.controlplane.clusters.kubernetes.scenarios import Make, Scenarios

CRD = "base/crds/kubeflow.org_pytorchjobs.yaml"


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    """One of our own, with the account that pods get, on a server that knows PyTorchJobs."""
    if kubectl("get", "crd", "pytorchjobs.kubeflow.org").returncode:
        programs.provide(["training-operator"])
        must("apply", "--server-side", "-f", str(programs.manifests("training-operator") / CRD))
        eventually(
            lambda: kubectl("wait", "--for=condition=Established", "crd/pytorchjobs.kubeflow.org").returncode == 0
        )
    name = f"backend-{uuid.uuid4().hex[:8]}"
    must("create", "namespace", name)
    kubectl("create", "serviceaccount", "default", f"--namespace={name}")  # where no controller makes it
    must("get", "serviceaccount", "default", f"--namespace={name}")
    yield name
    must("delete", "namespace", name, "--wait=false")


@pytest.fixture
def connection(namespace: str) -> Iterator[Connection]:
    made = Connection(KUBECONFIG, namespace)
    yield made
    made.close()


@pytest.fixture
def hands(connection: Connection) -> Hands:
    return Hands(connection)


@pytest.fixture(autouse=True)
def _hands_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects are sent as someone else's to reconcile."""
    ours = Submission._ours

    def theirs(self: Submission, manifest: Manifest) -> Manifest:
        sent = ours(self, manifest)
        spec = sent["spec"]
        (spec["runPolicy"] if sent["kind"] == "PyTorchJob" else spec)["managedBy"] = "kueue.x-k8s.io/multikueue"
        return sent

    monkeypatch.setattr(Submission, "_ours", theirs)


@pytest.fixture
def cluster(namespace: str, tmp_path: Path) -> Iterator[KubernetesCluster]:
    made = watched(name="k", kubeconfig=KUBECONFIG, namespace=namespace, archive=tmp_path, instance="us")
    eventually(lambda: made.observe() is not None)
    yield made
    made.close()


class TestAgainstARealServer(Scenarios):
    """Every scenario of the small server too."""

    def test_a_field_that_does_not_exist_is_named(self, cluster: KubernetesCluster, make: Make) -> None:
        one = make(create=False)
        one["spec"]["runPolicy"]["cleanPodPolice"] = "Running"
        with pytest.raises(Rejected) as refused:
            cluster._submission._post(one, STRICT)  # past our own types, which would not let it through
        (problem,) = refused.value.problems
        assert (problem.path, problem.given) == ("spec.runPolicy.cleanPodPolice", "Running")

    def test_a_value_that_cannot_be_is_named_with_what_was_given(self, cluster: KubernetesCluster, make: Make) -> None:
        one = make(kind="Job", create=False)
        one["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "-1"
        with pytest.raises(Rejected) as refused:
            cluster._submission._post(one, DRY)
        problem = refused.value.problems[0]
        assert problem.path.startswith("spec.template.spec.containers[0].resources.limits")
        assert "greater than or equal to 0" in problem.allowed

    def test_pods_that_the_operator_could_not_make_are_refused_by_field(
        self, cluster: KubernetesCluster, make: Make
    ) -> None:
        """The schema of a PyTorchJob says nothing of what its pods may be."""
        one = make(create=False)
        cluster.dry_run(one)
        container = one["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]
        container["volumeMounts"] = [{"name": "nobody", "mountPath": "/x"}]
        with pytest.raises(Rejected) as refused:
            cluster.dry_run(one)
        (problem,) = refused.value.problems
        path = "spec.pytorchReplicaSpecs.Master.template.spec.containers[0].volumeMounts[0].name"
        assert (problem.path, problem.given) == (path, "nobody")

    def test_a_job_has_its_headless_service(
        self, cluster: KubernetesCluster, make: Make, connection: Connection
    ) -> None:
        make(kind="Job", nodes=2)
        make(kind="Job", nodes=2)
        found = connection.call("GET", f"/api/v1/namespaces/{connection.namespace}/services/teragpt")
        assert found["spec"]["clusterIP"] == "None"
        assert found["spec"]["publishNotReadyAddresses"]
        del cluster

    def test_a_dry_run_meets_what_is_there_already(self, cluster: KubernetesCluster, make: Make) -> None:
        one = make()
        cluster.dry_run(one)
        other = json.loads(json.dumps(one))
        other["metadata"]["labels"][ATTEMPT] = "2"
        with pytest.raises(Exception, match="is not this attempt's"):
            cluster.dry_run(other)

    def test_a_token_of_our_audience_names_its_pod_and_others_nobody(
        self, cluster: KubernetesCluster, hands: Hands, make: Make, connection: Connection
    ) -> None:
        one = make()
        (pod,) = hands.make_pods(one, [0])
        uid = connection.call("GET", f"/api/v1/namespaces/{connection.namespace}/pods/{pod}")["metadata"]["uid"]

        def token(audience: str) -> str:
            bound = {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}
            spec = {"audiences": [audience], "expirationSeconds": 600, "boundObjectRef": bound}
            asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
            path = f"/api/v1/namespaces/{connection.namespace}/serviceaccounts/default/token"
            return str(connection.call("POST", path, asked)["status"]["token"])

        caller = cluster.authenticate(token("teragpt"))
        assert caller is not None
        assert (caller.pod, caller.uid) == (pod, uid)
        assert cluster.authenticate(token("someone-else")) is None
        assert cluster.authenticate("no token at all") is None

    def test_objects_and_their_pods_are_listed_in_pages_and_kept_up_to_date(
        self, cluster: KubernetesCluster, hands: Hands, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        from controlplane.clusters.kubernetes import informer

        monkeypatch.setattr(informer, "PAGE", "7")
        made = [make(nodes=1) for _ in range(20)]
        for one in made:
            hands.make_pods(one, [0])
        other = watched(
            name="k2",
            kubeconfig=KUBECONFIG,
            namespace=cluster.traits().namespace,
            archive=tmp_path / "2",
            instance="us",
        )
        try:
            eventually(other.observe)
            names = {one["metadata"]["name"] for one in made}
            assert names <= {job.name for job in other.observe()}
            assert all(job.pods[0].uid for job in other.observe() if job.name in names)
        finally:
            other.close()

    def test_a_watch_goes_on_after_the_server_closed_it(
        self,
        namespace: str,
        hands: Hands,
        make: Make,
        cluster: KubernetesCluster,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from controlplane.clusters.kubernetes import informer

        monkeypatch.setattr(informer, "WATCH_S", (1, 1))
        other = watched(name="k2", kubeconfig=KUBECONFIG, namespace=namespace, archive=tmp_path / "2", instance="us")
        try:
            eventually(lambda: other.observe() is not None)
            begun = time.monotonic()
            while time.monotonic() - begun < 2.5:  # two watches' lives
                one = make()
                (pod,) = hands.make_pods(one, [0])
                eventually(lambda: observed(other, one["metadata"]["name"]).pods[0].uid)  # noqa: B023 - at once
                hands.remove_pod(pod)
        finally:
            other.close()
        del cluster

    def test_a_claims_access_modes(self, cluster: KubernetesCluster, connection: Connection) -> None:
        claim = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "runs"},
            "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
        }
        connection.call("POST", f"/api/v1/namespaces/{connection.namespace}/persistentvolumeclaims", claim)
        assert cluster.access_modes("runs", cluster.traits().namespace) == frozenset({"ReadWriteMany"})
        assert cluster.access_modes("nothing", cluster.traits().namespace) is None

    def test_checks_speak_of_everything(self, cluster: KubernetesCluster) -> None:
        found = {check.name: check for check in cluster.checks()}
        assert found["api server"].ok
        assert "Kubernetes v1." in found["api server"].detail
        assert found["kind PyTorchJob"].ok
        assert found["may get pods/log"].ok
        assert found["tokens of pods"].ok
        assert all(check.mend for check in found.values() if not check.ok)

    def test_an_account_with_the_least_rights_is_enough(
        self, cluster: KubernetesCluster, namespace: str, connection: Connection, tmp_path: Path, make: Make
    ) -> None:
        """A Role in one namespace; kinds that it does not name are not used, nodes stay unknown."""
        must("create", "serviceaccount", "teragpt", f"--namespace={namespace}")
        jobs = "--resource=pytorchjobs.kubeflow.org"
        verbs = "--verb=create,get,list,watch,delete"
        must("create", "role", "teragpt", verbs, jobs, f"--namespace={namespace}")
        must("create", "role", "reader", "--verb=get,list,watch", "--resource=pods,events", f"--namespace={namespace}")
        for role in ("teragpt", "reader"):
            account = f"--serviceaccount={namespace}:teragpt"
            must("create", "rolebinding", role, f"--role={role}", account, f"--namespace={namespace}")
        token = must("create", "token", "teragpt", f"--namespace={namespace}").strip()
        config = json.loads(KUBECONFIG.read_text())
        config["users"][0]["user"] = {"token": token}
        least = tmp_path / "kubeconfig"
        least.write_text(json.dumps(config))
        other = watched(name="least", kubeconfig=least, namespace=namespace, archive=tmp_path / "2", instance="us")
        try:
            eventually(lambda: other.observe() is not None)
            eventually(lambda: other.traits().kinds == ("PyTorchJob",))
            assert "may not create" in other.traits().reasons["Job"]
            one = make()
            eventually(lambda: observed(other, one["metadata"]["name"]))
            assert not other.capacity().known
            missing = {check.name: check for check in other.checks() if not check.ok}
            assert "Role" in missing["may get pods/log"].mend
            assert "tokens of pods" not in missing, "the API server's keys may be read"
        finally:
            other.close()
        with pytest.raises(Refused, match="403"):
            Connection(least, namespace).call("GET", f"/api/v1/namespaces/{namespace}/secrets")
        del cluster, connection


def test_a_pod_is_known_by_a_review_of_its_token_and_by_its_signature_for_an_account_without_rights(
    connection: Connection, namespace: str, tmp_path: Path
) -> None:
    here = f"--namespace={namespace}"
    spec = {"schedulingGates": [{"name": "teragpt.io/never"}], "containers": [{"name": "a", "image": "a"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "reports"}, "spec": spec}
    must("apply", here, "--filename=-", stdin=json.dumps(pod))
    uid = must("get", here, "pod/reports", "--output=jsonpath={.metadata.uid}")
    bound = ("--bound-object-kind=Pod", "--bound-object-name=reports", f"--bound-object-uid={uid}")
    ours = must("create", here, "token", "default", "--audience=teragpt", *bound).strip()
    others = must("create", here, "token", "default", *bound).strip()
    unbound = must("create", here, "token", "default", "--audience=teragpt").strip()
    must("create", here, "serviceaccount", "weak")
    file = yaml.safe_load(KUBECONFIG.read_text())
    file["users"][0]["user"] = {"token": must("create", here, "token", "weak").strip()}
    (tmp_path / "weak").write_text(json.dumps(file))
    weak = Connection(tmp_path / "weak", namespace)
    with pytest.raises(Refused, match="cannot create resource"):
        weak.call("POST", "/apis/authentication.k8s.io/v1/tokenreviews", {"spec": {"token": ours}})
    for account in (connection, weak):
        callers = Callers(account, "teragpt", [namespace])
        assert callers.authenticate(ours) == Caller("reports", uid)
        assert [callers.authenticate(token) for token in (others, unbound, ours[:-4], "a.b.c")] == [None] * 4
    weak.close()
    must("delete", here, "pod/reports", "--force", "--grace-period=0")
