"""From what a user asks to a manifest: whatever is accepted can be written down, in every kind."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.domain.errors import InvalidSpec
from controlplane.domain.names import LONGEST_OBJECT_NAME, default_name, new_run_id, object_name
from controlplane.domain.placement import Kind
from controlplane.domain.resolve import ResolvedRun
from controlplane.domain.spec import parse_spec
from controlplane.render import companions_of, environment_of, pods_of, read, render
from controlplane.submission import attempt_of, ensure_renderable
from tests.controlplane.domain.resolving import resolve
from tests.controlplane.render.attempts import KINDS, container, variables

CANARY = "canary-5c1e9d"


@dataclasses.dataclass(frozen=True)
class Unknown:
    cpus: int = 0
    memory: int = 0
    gpus: int = 0
    gpu_type: str | None = None
    largest: tuple[int, int, int] | None = None
    known: bool = False


def resolved(kind: Kind = "PyTorchJob", **spec: Any) -> ResolvedRun:
    body = {"size": "tiny", "kubernetes": {"kind": kind}, **spec}
    return resolve(parse_spec(body), Unknown(), "pvc://runs/x", shared_folders=False, kinds=KINDS)


def manifest(run: ResolvedRun, name: str = "mine", number: int = 1, **more: Any) -> dict[str, Any]:
    run_id = new_run_id()
    made = object_name(name, run_id, number)
    there: dict[str, Any] = {"namespace": "lm", "audience": "teragpt", **more}
    return render(attempt_of(run_id, made, number, run, spec_hash="x", url="http://t", image="i", **there))


@settings(max_examples=100, deadline=None)
@given(name=st.text(min_size=1, max_size=100), number=st.integers(1, 9999), kind=st.sampled_from(KINDS))
def test_a_name_of_any_alphabet_and_length_gives_a_valid_object_of_every_kind(
    name: str, number: int, kind: Kind
) -> None:
    made = manifest(resolved(kind), name, number)
    assert read(made).manifest() == made
    assert len(made["metadata"]["name"]) <= LONGEST_OBJECT_NAME
    assert all(len(pod.name) <= 63 for pod in pods_of(made))


WORDS = st.text(alphabet="abz09", min_size=1, max_size=8)
VALUES = st.text(max_size=12).filter(lambda text: "\0" not in text)  # which no environment can hold
SPECS = st.fixed_dictionaries(
    {},
    optional={
        "compute": st.fixed_dictionaries(
            {},
            optional={
                "nodes": st.integers(1, 3),
                "processes_per_node": st.integers(1, 2),
                "gpus_per_node": st.integers(0, 2),
                "cpus_per_node": st.integers(1, 4000).map(lambda milli: max(10, milli) / 1000),
                "memory_per_node": st.integers(1 << 20, 1 << 40),
                "gpu": WORDS,
                "gpu_resource": st.sampled_from(["nvidia.com/gpu", "amd.com/gpu", "nvidia.com/mig-1g.10gb"]),
                "shm": st.sampled_from(["64Gi", "1M", "5"]),
                "rdma": st.fixed_dictionaries({"resource": st.just("rdma/ib"), "count": st.integers(1, 8)}),
                "node_selector": st.dictionaries(WORDS, WORDS, max_size=2),
                "tolerations": st.lists(st.just({"operator": "Exists"}), max_size=1),
                "image": WORDS,
                "image_pull_secrets": st.lists(WORDS, max_size=2),
            },
        ),
        "data": st.fixed_dictionaries({"uri": st.sampled_from(["pvc://datasets/a", "s3://bucket/a"])}),
        "checkpoint": st.fixed_dictionaries({"uri": st.sampled_from(["pvc://runs/ü", "s3://bucket/b"])}),
        "scheduling": st.fixed_dictionaries(
            {}, optional={"queue": WORDS, "priority": WORDS, "preemptible": st.booleans()}
        ),
        "limits": st.fixed_dictionaries({}, optional={"ttl_after_finish_s": st.integers(3600, 10**6)}),
        "env": st.lists(
            st.fixed_dictionaries({"name": WORDS.map("V{}".format), "value": VALUES}),
            max_size=3,
            unique_by=lambda one: one["name"],
        ),
        "labels": st.dictionaries(WORDS, WORDS, max_size=2),
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spec=SPECS, kind=st.sampled_from(KINDS), avoid=st.lists(WORDS, max_size=2))
def test_whatever_spec_is_accepted_can_be_written_down(spec: dict[str, Any], kind: Kind, avoid: list[str]) -> None:
    run = resolved(kind, **spec)
    if kind == "TrainJob" and run.ttl_after_finish_s:
        with pytest.raises(InvalidSpec, match="ttl_after_finish_s"):
            ensure_renderable(run)
        return
    ensure_renderable(run)
    assert ResolvedRun.from_json(json.loads(json.dumps(run.to_json()))) == run
    made = manifest(run, avoid_nodes=tuple(avoid))
    assert read(json.loads(json.dumps(made))).manifest() == made
    assert len(environment_of(made)) == run.layout.nodes == len(list(pods_of(made)))
    assert {one["kind"] for one in companions_of(made)} <= {"Service", "TrainingRuntime"}


@pytest.mark.parametrize("kind", KINDS)
def test_no_secret_is_in_a_manifest_an_environment_or_a_stored_run(kind: Kind) -> None:
    run = resolved(kind, env=[{"name": "HF_TOKEN", "secret_ref": {"name": "hf", "key": "token"}}])
    for audience in ("teragpt", None):
        made = manifest(run, token=CANARY, audience=audience)
        shown = json.dumps([made, environment_of(made), run.to_json(), companions_of(made)])
        assert CANARY not in shown
    assert environment_of(made)[next(pods_of(made)).name]["HF_TOKEN"] == "secret hf: token"


def test_a_run_names_its_own_image_and_queue_or_takes_the_installations() -> None:
    plain, own = resolved(), resolved(compute={"image": "mine:1"}, scheduling={"queue": "research"})
    queue = "kueue.x-k8s.io/queue-name"
    assert container(manifest(plain, queue="all"))["image"] == "i"
    assert manifest(plain, queue="all")["metadata"]["labels"][queue] == "all"
    assert queue not in manifest(plain)["metadata"]["labels"]
    assert container(manifest(own, queue="all"))["image"] == "mine:1"
    assert manifest(own, queue="all")["metadata"]["labels"][queue] == "research"


@pytest.mark.parametrize(
    ("compute", "audience", "limited"),
    [({}, None, False), ({"memory_per_node": 3 << 30}, None, True), ({}, "teragpt", True)],
)
def test_memory_that_was_given_is_a_limit_and_on_a_cluster_what_was_derived_too(
    compute: dict[str, int], audience: str | None, limited: bool
) -> None:
    here = Unknown(cpus=8, memory=64 << 30, known=True)
    run = resolve(parse_spec({"size": "tiny", "compute": compute}), here, "/runs/x")
    resources = container(manifest(run, namespace=None, audience=audience))["resources"]
    assert resources["requests"]["memory"] == ("3Gi" if compute else "1586964Ki")
    assert ("memory" in resources["limits"]) is limited


def test_the_trainer_gets_paths_of_its_pod() -> None:
    made = manifest(resolved(data={"uri": "pvc://datasets/books"}))
    sent = json.loads(variables(made)["TERAGPT_SPEC"])
    assert (sent["out"], sent["data"]) == ("/mnt/teragpt/runs/x", "/mnt/teragpt/datasets/books")
    mounts = {mount["mountPath"] for mount in container(made)["volumeMounts"]}
    assert {"/mnt/teragpt/runs", "/mnt/teragpt/datasets"} <= mounts


@pytest.mark.parametrize(
    ("kind", "spec", "pointer"),
    [
        ("PyTorchJob", {"pod_overrides": {"spec": {"hostPID": True}}}, "/pod_overrides/spec/hostPID"),
        ("PyTorchJob", {"compute": {"nodes": 10_001}}, "/compute/nodes"),
        ("Job", {"compute": {"nodes": 10_001}}, "/compute/nodes"),
        ("TrainJob", {"env": [{"name": f"V{n}", "value": ""} for n in range(200)]}, "/env"),
        ("TrainJob", {"limits": {"ttl_after_finish_s": 3600}}, "/limits/ttl_after_finish_s"),
        ("TrainJob", {"kubernetes": {"runtime": "x"}, "scheduling": {"priority": "high"}}, "/scheduling/priority"),
    ],
)
def test_what_cannot_be_written_down_is_refused_at_its_field(kind: Kind, spec: dict[str, Any], pointer: str) -> None:
    train = {"global_batch_tokens": 256 * 20_002}
    with pytest.raises(InvalidSpec) as caught:
        ensure_renderable(resolved(kind, train=train, **spec))
    assert {problem.pointer for problem in caught.value.problems} == {pointer}


def test_a_run_without_a_name_has_an_object_too() -> None:
    run_id = new_run_id()
    assert len(object_name(default_name("405b", run_id), run_id, 9999)) <= LONGEST_OBJECT_NAME
