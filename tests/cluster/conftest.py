"""The cluster that the tests of this folder run on: ours, brought up where it is not, or the one that KUBECONFIG names.

Another cluster needs TERAGPT_TEST_IMAGE (the trainer's, as its nodes pull it), TERAGPT_TEST_HOST (an address of this
machine that its pods reach) and TERAGPT_TEST_SHARED_CLASS (a ReadWriteMany storage class); TERAGPT_TEST_SHELL names an
image with a shell, by default busybox.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from controlplane.client import TERMINAL
from tests.cluster import images, kubectl, lifecycle, programs, turns
from tests.cluster.layout import HOST_ADDRESS, KUBECONFIG, NODE_NAME
from tests.cluster.plane import Plane
from tests.cluster.turns import turn

if TYPE_CHECKING:
    from tests.cluster.release import Release

RUN_ID = "teragpt.io/run-id"
LONGEST = ("test_chaos.py", "test_runs.py", "test_helm.py", "test_backend_node.py", "test_controlplane_image.py")
LAST = "test_rights.py"
APART = {"test_chaos.py", "test_controlplane_image.py"}  # they use nothing that others do
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "runAsGroup": 10001,
    "seccompProfile": {"type": "RuntimeDefault"},
}
SCRATCH = {"name": "tmp", "emptyDir": {}}
SCRATCH_MOUNT = {"name": "tmp", "mountPath": "/tmp"}  # noqa: S108 (in a pod, a volume of its own)
SIGNAL = "for each in /proc/[0-9]*; do ! grep -qz ^LOCAL_RANK= $each/environ || kill -$0 ${each#/proc/}; done"


@dataclass(frozen=True)
class Cluster:
    """`image` is the trainer's, `shell` one with a shell and the usual commands, `host_address` where pods reach us."""

    kubeconfig: Path
    node: str
    image: str
    shell: str
    registry: str
    host_address: str
    shared_class: str

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_s: float = 60) -> str:
        """What kubectl prints. Raises Failed with its error."""
        return kubectl.must(*arguments, stdin=stdin, timeout_s=timeout_s, kubeconfig=self.kubeconfig)

    def read(self, *arguments: str) -> Any:
        """The object or the list that `kubectl get` finds."""
        return kubectl.read(*arguments, kubeconfig=self.kubeconfig)

    def apply(self, *objects: dict[str, Any]) -> None:
        self.kubectl("apply", "--filename=-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def kill(self, program: str) -> int:
        """SIGKILL to one of our own cluster's programs (kubelet, etcd, …), which comes back. Returns the process."""
        process = lifecycle.pid_of(program)
        os.kill(process, signal.SIGKILL)
        return process


@dataclass(frozen=True)
class Namespace:
    """A namespace that admits restricted pods alone; `claim` is a ReadWriteMany one in it, where it has any."""

    cluster: Cluster
    name: str
    claim: str = ""

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_s: float = 60) -> str:
        return self.cluster.kubectl(f"--namespace={self.name}", *arguments, stdin=stdin, timeout_s=timeout_s)

    def read(self, *arguments: str) -> Any:
        return self.cluster.read(f"--namespace={self.name}", *arguments)

    def apply(self, *objects: dict[str, Any]) -> None:
        self.kubectl("apply", "--filename=-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def pods(self, run: str) -> list[str]:
        """The names of a run's pods, by rank."""
        found = self.read("pods", f"--selector={RUN_ID}={run}")["items"]
        return sorted(pod["metadata"]["name"] for pod in found)

    def uids(self, run: str) -> list[str]:
        found = self.read("pods", f"--selector={RUN_ID}={run}")["items"]
        return sorted(pod["metadata"]["uid"] for pod in found)

    def uids_of(self, component: str) -> set[str]:
        """Those of the pods that are a component of the chart."""
        found = self.read("pods", f"--selector=app.kubernetes.io/component={component}")["items"]
        return {pod["metadata"]["uid"] for pod in found}

    def environment(self, pod: str) -> dict[str, str]:
        """What the pod's first process was started with, as its kernel tells."""
        told = self.kubectl("exec", pod, "--", "cat", "/proc/1/environ")
        return dict(line.split("=", 1) for line in told.split("\0") if line)

    def signal(self, pod: str, signal: str) -> None:
        """Send the pod's ranks the signal of that name, as kill takes it; its first process gets none."""
        self.kubectl("exec", pod, "--", "sh", "-c", SIGNAL, signal)

    def wait(self, what: str, condition: str, timeout_s: int = 120) -> None:
        """Until the condition holds, as `kubectl wait --for` names it."""
        self.kubectl("wait", what, f"--for={condition}", f"--timeout={timeout_s}s", timeout_s=timeout_s + 10)

    def start(
        self,
        name: str,
        *command: str,
        image: str = "",
        claim: bool = False,
        resources: dict[str, Any] | None = None,
        security: dict[str, Any] | None = None,
        **spec: Any,
    ) -> None:
        """A restricted pod that runs the command, by default with a shell's image; with `claim` at /claim.

        `security` changes what SECURITY says; what else is given goes into the pod's spec.
        """
        volumes: list[dict[str, Any]] = [SCRATCH]
        mounts = [SCRATCH_MOUNT]
        if claim:
            volumes.append({"name": "claim", "persistentVolumeClaim": {"claimName": self.claim}})
            mounts.append({"name": "claim", "mountPath": "/claim"})
        container = {
            "name": "main",
            "image": image or self.cluster.shell,
            "command": list(command),
            "resources": resources or {"requests": {"cpu": "100m"}},
            "securityContext": SECURITY | (security or {}),
            "volumeMounts": mounts,
        }
        pod = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "volumes": volumes, **spec}
        metadata = {"name": name, "labels": {"app": name}}
        self.apply(
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {**pod, "containers": [container]}}
        )

    def output(self, pod: str) -> str:
        """What a pod printed, once it succeeded."""
        self.wait(f"pod/{pod}", "jsonpath={.status.phase}=Succeeded")
        return self.kubectl("logs", pod)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "alone: the test harms what others use: none of them runs beside it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: two workers take them one by one. What looks at all that the others did comes last."""
    order = [*LONGEST, "", LAST]
    items.sort(key=lambda item: order.index(item.path.name if item.path.name in order else ""))


class Files(LoadScopeScheduling):  # type: ignore[misc]
    """Each file's tests run one after another. The chaos suite, first, has an API server and etcd of its own."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Files:
    return Files(config, log)


def pytest_sessionfinish() -> None:
    """No more of the shared cluster is used by this worker."""
    turns.leave()


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around the test's timeout
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Who uses the shared cluster takes turns with who harms it: somebody may run other tests on it by hand."""
    if item.path.name in APART:
        return (yield)
    turns.outlast() if item.path.name == LAST else turns.join()
    with turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    asked = os.environ.get("KUBECONFIG")
    if asked and Path(asked) != KUBECONFIG:
        return _elsewhere(Path(asked))
    known = lifecycle.up()
    if not known.image:
        known = replace(known, image=images.trainer())
        lifecycle.note_image(known.image)
    return Cluster(
        Path(known.kubeconfig),
        NODE_NAME,
        known.image,
        images.SHELL.reference,
        known.registry,
        HOST_ADDRESS,
        shared_class="shared",
    )


@pytest.fixture(scope="session")
def controlplane_image(cluster: Cluster) -> str:
    """The control plane's image, built from this checkout."""
    from tests.helm import binary

    given = os.environ.get("TERAGPT_TEST_CONTROLPLANE_IMAGE")
    if not (given or cluster.registry):
        pytest.skip("on another cluster TERAGPT_TEST_CONTROLPLANE_IMAGE names the control plane's image")
    binary.build()
    return given or images.build("controlplane")


@pytest.fixture
def release(cluster: Cluster, controlplane_image: str) -> Iterator[Release]:
    """The chart in a namespace of its own, not yet installed."""
    from tests.cluster.release import released

    with released(cluster, controlplane_image) as made:
        yield made


@pytest.fixture
def own_cluster(cluster: Cluster) -> Cluster:
    """Ours, whose programs a test may kill."""
    if not cluster.registry:
        pytest.skip("the programs of another's cluster are not ours to kill")
    return cluster


@pytest.fixture(scope="session")
def trainer_v2(cluster: Cluster) -> Cluster:
    """The cluster with JobSet and Trainer v2."""
    return _with(cluster, "trainer-v2", "trainjobs.trainer.kubeflow.org")


@pytest.fixture(scope="session")
def fake_nodes(cluster: Cluster) -> Cluster:
    """The cluster with kwok, which plays the kubelet of nodes that are annotated kwok.x-k8s.io/node=fake."""
    return _with(cluster, "kwok", "stages.kwok.x-k8s.io")


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[Namespace]:
    with bare(cluster) as made:
        yield made


@contextmanager
def bare(cluster: Cluster) -> Iterator[Namespace]:
    """A namespace with nothing in it."""
    made = Namespace(cluster, f"test-{uuid4().hex[:8]}")
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": made.name, "labels": RESTRICTED}})
    try:  # a controller that has just lost its API server is late with the account, without which no pod is admitted
        made.kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=120s", timeout_s=130)
        yield made
    finally:
        cluster.kubectl("delete", "namespace", made.name, "--wait=false")
        made.kubectl("delete", "pods", "--all", "--force", "--grace-period=0")


@pytest.fixture(scope="module")
def furnished(cluster: Cluster) -> Iterator[Namespace]:
    """One for all tests of a file."""
    with with_claim(cluster) as made:
        yield made


@pytest.fixture(scope="module")
def server(cluster: Cluster, furnished: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """A control plane beside the cluster, whose runs have that namespace and its claim."""
    settings = {
        "cluster": "kubernetes",
        "kubeconfig": str(cluster.kubeconfig),
        "namespace": furnished.name,
        "image": cluster.image,
        "storage": f"pvc://{furnished.claim}/runs",
    }
    made = Plane(tmp_path_factory.mktemp("plane") / "home", cluster.host_address, settings)
    yield made
    made.stop()


@pytest.fixture
def plane(server: Plane) -> Iterator[Plane]:
    """That control plane; nothing of the test is left running on it."""
    yield server
    for run in server.client.runs():
        if run["phase"] not in TERMINAL:
            server.client.cancel(run["id"])


@contextmanager
def with_claim(cluster: Cluster) -> Iterator[Namespace]:
    """A namespace with a claim that is bound."""
    spec = {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": cluster.shared_class,
        "resources": {"requests": {"storage": "1Gi"}},
    }
    with bare(cluster) as empty:
        made = replace(empty, claim="teragpt-runs")
        made.apply(
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": made.claim}, "spec": spec}
        )
        made.wait(f"pvc/{made.claim}", "jsonpath={.status.phase}=Bound", 60)
        yield made


def _with(cluster: Cluster, extra: str, kind: str) -> Cluster:
    """Installed into our own cluster; another one has it or not."""
    if cluster.registry:
        lifecycle.up(extra=[extra])
    elif not cluster.kubectl("get", "crd", kind, "--ignore-not-found"):
        pytest.skip(f"this cluster has no {extra} ({kind})")
    return cluster


def _elsewhere(kubeconfig: Path) -> Cluster:
    needed = ("TERAGPT_TEST_IMAGE", "TERAGPT_TEST_HOST", "TERAGPT_TEST_SHARED_CLASS")
    if missing := [name for name in needed if name not in os.environ]:
        pytest.exit(f"tests on the cluster of KUBECONFIG={kubeconfig} need {', '.join(missing)}", returncode=2)
    programs.provide(["kubectl"])
    image, host, shared = (os.environ[name] for name in needed)
    nodes = kubectl.read("nodes", kubeconfig=kubeconfig)["items"]
    shell = os.environ.get("TERAGPT_TEST_SHELL", "busybox")
    return Cluster(kubeconfig, nodes[0]["metadata"]["name"], image, shell, "", host, shared)
