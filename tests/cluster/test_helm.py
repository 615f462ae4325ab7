"""The chart on a real cluster: taken whole by its API server, installed, tested, upgraded under a run, uninstalled."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from controlplane.client import Client, Run
from tests.cluster import images
from tests.cluster.conftest import RESTRICTED, Cluster, Namespace
from tests.cluster.layout import BIN, CHECKOUT, Failed
from tests.cluster.plane import until
from tests.helm import binary, rendered
from tests.helm.rendered import CASES, CHART

PROMETHEUS = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
GATEWAY = "sigs.k8s.io/gateway-api@v1.6.3"
CRDS = (  # what the parts that are off by default are made of, as their makers publish it
    (GATEWAY, "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml"),
    (PROMETHEUS, "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml"),
    (PROMETHEUS, "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml"),
    (PROMETHEUS, "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml"),
)
ON_REQUEST = ("priorityClassName", "runtimeClassName")  # names of objects that the test's cluster has not
SECONDS = 300
FORBIDDEN = (
    ("get", "secrets"),
    ("create", "pods"),
    ("create", "pods/exec"),
    ("delete", "persistentvolumeclaims"),
    ("create", "roles"),
)


@dataclass(frozen=True)
class Release:
    """The chart in a namespace that admits restricted pods alone, with `values` for this cluster's images."""

    namespace: Namespace
    values: dict[str, Any]

    def helm(self, *arguments: str, values: dict[str, Any] | None = None, program: str = "helm") -> str:
        """What Helm prints. Raises Failed with its error."""
        where = [f"--namespace={self.namespace.name}", f"--kubeconfig={self.namespace.cluster.kubeconfig}"]
        given = json.dumps(self.values | (values or {}))
        done = rendered.helm(*arguments, *where, given=given, program=program, timeout_s=SECONDS)
        if done.returncode:
            raise Failed(f"helm {' '.join(arguments)}: {done.stdout[-4000:]}{done.stderr[-4000:]}{self.log()}")
        return done.stdout

    def apply(self, verb: str, values: dict[str, Any] | None = None, program: str = "helm") -> str:
        """Install or upgrade it, and wait."""
        how = ("--values=-", "--wait", "--timeout=3m")
        return self.helm(verb, "teragpt", str(CHART), *how, values=values, program=program)

    def log(self) -> str:
        """What the control plane last wrote, and what became of its pod."""
        told = (("logs", "deployment/teragpt", "--tail=20"), ("get", "pods,pvc"), ("get", "events"))
        found = []
        for command in told:
            try:
                found.append(self.namespace.kubectl(*command))
            except Failed as failure:
                found.append(str(failure))
        return "\n".join(found)

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client of its API, by the commands that the notes tell."""
        token = self.namespace.kubectl("exec", "deployment/teragpt", "--", "cat", "/data/token").strip()
        where = [f"--kubeconfig={self.namespace.cluster.kubeconfig}", f"--namespace={self.namespace.name}"]
        command = [str(BIN / "kubectl"), *where, "port-forward", "service/teragpt-api", ":8000"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forward:
            try:
                assert forward.stdout is not None
                port = re.search(r"127\.0\.0\.1:(\d+)", forward.stdout.readline())
                assert port is not None
                with Client(f"http://127.0.0.1:{port[1]}", token) as client:
                    yield client
            finally:
                forward.terminate()


@pytest.fixture(scope="session")
def image(cluster: Cluster) -> str:
    """The control plane's image, built from this checkout."""
    given = os.environ.get("TERAGPT_TEST_CONTROLPLANE_IMAGE")
    if not (given or cluster.registry):
        pytest.skip("on another cluster TERAGPT_TEST_CONTROLPLANE_IMAGE names the control plane's image")
    binary.build()
    return given or images.build("controlplane")


@contextmanager
def bare(cluster: Cluster) -> Iterator[Namespace]:
    """A namespace that admits restricted pods alone, with nothing in it."""
    made = Namespace(cluster, f"test-{uuid4().hex[:8]}", "")
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": made.name, "labels": RESTRICTED}})
    try:
        yield made
    finally:
        cluster.kubectl("delete", "namespace", made.name, "--wait=false")
        made.kubectl("delete", "pods", "--all", "--force", "--grace-period=0")
        wide = "clusterroles,clusterrolebindings"
        for each in cluster.read(wide, "--selector=app.kubernetes.io/part-of=teragpt")["items"]:
            if each["metadata"]["name"].startswith(f"{made.name}:"):
                cluster.kubectl("delete", each["kind"], each["metadata"]["name"])


@pytest.fixture(scope="module")
def shared(cluster: Cluster) -> Iterator[Namespace]:
    with bare(cluster) as namespace:
        yield namespace


@pytest.fixture
def release(cluster: Cluster, image: str) -> Iterator[Release]:
    trainer = images.trainer() if cluster.registry else cluster.image
    with bare(cluster) as namespace:
        yield Release(namespace, {"image": parts(image), "trainer": {"image": parts(trainer)}})


@pytest.fixture(scope="session")
def crds(cluster: Cluster) -> Iterator[None]:
    """The kinds of the Prometheus operator and of the Gateway API, for as long as they are needed."""
    binary.build()
    every = [f"--filename={Path(downloaded(module)) / file}" for module, file in CRDS]
    cluster.kubectl("apply", "--server-side", *every)
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", *every)
    yield
    cluster.kubectl("delete", "--wait=false", *every)


def parts(reference: str) -> dict[str, str]:
    """An image's reference as the chart's values say it."""
    registry, _, rest = reference.partition("/")
    repository, _, tag = rest.rpartition(":")
    return {"registry": registry, "repository": repository, "tag": tag}


def downloaded(module: str) -> str:
    """The folder of a Go module."""
    done = subprocess.run(["go", "mod", "download", "-json", module], capture_output=True, text=True, check=True)
    return str(json.loads(done.stdout)["Dir"])


@pytest.mark.usefixtures("crds")
@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_the_api_server_takes_every_object_of_every_case(shared: Namespace, case: Path) -> None:
    values = {key: value for key, value in yaml.safe_load(case.read_text()).items() if key not in ON_REQUEST}
    values.get("runs", {}).pop("namespace", None)
    made = rendered.objects(values, namespace=shared.name)
    for number, pod in enumerate([*rendered.pods(made)]):  # so that the security level looks at each
        spec = {key: value for key, value in pod.items() if key not in {"serviceAccountName", *ON_REQUEST}}
        made.append({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"pod-{number}"}, "spec": spec})
    how = ("--server-side", "--dry-run=server", "--validate=strict", "--filename=-")
    told = shared.kubectl("apply", *how, stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": made}))
    assert told.count("serverside-applied") == len(made)


def test_a_bare_namespace_is_enough(release: Release, cluster: Cluster) -> None:
    said = release.apply("install")
    assert '-d \'{"size": "tiny", "name": "first"}\'' in said
    with release.client() as client:
        assert client.ready()["ready"] is True
        assert client.ready()["components"]["cluster"]["ready"] is True
    pod = release.namespace.read("pods")["items"][0]
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
    told = release.helm("test", "teragpt", "--logs", "--timeout=4m")
    assert "succeeded; 20 points, last checkpoint at step 20" in told
    left_by_uninstall(release, cluster)


def left_by_uninstall(release: Release, cluster: Cluster) -> None:
    """Nothing but what was trained, its history and the runs' own objects; a new release takes them up."""
    secret = release.namespace.kubectl("exec", "deployment/teragpt", "--", "cat", "/data/token")
    release.helm("uninstall", "teragpt", "--wait")
    kinds = "deployments,services,serviceaccounts,roles,rolebindings,configmaps,secrets,persistentvolumeclaims,pods"
    label = "--selector=app.kubernetes.io/instance=teragpt"
    every = release.namespace.read(kinds, label)["items"]
    left = {(each["kind"], each["metadata"]["name"]) for each in every if each["kind"] != "Pod"}  # on their way
    assert left == {("PersistentVolumeClaim", "teragpt-store"), ("PersistentVolumeClaim", "teragpt-runs")}
    wide = cluster.read("clusterroles,clusterrolebindings", label)["items"]
    assert release.namespace.name not in {each["metadata"]["name"].partition(":")[0] for each in wide}
    release.apply("install", program="helm4")
    assert release.namespace.kubectl("exec", "deployment/teragpt", "--", "cat", "/data/token") == secret
    with release.client() as client:
        assert [run["phase"] for run in client.runs()] == ["succeeded"]


def test_an_upgrade_leaves_a_run_that_trains_alone(release: Release) -> None:
    release.apply("install")
    with release.client() as client:
        run = client.create({"size": "tiny", "train": {"steps": 150}})["id"]
        until(lambda: at_step(client.run(run), 10), SECONDS, lambda: f"{client.run(run)}\n{release.log()}")
    pods = release.namespace.uids(run)
    before = release.namespace.read("pods", "--selector=app.kubernetes.io/component=controlplane")["items"]
    release.apply("upgrade", {"settings": {"logLevel": "debug"}}, program="helm4")
    after = release.namespace.read("pods", "--selector=app.kubernetes.io/component=controlplane")["items"]
    assert before[0]["metadata"]["uid"] not in {pod["metadata"]["uid"] for pod in after}, (
        "the control plane is a new one"
    )
    assert release.namespace.uids(run) in (pods, []), "the run's pods are the same"
    with release.client() as client:
        done = until(lambda: ended(client.run(run)), SECONDS, release.log)
        assert (done["phase"], done["attempt"]) == ("succeeded", 1)
        steps = [point["step"] for point in client.metrics(run, keys=["loss"]) if point.get("loss") is not None]
        assert steps == list(range(1, 151)), "no point was lost"


def at_step(run: Run, step: int) -> Run | None:
    return run if run["progress"] and run["progress"]["step"] >= step else ended(run)


def ended(run: Run) -> Run | None:
    return run if run["phase"] in {"succeeded", "failed", "cancelled"} else None


def test_jobs_train_where_they_are_asked_for_under_a_token_that_was_given(release: Release) -> None:
    kind = {"apiVersion": "v1", "kind": "Secret"}
    release.namespace.apply(kind | {"metadata": {"name": "access"}, "stringData": {"bearer": "s3cret-word"}})
    auth = {"existingSecret": "access", "existingSecretKey": "bearer"}
    release.apply("install", {"auth": auth, "runs": {"kind": "Job"}})
    assert release.namespace.kubectl("exec", "deployment/teragpt", "--", "cat", "/data/token").strip() == "s3cret-word"
    told = release.helm("test", "teragpt", "--logs", "--timeout=4m")
    assert '"kind": "Job"' in told
    assert "succeeded; 20 points, last checkpoint at step 20" in told


def test_the_account_may_do_what_runs_need_and_no_more(release: Release) -> None:
    release.apply("install")
    account = f"--as=system:serviceaccount:{release.namespace.name}:teragpt"
    with release.client() as client:
        told = client.clusters()[0]["checks"]
    assert not [check for check in told if not check["ok"]]
    for verb, what in FORBIDDEN:
        with pytest.raises(Failed):
            release.namespace.kubectl("auth", "can-i", verb, what, account, "--quiet")


def test_the_image_runs_with_a_read_only_root_as_a_number(release: Release) -> None:
    release.apply("install")
    inside = ("exec", "deployment/teragpt", "--")
    assert release.namespace.kubectl(*inside, "id", "-u").strip() == "10001"
    with pytest.raises(Failed, match="Read-only file system"):
        release.namespace.kubectl(*inside, "touch", "/opt/teragpt/x")
    listed = release.namespace.kubectl(*inside, "teragpt", "runs", "--json")
    assert json.loads(listed) == []
    for absent in ("torch", "transformers", "pip", "kubernetes.aio"):
        with pytest.raises(Failed, match="No module named"):
            release.namespace.kubectl(*inside, "python", "-c", f"import {absent}")


def test_the_script_for_kind_installs_and_checks_on_a_cluster_that_exists(release: Release, tmp_path: Path) -> None:
    values = tmp_path / "values.json"
    values.write_text(json.dumps(release.values | {"test": {"train": False}}))
    settings = {
        "NAMESPACE": release.namespace.name,
        "HELM_FLAGS": f"--values {values}",
        "KUBECONFIG": str(release.namespace.cluster.kubeconfig),
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    script = [str(CHECKOUT / "deploy/kind.sh"), "chart", "check"]
    done = subprocess.run(script, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + release.log()
    assert "the API answers" in done.stdout
