"""The chart on a real cluster: taken whole by its API server, installed, tested, upgraded under a run, uninstalled."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane.client import Client
from tests.cluster import images
from tests.cluster.conftest import Cluster, Namespace, bare
from tests.cluster.layout import BIN, CHECKOUT, RUN, Failed
from tests.cluster.plane import until
from tests.cluster.release import SECONDS, Release, at_step, ended, parts, released
from tests.helm import binary, rendered, renders
from tests.helm.rendered import CASES

PROMETHEUS = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
GATEWAY = "sigs.k8s.io/gateway-api@v1.6.3"
CRDS = (  # what the parts that are off by default are made of, as their makers publish it
    (GATEWAY, "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml"),
    (PROMETHEUS, "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml"),
    (PROMETHEUS, "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml"),
    (PROMETHEUS, "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml"),
)
ON_REQUEST = ("priorityClassName", "runtimeClassName")  # names of objects that the test's cluster has not
INDENT = "     "  # of commands in the notes
ASK = 'curl --silent -H "authorization: Bearer $TOKEN" "$URL/runs/first"'
RUNS = f"""until {ASK} | grep '"phase":"running"'; do sleep 1; done"""
FORBIDDEN = (
    ("get", "secrets"),
    ("create", "pods"),
    ("create", "pods/exec"),
    ("delete", "persistentvolumeclaims"),
    ("create", "roles"),
)


@pytest.fixture(scope="module")
def shared(cluster: Cluster) -> Iterator[Namespace]:
    with bare(cluster) as namespace:
        yield namespace


@pytest.fixture(scope="session")
def crds(cluster: Cluster) -> Iterator[None]:
    """The kinds of the Prometheus operator and of the Gateway API, for as long as they are needed."""
    binary.build()
    every = [f"--filename={Path(downloaded(module)) / file}" for module, file in CRDS]
    cluster.kubectl("apply", "--server-side", *every)
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", *every)
    yield
    cluster.kubectl("delete", "--wait=false", *every)


def downloaded(module: str) -> str:
    """The folder of a Go module."""
    done = subprocess.run(["go", "mod", "download", "-json", module], capture_output=True, text=True, check=True)
    return str(json.loads(done.stdout)["Dir"])


@pytest.mark.parametrize("name", renders.RELEASES)
def test_the_api_server_takes_what_kubectl_alone_installs(shared: Namespace, name: str) -> None:
    text = (CHECKOUT / renders.MANIFESTS / name).read_text().replace("namespace: teragpt", f"namespace: {shared.name}")
    how = ("--server-side", "--dry-run=server", "--validate=strict", "--filename=-")
    told = shared.kubectl("apply", *how, stdin=text)
    assert told.count("serverside-applied") == len([each for each in yaml.safe_load_all(text) if each])


@pytest.mark.usefixtures("crds")
@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_the_api_server_takes_every_object_of_every_case(shared: Namespace, case: Path) -> None:
    values = {key: value for key, value in yaml.safe_load(case.read_text()).items() if key not in ON_REQUEST}
    for there in ("namespace", "namespaces"):
        values.get("runs", {}).pop(there, None)
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
    assert '"kind": "PyTorchJob"' in told
    assert "succeeded; 20 points, last checkpoint at step 20" in told
    assert "the run is removed for good, with its files at pvc://teragpt-runs/run_" in told
    assert left_by_the_test(release) == ("", "")
    left_by_uninstall(release, cluster)


def test_the_commands_of_the_notes_do_what_they_say(release: Release, tmp_path: Path) -> None:
    said = release.apply("install")
    commands = [line.removeprefix(INDENT) for line in said.splitlines() if line.startswith(INDENT)]
    played = [f"timeout 60 {line} || test $? = 124" if "--follow" in line else line for line in commands]
    (logs,) = (place for place, line in enumerate(commands) if " logs " in line)
    script = "\n".join(["set -e", "trap 'kill $(jobs -p)' EXIT", *played[:logs], RUNS, *played[logs:]])
    where = {"KUBECONFIG": str(release.namespace.cluster.kubeconfig), "HOME": str(tmp_path)}
    where["PATH"] = f"{BIN}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env=os.environ | where, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{release.log()}"
    assert [line.split()[0] for line in commands].count("teragpt") == 3
    assert '"name":"first"' in done.stdout
    with release.client() as client:
        assert "first" in [run["name"] for run in client.runs()]
        assert len([*client.runs()]) == 2, "one by curl, one by the CLI"


@pytest.mark.parametrize("apart", [False, True], ids=["one namespace", "two namespaces"])
def test_two_releases_leave_each_others_runs_alone(
    release: Release, cluster: Cluster, controlplane_image: str, apart: bool
) -> None:
    with released(cluster, controlplane_image) as other:
        second = other if apart else dataclasses.replace(release, name="second")
        both = (release, second)
        for each in both:
            each.apply("install")
        spec = {"size": "tiny", "train": {"steps": 100_000}, "compute": {"nodes": 1, "processes_per_node": 1}}
        with release.client() as first, second.client() as other_client:
            clients = (first, other_client)
            runs = [client.create(spec)["id"] for client in clients]
            for client, run, each in zip(clients, runs, both, strict=True):
                until(lambda client=client, run=run: at_step(client.run(run), 1), SECONDS, each.log)  # type: ignore[misc]
                assert [one["id"] for one in client.runs()] == [run]
            pods = release.namespace.uids(runs[0])
            other_client.cancel(runs[1])
            until(lambda: ended(other_client.run(runs[1])), SECONDS, second.log)
        second.helm("uninstall", second.name, "--wait")
        with release.client() as first:
            before = first.run(runs[0])["progress"]
            assert before is not None
            until(lambda: at_step(first.run(runs[0]), before["step"] + 1), SECONDS, release.log)
        assert release.namespace.uids(runs[0]) == pods
        assert "not in this store" not in release.namespace.kubectl("logs", release.deployment)


def left_by_the_test(release: Release) -> tuple[str, str]:
    """Files of runs on the claim, and logs of runs in the data folder."""
    mounted = dataclasses.replace(release.namespace, claim="teragpt-runs")
    mounted.start("look", "find", "/claim", "-mindepth", "1", "-path", "*run_*", claim=True)
    files = mounted.output("look")
    logs = "find /data/logs /data/outputs -mindepth 1 -type d"
    return files, release.namespace.kubectl(
        "exec", "deployment/teragpt", "--", "sh", "-c", f"{logs} 2>/dev/null || true"
    )


def left_by_uninstall(release: Release, cluster: Cluster) -> None:
    """Nothing but what was trained, its history and the runs' own objects; a new release takes them up."""
    secret = release.namespace.kubectl("exec", "deployment/teragpt", "--", "cat", "/data/token")
    with release.client() as client:
        assert not [*client.runs()], "the test's own is gone"
        kept = client.create({"size": "tiny", "compute": {"nodes": 1}})["id"]
        client.cancel(kept)
        until(lambda: ended(client.run(kept)), SECONDS, release.log)
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
        assert [run["id"] for run in client.runs()] == [kept]


def test_an_upgrade_and_its_rollback_leave_a_run_that_trains_alone(release: Release) -> None:
    release.apply("install")
    with release.client() as client:
        run = client.create({"size": "tiny", "train": {"steps": 120}, "compute": {"nodes": 1}})["id"]
        until(lambda: at_step(client.run(run), 2), SECONDS, lambda: f"{client.run(run)}\n{release.log()}")
    pods = release.namespace.uids(run)
    before = release.namespace.uids_of("controlplane")
    release.apply("upgrade", {"settings": {"logLevel": "debug"}, "service": {"port": 8080}}, program="helm4")
    assert release.namespace.read("service/teragpt-api")["spec"]["ports"][0]["port"] == 8080
    upgraded = release.namespace.uids_of("controlplane")
    assert not before & upgraded, "the control plane is a new one"
    assert release.namespace.uids(run) in (pods, []), "the run's pods are the same"
    release.helm("rollback", "teragpt", "1", "--wait", "--timeout=3m")
    assert release.namespace.read("service/teragpt-api")["spec"]["ports"][0]["port"] == 8000
    assert not upgraded & release.namespace.uids_of("controlplane"), "the control plane is a new one"
    assert release.namespace.uids(run) in (pods, []), "the run's pods are the same"
    with release.client() as client:
        done = until(lambda: ended(client.run(run)), SECONDS, release.log)
        assert (done["phase"], done["attempt"]) == ("succeeded", 1)
        steps = [point["step"] for point in client.metrics(run, keys=["loss"]) if point.get("loss") is not None]
        assert steps == list(range(1, 121)), "no point was lost"


def test_the_admin_of_a_namespace_installs_it_there_twice_and_is_told_the_values_for_it(release: Release) -> None:
    release.namespace.kubectl("create", "rolebinding", "team", "--clusterrole=admin", "--user=team-admin")
    admin = dataclasses.replace(release, user="team-admin")
    case = yaml.safe_load(next(path for path in CASES if path.stem == "namespace-only").read_text())
    with pytest.raises(Failed, match=r"set rbac\.workloads=false,runs\.kind=Job"):
        admin.helm("install", "teragpt", str(rendered.CHART), "--values=-")
    for name in ("teragpt", "second"):  # their pods need not start: others do
        admin.helm("install", name, str(rendered.CHART), "--values=-", values=case)
    assert len(release.namespace.read("deployments,roles")["items"]) == 4
    for name in ("teragpt", "second"):
        admin.helm("uninstall", name)


def test_a_version_that_cannot_take_up_the_store_leaves_the_old_one_serving(
    release: Release, controlplane_image: str
) -> None:
    release.apply("install")
    before = release.namespace.uids_of("controlplane")
    with pytest.raises(Failed, match="pre-upgrade hooks failed"):
        release.apply("upgrade", {"image": parts(images.broken(controlplane_image))})
    assert "no such luck" in release.namespace.kubectl("logs", "job/teragpt-rehearsal")
    assert release.namespace.uids_of("controlplane") == before
    with release.client() as client:
        assert client.ready()["ready"] is True
    release.apply("upgrade", {"settings": {"logLevel": "debug"}})
    assert "Job" not in {each["kind"] for each in release.namespace.read("jobs")["items"]}


def test_what_keeps_pods_away_is_said_by_name(release: Release) -> None:
    trainer = release.values["trainer"]["image"] | {"tag": "none-such"}
    release.apply("install", {"trainer": {"image": trainer}})
    with release.client() as client:
        told = waits(client, {"size": "tiny", "compute": {"nodes": 1}}, "ImagePullBackOff", release)
        assert "teragpt/trainer:none-such" in told
        release.namespace.kubectl("create", "quota", "team", "--hard=requests.cpu=1")
        told = waits(client, {"size": "tiny", "compute": {"nodes": 1, "cpus_per_node": 1.5}}, "QuotaExceeded", release)
        assert "quota team does not allow" in told
        release.namespace.kubectl("delete", "quota", "team")
        bounds = {"limits": [{"type": "Container", "max": {"memory": "64Mi"}}]}
        release.namespace.apply(
            {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small"}, "spec": bounds}
        )
        told = waits(client, {"size": "tiny", "compute": {"nodes": 1}}, "LimitRange", release)
        assert "maximum memory usage per Container is 64Mi" in told


def waits(client: Client, spec: dict[str, Any], reason: str, release: Release) -> str:
    """What a run says of itself, within half a minute, while it waits for that reason; it is cancelled then."""
    run = client.create(spec)["id"]
    said = until(
        lambda: found if (found := client.run(run))["reason"] == reason else None,
        30,
        lambda: f"{client.run(run)}\n{release.log()}",
    )
    client.cancel(run)
    return str(said["message"])


@pytest.fixture(scope="module")
def standing(cluster: Cluster, controlplane_image: str) -> Iterator[Release]:
    """The release as it is installed by default, for tests that only look."""
    with released(cluster, controlplane_image) as release:
        release.apply("install")
        yield release


def test_the_account_may_do_what_runs_need_and_no_more(standing: Release) -> None:
    account = f"--as=system:serviceaccount:{standing.namespace.name}:teragpt"
    with standing.client() as client:
        told = client.clusters()[0]["checks"]
    assert not [check for check in told if not check["ok"]]
    for verb, what in FORBIDDEN:
        with pytest.raises(Failed):
            standing.namespace.kubectl("auth", "can-i", verb, what, account, "--quiet")


def test_the_image_runs_with_a_read_only_root_as_a_number(standing: Release) -> None:
    inside = ("exec", "deployment/teragpt", "--")
    assert standing.namespace.kubectl(*inside, "id", "-u").strip() == "10001"
    with pytest.raises(Failed, match="Read-only file system"):
        standing.namespace.kubectl(*inside, "touch", "/opt/teragpt/x")
    listed = standing.namespace.kubectl(*inside, "teragpt", "runs", "--json")
    assert json.loads(listed) == []
    absent = ("torch", "transformers", "pip", "kubernetes.aio")
    look = f"import importlib.util; print([*filter(importlib.util.find_spec, {absent})])"
    assert standing.namespace.kubectl(*inside, "python", "-c", look) == "[]\n"


def test_the_script_for_kind_does_the_rest_on_a_cluster_that_exists_with_jobs_and_a_token_that_was_given(
    release: Release, tmp_path: Path
) -> None:
    operator = RUN / "manifests/operator"
    if not operator.exists():
        pytest.skip("the operator's manifests, as this machine can pull its image, are our own cluster's")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "access"}}
    release.namespace.apply(secret | {"stringData": {"bearer": "s3cret-word"}})
    auth = {"existingSecret": "access", "existingSecretKey": "bearer"}
    values = tmp_path / "values.json"
    values.write_text(json.dumps(release.values | {"auth": auth, "runs": {"kind": "Job"}}))
    settings = {
        "OPERATOR": str(operator),
        "NAMESPACE": release.namespace.name,
        "HELM_FLAGS": f"--values {values}",
        "KUBECONFIG": str(release.namespace.cluster.kubeconfig),
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    script = [str(CHECKOUT / "deploy/kind/cluster.sh"), "operator", "chart", "check"]
    done = subprocess.run(script, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + release.log()
    assert "deployment.apps/training-operator condition met" in done.stdout
    assert release.namespace.kubectl("exec", "deployment/teragpt", "--", "cat", "/data/token").strip() == "s3cret-word"
    assert '"kind": "Job"' in done.stdout
    assert "succeeded; 20 points, last checkpoint at step 20" in done.stdout
    until(
        lambda: not release.namespace.read("jobs")["items"] or None, SECONDS, release.log
    )  # the removed run's own too
