from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from controlplane.clusters.base import NameConflict, Refusal, Rejected, Traits, Unavailable
from controlplane.domain.errors import InvalidSpec, NotFound, Unauthorized
from controlplane.domain.spec import RunSpec, parse_spec
from controlplane.services import lists, plans, runs
from controlplane.services.attempts import attempt, attempts, authenticate, events, manifest
from controlplane.services.context import Context
from controlplane.services.views import RunView
from teragpt.config import resolve
from tests.controlplane.memory_cluster import MemoryCluster


def test_a_plan_tells_bytes_of_state_and_whether_it_fits(context: Context) -> None:
    small = plans.plan(context, parse_spec({"size": "tiny"}))
    assert small.fits
    assert small.resolved.state_bytes["total"] > 0
    kinds = small.resolved.planned["memory"]["kinds"]
    assert {line.what for line in small.formulas} >= {*kinds, "products", "attention", "checkpoints"}
    assert plans.plan(context, parse_spec({"size": "tiny", "train": {"precision": "fp64"}})).formulas == ()
    big = plans.plan(context, parse_spec({"size": "175b"}))
    assert not big.fits
    assert big.problems[0].pointer == "/size"
    assert big.resolved.parameters > 170e9
    with pytest.raises(InvalidSpec):
        plans.plan(context, parse_spec({"size": "tiny", "train": {"heads": 5}}))


def test_a_preview_shows_what_would_be_sent_and_creates_nothing(context: Context) -> None:
    spec = parse_spec({"size": "tiny", "compute": {"nodes": 2, "processes_per_node": 3, "cpus_per_node": 2}})
    shown = plans.preview(context, spec)
    assert shown.manifest["kind"] == "PyTorchJob"
    assert {pod.rsplit("-", 2)[1] for pod in shown.environment} == {"master", "worker"}
    assert {env["WORLD_SIZE"] for env in shown.environment.values()} == {"6"}
    assert shown.warnings == ("3 ranks share 2 CPUs of a node",)
    assert lists.list_runs(context, lists.Filter()).runs == []


def test_a_preview_warns_of_what_will_wait_or_never_run(
    context: Context, memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "can never run here" in plans.preview(context, parse_spec({"size": "175b"})).warnings[0]
    busy = dataclasses.replace(memory.capacity(), free_cpus=1)
    monkeypatch.setattr(memory, "capacity", lambda: busy)
    warning = plans.preview(context, parse_spec({"size": "tiny"})).warnings[0]
    assert warning == "it will wait: it needs 2 CPUs, and 1 of 4 are free"
    hidden = dataclasses.replace(memory.capacity(), known=False)
    monkeypatch.setattr(memory, "capacity", lambda: hidden)
    (warning,) = plans.preview(context, parse_spec({"size": "tiny"})).warnings
    assert warning == "the cluster does not show its nodes: whether it fits is not known"


KUBERNETES = Traits(
    namespace="lm",
    kinds=("PyTorchJob", "TrainJob", "Job"),
    reasons={"PyTorchJob": "the training operator is installed", "Job": "every cluster has it"},
    shared_folders=False,
    audience="teragpt",
)


@pytest.fixture
def cluster(memory: MemoryCluster) -> MemoryCluster:
    """A Kubernetes cluster with a claim for every run."""
    memory.shown = KUBERNETES
    memory.claims["runs"] = frozenset({"ReadWriteMany"})
    return memory


def on_cluster(**more: Any) -> RunSpec:
    return parse_spec({"size": "tiny", "checkpoint": {"uri": "pvc://runs/mine"}, **more})


@pytest.mark.usefixtures("cluster")
def test_a_preview_on_kubernetes_says_kind_reason_namespace_and_audience(context: Context) -> None:
    shown = plans.preview(context, on_cluster())
    assert (shown.kind, shown.reason) == ("PyTorchJob", "the training operator is installed")
    assert (shown.namespace, shown.audience) == ("lm", "teragpt")
    assert shown.manifest["metadata"]["namespace"] == "lm"
    assert shown.companions == ()
    assert shown.dry_run.result == "accepted"
    assert [env["RANK"] for env in shown.environment.values()] == ["0", "1"]
    assert {env["TERAGPT_RUN_TOKEN_FILE"] for env in shown.environment.values()} == {"/var/run/secrets/teragpt/token"}
    assert "TERAGPT_RUN_TOKEN" not in shown.environment[f"{shown.manifest['metadata']['name']}-master-0"]


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("asked", "kind", "reason", "companions"),
    [
        ({"kind": "Job"}, "Job", "the request asks for it", ["Service"]),
        ({"kind": "TrainJob"}, "TrainJob", "the request asks for it", ["TrainingRuntime"]),
        ({"runtime": "mine"}, "TrainJob", "the request names a runtime of the Kubeflow Trainer", []),
    ],
)
def test_a_preview_shows_what_the_object_needs_beside_it(
    context: Context, asked: dict[str, str], kind: str, reason: str, companions: list[str]
) -> None:
    shown = plans.preview(context, on_cluster(kubernetes=asked))
    assert (shown.kind, shown.manifest["kind"], shown.reason) == (kind, kind, reason)
    assert [one["kind"] for one in shown.companions] == companions
    assert all(one["metadata"]["namespace"] == "lm" for one in shown.companions)


def test_a_kind_is_the_installations_wish_or_what_every_cluster_has(context: Context, cluster: MemoryCluster) -> None:
    wished = dataclasses.replace(context, kind="Job", queue="research")
    shown = plans.preview(wished, on_cluster())
    assert (shown.kind, shown.reason) == ("Job", "the installation asks for it")
    assert shown.manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    cluster.shown = dataclasses.replace(KUBERNETES, kinds=(), reasons={})
    shown = plans.preview(context, on_cluster())
    assert (shown.kind, "nothing is known of this one yet" in shown.reason) == ("Job", True)


def test_what_the_cluster_refuses_is_told_at_the_field_that_it_was_made_from(
    context: Context, cluster: MemoryCluster
) -> None:
    cluster.refuse = Rejected(
        [
            Refusal("spec.pytorchReplicaSpecs.Master.template.spec.priorityClassName", "high", "a class that exists"),
            Refusal("spec.unheardOf", 1, "nothing"),
        ]
    )
    shown = plans.preview(context, on_cluster(scheduling={"priority": "high"}))
    assert shown.dry_run.result == "refused"
    assert [problem.pointer for problem in shown.dry_run.problems] == ["/scheduling/priority", ""]
    assert "got 'high'; allowed: a class that exists" in shown.dry_run.problems[0].detail
    patched = plans.preview(context, on_cluster(pod_overrides={"spec": {"schedulerName": "mine"}}))
    assert [problem.pointer for problem in patched.dry_run.problems] == ["/scheduling/priority", "/pod_overrides"]
    cluster.refuse = NameConflict("the name belongs to another run")
    assert plans.preview(context, on_cluster()).dry_run.problems[0].pointer == "/name"
    cluster.refuse = Unavailable("no answer")
    assert plans.preview(context, on_cluster()).dry_run == plans.DryRun("unknown", detail="no answer")


@pytest.mark.usefixtures("cluster")
def test_what_could_not_be_written_down_is_refused_before_anything_is_made(context: Context) -> None:
    many = [{"name": f"V{number}", "value": "1"} for number in range(200)]
    refused = {
        "/pod_overrides/spec/hostNetwork": on_cluster(pod_overrides={"spec": {"hostNetwork": True}}),
        "/env": on_cluster(env=many, kubernetes={"kind": "TrainJob"}),
        "/limits/ttl_after_finish_s": on_cluster(limits={"ttl_after_finish_s": 3600}, kubernetes={"kind": "TrainJob"}),
    }
    for pointer, spec in refused.items():
        with pytest.raises(InvalidSpec) as caught:
            plans.preview(context, spec)
        assert [problem.pointer for problem in caught.value.problems] == [pointer]


@pytest.mark.usefixtures("cluster")
def test_a_preview_of_many_pods_shows_the_first_ones(context: Context) -> None:
    train = {"global_batch_tokens": 256 * 128}
    spec = on_cluster(compute={"nodes": 100, "cpus_per_node": 0.01, "memory_per_node": 1 << 20}, train=train)
    shown = plans.preview(context, spec)
    assert len(shown.environment) == 64
    assert shown.warnings == ("environment shows the first 64 of 100 pods",)


def test_the_table_of_sizes_is_whole() -> None:
    assert [row["name"] for row in plans.sizes()][:2] == ["tiny", "111m"]


def test_a_manifest_is_the_attempts_and_holds_no_token(context: Context, run: RunView) -> None:
    found = manifest(context, run.id)
    assert found["metadata"]["name"] == run.kubernetes["name"]
    env = {
        one["name"]: one
        for one in found["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]["env"]
    }
    sent = json.loads(env["TERAGPT_SPEC"]["value"])
    assert dataclasses.asdict(resolve(sent)) == run.resolved["config"]
    assert env["TERAGPT_RUN_URL"]["value"] == f"{context.url}/v1/runs/{run.id}"
    assert "secretKeyRef" in env["TERAGPT_RUN_TOKEN"]["valueFrom"]
    assert manifest(context, run.name, 1) == found
    with pytest.raises(NotFound, match="attempt 9"):
        manifest(context, run.id, 9)


def test_attempts_and_events_are_listed_in_order(context: Context, run: RunView) -> None:
    runs.cancel_run(context, run.id)
    assert [one.attempt for one in attempts(context, run.id)] == [attempt(context, run.id).attempt] == [1]
    assert [(one.seq, one.kind) for one in events(context, run.id)] == [(1, "created"), (2, "cancel")]
    assert [one.seq for one in events(context, run.id, after=1)] == [2]
    with pytest.raises(NotFound):
        events(context, "run_x")


def test_a_token_that_is_unknown_is_refused(context: Context, run: RunView) -> None:
    with pytest.raises(Unauthorized):
        authenticate(context, run.id, "guess")


def test_a_preview_of_what_does_not_fit_is_shown_to_the_cluster_all_the_same(
    context: Context, cluster: MemoryCluster
) -> None:
    spec = on_cluster(compute={"nodes": 1, "cpus_per_node": 640, "processes_per_node": 1})
    assert plans.preview(context, spec).dry_run.result == "accepted"
    cluster.refuse = Rejected([Refusal("spec.unheardOf", 1, "nothing")])
    shown = plans.preview(context, spec)
    assert shown.plan.problems
    assert shown.dry_run.result == "refused"
