from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from controlplane.domain.errors import InvalidSpec
from controlplane.domain.layout import misfits
from controlplane.domain.placement import Kind, Kubernetes, Rdma, Scheduling, SecretRef, Toleration
from controlplane.domain.resolve import ResolvedRun, lay_out, sizes
from controlplane.domain.spec import Checkpoint, Compute, Data, Limits, RunSpec, Variable, parse_spec
from teragpt.sizes import SIZES
from tests.controlplane.domain.resolving import resolve

OLDEST = (  # what the first version stored of a run
    "nodes",
    "processes_per_node",
    "gpus_per_node",
    "cpus_per_node",
    "memory_per_node",
    "world_size",
    "config",
    "parameters",
    "tokens",
    "steps",
    "state_bytes",
    "env",
    "labels",
    "grace_s",
)


@dataclasses.dataclass(frozen=True)
class Machine:
    cpus: int = 2
    memory: int = 8 << 30
    gpus: int = 0
    gpu_type: str | None = None
    largest: tuple[int, int, int] | None = None
    known: bool = True


def refused(body: object) -> dict[str, str]:
    """The problems of a body, whoever finds them, by pointer."""
    with pytest.raises(InvalidSpec) as caught:
        resolve(parse_spec(body), Machine(), "/runs/x")
    told: dict[str, str] = {}
    for one in caught.value.problems:
        told[one.pointer] = f"{told.get(one.pointer, '')} {one.detail}"
    return told


def tiny(**more: Any) -> dict[str, Any]:
    return {"size": "tiny", **more}


SECTIONS: dict[type[BaseModel], str] = {
    Compute: "/compute",
    Data: "/data",
    Checkpoint: "/checkpoint",
    Limits: "/limits",
    Scheduling: "/scheduling",
    Kubernetes: "/kubernetes",
    Rdma: "/compute/rdma",
    Toleration: "/compute/tolerations/0",
    Variable: "/env/0",
    SecretRef: "/env/0/secret_ref",
    RunSpec: "",
}


def fields() -> Iterator[tuple[type[BaseModel], str]]:
    for model in SECTIONS:
        for name in model.model_fields:
            yield model, name


def spec_with(model: type[BaseModel], name: str, example: object) -> dict[str, Any]:
    """A spec in which the field has this value."""
    if model is RunSpec:
        return tiny(**{name: example})
    if model in {Variable, SecretRef}:
        other = {} if name in {"value", "secret_ref"} else {"value": "1"}
        reference = {"name": "hf", "key": "token", name: example}
        return tiny(
            env=[{"name": "X", **other, name: example} if model is Variable else {"name": "X", "secret_ref": reference}]
        )
    if model is Rdma:
        return tiny(compute={"rdma": {"resource": "rdma/ib", name: example}})
    if model is Toleration:
        return tiny(compute={"tolerations": [{"key": "gpu", name: example}]})
    return tiny(**{SECTIONS[model].strip("/"): {name: example}})


@pytest.mark.parametrize(("model", "name"), list(fields()))
def test_every_field_is_described_and_its_example_is_accepted_or_refused_by_name(
    model: type[BaseModel], name: str
) -> None:
    field = model.model_fields[name]
    assert field.description
    assert field.description.endswith(".")
    assert field.examples
    for example in field.examples:
        spec = parse_spec(spec_with(model, name, example))
        where = f"{SECTIONS[model]}/{name}"
        assert all(where.startswith(pointer) or pointer.startswith(where) for pointer in refused_here(spec))
        on_kubernetes(spec)


def refused_here(spec: RunSpec) -> list[str]:
    """Pointers of what the local cluster refuses."""
    try:
        resolve(spec, Machine(), "/runs/x")
    except InvalidSpec as refusal:
        return [problem.pointer for problem in refusal.problems]
    return []


def on_kubernetes(spec: RunSpec, **settings: Any) -> ResolvedRun:
    kinds, namespaces = ("PyTorchJob", "TrainJob", "Job"), ("default", "team-a")
    there: dict[str, Any] = {"shared_folders": False, "kinds": kinds, "namespaces": namespaces, **settings}
    return resolve(spec, Machine(cpus=64, memory=1 << 40), "pvc://runs/x", **there)


KUBERNETES_ONLY: dict[str, dict[str, Any]] = {
    "/compute/gpu": {"compute": {"gpu": "NVIDIA-H100-80GB-HBM3"}},
    "/compute/gpu_resource": {"compute": {"gpu_resource": "amd.com/gpu"}},
    "/compute/shm": {"compute": {"shm": "1Gi"}},
    "/compute/rdma": {"compute": {"rdma": {"resource": "rdma/ib", "count": 8}}},
    "/compute/node_selector": {"compute": {"node_selector": {"a": "b"}}},
    "/compute/tolerations": {"compute": {"tolerations": [{"operator": "Exists"}]}},
    "/compute/image": {"compute": {"image": "mine:1"}},
    "/compute/image_pull_secrets": {"compute": {"image_pull_secrets": ["registry"]}},
    "/scheduling/queue": {"scheduling": {"queue": "research"}},
    "/scheduling/priority": {"scheduling": {"priority": "urgent"}},
    "/scheduling/preemptible": {"scheduling": {"preemptible": True}},
    "/limits/ttl_after_finish_s": {"limits": {"ttl_after_finish_s": 3600}},
    "/kubernetes/kind": {"kubernetes": {"kind": "Job"}},
    "/kubernetes/runtime": {"kubernetes": {"runtime": "torch-distributed"}},
    "/kubernetes/namespace": {"kubernetes": {"namespace": "team-a"}},
    "/env/1/secret_ref": {
        "env": [{"name": "A", "value": ""}, {"name": "B", "secret_ref": {"name": "hf", "key": "token"}}]
    },
    "/pod_overrides": {"pod_overrides": {"spec": {"schedulerName": "mine"}}},
}


@pytest.mark.parametrize("pointer", list(KUBERNETES_ONLY))
def test_what_only_kubernetes_has_is_refused_by_name_on_one_machine(pointer: str) -> None:
    body = tiny(**KUBERNETES_ONLY[pointer])
    assert pointer in refused(body)
    run = on_kubernetes(parse_spec(body))
    assert ResolvedRun.from_json(json.loads(json.dumps(run.to_json()))) == run
    assert run != on_kubernetes(parse_spec(tiny()))


def test_what_kubernetes_defaults_to_may_be_said_on_one_machine() -> None:
    kubernetes = {"kind": "PyTorchJob", "runtime": None}
    spec = parse_spec(tiny(kubernetes=kubernetes, scheduling={"preemptible": False}, compute={"node_selector": {}}))
    assert resolve(spec, Machine(), "/runs/x") == resolve(parse_spec(tiny()), Machine(), "/runs/x")


@pytest.mark.parametrize(
    ("kinds", "installation", "asked", "kind"),
    [
        (("PyTorchJob", "Job"), "auto", {}, "PyTorchJob"),
        (("Job",), "auto", {}, "Job"),
        ((), "auto", {}, "Job"),
        (("PyTorchJob", "Job"), "Job", {}, "Job"),
        (("PyTorchJob", "Job"), "Job", {"kind": "PyTorchJob"}, "PyTorchJob"),
        (("PyTorchJob", "TrainJob"), "auto", {"runtime": "mine"}, "TrainJob"),
        ((), "auto", {"kind": "TrainJob"}, "TrainJob"),
    ],
)
def test_the_kind_is_the_specs_then_the_installations_then_the_best_of_the_clusters(
    kinds: tuple[Kind, ...], installation: Kind, asked: dict[str, str], kind: Kind
) -> None:
    run = on_kubernetes(parse_spec(tiny(kubernetes=asked)), kinds=kinds, kind=installation)
    assert run.kind == kind
    assert run.runtime == asked.get("runtime")


@pytest.mark.parametrize(("asked", "pointer"), [({"kind": "TrainJob"}, "kind"), ({"runtime": "mine"}, "runtime")])
def test_a_kind_that_the_cluster_is_known_not_to_have_is_refused(asked: dict[str, str], pointer: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        on_kubernetes(parse_spec(tiny(kubernetes=asked)), kinds=("PyTorchJob", "Job"))
    (problem,) = caught.value.problems
    assert problem.pointer == f"/kubernetes/{pointer}"
    assert "what the cluster has, PyTorchJob, Job" in problem.detail


def test_the_size_alone_is_enough() -> None:
    run = resolve(parse_spec({"size": "TINY"}), Machine(), "/runs/x")
    assert (run.config["size"], run.config["out"], run.world_size) == ("tiny", "/runs/x", 2)
    assert (run.layout.nodes, run.layout.processes_per_node, run.layout.cpus_per_node) == (1, 2, 2)
    assert run.steps * run.config["global_batch_tokens"] == run.tokens
    assert run.state_bytes["total"] == 16 * -(-run.parameters // 2)


@pytest.mark.parametrize("name", ["TERAGPT_CACHE", "TERAGPT_CACHE_BYTES"])
def test_a_run_may_say_where_and_how_much_of_its_data_a_node_keeps(name: str) -> None:
    assert [one.name for one in parse_spec(tiny(env=[{"name": name, "value": "1"}])).env] == [name]


def test_a_resolved_run_survives_json_and_its_hash_tells_it_from_others() -> None:
    run = resolve(parse_spec(tiny(env=[{"name": "A", "value": "b"}], labels={"team": "lm"})), Machine(), "/runs/x")
    assert ResolvedRun.from_json(run.to_json()) == run
    other = resolve(parse_spec(tiny(train={"seed": 1})), Machine(), "/runs/x")
    assert run.spec_hash == ResolvedRun.from_json(run.to_json()).spec_hash != other.spec_hash


@pytest.mark.parametrize(
    ("machine", "compute", "layout"),
    [
        (Machine(), {}, (1, 2, 0, 2)),
        (Machine(cpus=1), {}, (1, 1, 0, 1)),
        (Machine(cpus=64), {}, (1, 2, 0, 2)),
        (Machine(cpus=64), {"cpus_per_node": 8}, (1, 8, 0, 8)),
        (Machine(cpus=64, gpus=8), {}, (1, 8, 8, 8)),
        (Machine(cpus=64, gpus=8), {"gpus_per_node": 2}, (1, 2, 2, 2)),
        (Machine(cpus=64, gpus=8), {"gpus_per_node": 0}, (1, 2, 0, 2)),
        (Machine(cpus=64, gpus=8), {"nodes": 2}, (2, 4, 4, 4)),
        (Machine(cpus=4), {"nodes": 2}, (2, 2, 0, 2)),
        (Machine(cpus=4), {"processes_per_node": 3}, (1, 3, 0, 3)),
    ],
)
def test_what_is_left_out_of_compute_follows_from_the_machine(
    machine: Machine, compute: dict[str, int], layout: tuple[int, ...]
) -> None:
    there = resolve(parse_spec(tiny(compute=compute)), machine, "/runs/x").layout
    assert (there.nodes, there.processes_per_node, there.gpus_per_node, there.cpus_per_node) == layout


@pytest.mark.parametrize(
    ("body", "pointer", "detail"),
    [
        ([], "", "an object"),
        ("tiny", "", "an object"),
        ({}, "/size", "required"),
        ({"size": "huge"}, "/size", "allowed: tiny, 111m"),
        ({"size": 1}, "/size", "got 1"),
        (tiny(model="x"), "/model", "no field 'model'"),
        (tiny(compute={"gpus": 1}), "/compute/gpus", "no field 'gpus'"),
        (tiny(compute={"nodes": 0}), "/compute/nodes", "got 0"),
        (tiny(compute={"nodes": -1}), "/compute/nodes", "got -1"),
        (tiny(compute={"nodes": 10**9}), "/compute/nodes", "got 1000000000"),
        (tiny(compute={"nodes": "2"}), "/compute/nodes", 'got "2"'),
        (tiny(compute={"nodes": 1.5}), "/compute/nodes", "got 1.5"),
        (tiny(compute={"nodes": True}), "/compute/nodes", "got true"),
        (tiny(compute={"nodes": float("nan")}), "/compute/nodes", "got NaN"),
        (tiny(labels={"team": "a b"}), "/labels/team", 'got "a b"; allowed: up to 63 letters, digits'),
        (tiny(train={"tied": 1}), "/train/tied", "got 1; allowed: true or false"),
        (tiny(train={"steps": True}), "/train/steps", "got true; allowed: a whole number"),
        (tiny(compute={"nodes": 5}), "/compute/nodes", "needs 5 CPUs"),
        (tiny(compute={"cpus_per_node": 5}), "/compute/cpus_per_node", "machine's 2"),
        (tiny(compute={"gpus_per_node": 1}), "/compute/gpus_per_node", "machine's 0"),
        (tiny(compute={"memory_per_node": 1 << 45}), "/compute/memory_per_node", "bytes of memory"),
        (
            tiny(compute={"processes_per_node": 17, "memory_per_node": 1 << 30}),
            "/compute/processes_per_node",
            "17 ranks",
        ),
        ({"size": "175b"}, "/size", "bytes of memory"),
        (tiny(name=""), "/name", "1 or more characters"),
        (tiny(name="\n"), "/name", "printable"),
        (tiny(name="x" * 101), "/name", "at most 100"),
        (tiny(data={"uri": "s3://bucket"}), "/data/uri", "absolute path"),
        (tiny(data={"uri": "relative"}), "/data/uri", "absolute path"),
        (tiny(checkpoint={"uri": "relative"}), "/checkpoint/uri", "absolute path"),
        (tiny(checkpoint={"resume": "never"}), "/checkpoint/resume", "'auto'"),
        (tiny(checkpoint={"every_steps": 0}), "/checkpoint/every_steps", "got 0"),
        (tiny(train={"out": "/x"}), "/train/out", "set at /checkpoint/uri"),
        (tiny(train={"size": "1.3b"}), "/train/size", "set at /size"),
        (tiny(train={"stepz": 9}), "/train/stepz", "no such setting; did you mean steps?"),
        (tiny(train={"steps": -1}), "/train/steps", "got -1"),
        (tiny(train={"steps": 10**30}), "/train/steps", "whole number"),
        (tiny(train={"learning_rate": float("nan")}), "/train/learning_rate", "got nan"),
        (tiny(train={"learning_rate": float("inf")}), "/train/learning_rate", "got inf"),
        (tiny(train={"heads": 5}), "/train/heads", "into an even head width"),
        (tiny(train={"checkpoint_every": 0}), "/train/checkpoint_every", "got 0"),
        (tiny(train={"dp_replicate": 3}), "/train/dp_replicate", "a divisor of the world size 2"),
        (tiny(train={"tp": 3}), "/train/tp", "a divisor of kv_heads 2"),
        (tiny(train={"tp": 2}, compute={"processes_per_node": 1}), "/train/tp", "a divisor of the world size 1"),
        (tiny(train={"cp": 4}), "/train/cp", "a divisor of the world size 2"),
        (tiny(train={"cp": 3}), "/train/cp", "one that cuts context 256 evenly, for tp 1 and cp 3"),
        (tiny(train={"pp": 4}), "/train/pp", "at most depth 3"),
        (tiny(train={"decay_fraction": 0.5}), "/train/decay_fraction", "nothing, unless schedule is wsd"),
        (tiny(train={"fp8_recipe": "rowwise"}), "/train/fp8_recipe", "nothing, unless precision is fp8"),
        (
            tiny(train={"recompute": "full", "recompute_layers": 4}),
            "/train/recompute_layers",
            "got 4; allowed: at most depth 3, or 0 for all layers",
        ),
        (tiny(train={"eval_sequences": 1}), "/train/eval_sequences", "each of 2 parts of the batch"),
        (tiny(limits={"max_restarts": -1}), "/limits/max_restarts", "got -1"),
        (tiny(limits={"max_runtime_s": 0}), "/limits/max_runtime_s", "got 0"),
        (tiny(env=[{"name": "TERAGPT_SPEC", "value": "x"}]), "/env/0/name", "teragpt does not set"),
        (tiny(env=[{"name": "RANK", "value": "x"}]), "/env/0/name", "teragpt does not set"),
        (tiny(env=[{"name": "A B", "value": "x"}]), "/env/0/name", 'got "A B"'),
        (tiny(env={"A": "b"}), "/env", "list"),
        (tiny(env=[{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]), "/env", "got 'A' more than once"),
        (
            tiny(compute={"cpus_per_node": 70}),
            "/compute/cpus_per_node",
            "global_batch_tokens and /train/eval_sequences",
        ),
        (tiny(name="\u200c\u200d "), "/name", "printable"),
        (tiny(name="\u202eabc"), "/name", "printable"),
        (tiny(env=[{"name": "A"}]), "/env/0", "got neither of value and secret_ref"),
        (
            tiny(env=[{"name": "A", "value": "1", "secret_ref": {"name": "hf", "key": "token"}}]),
            "/env/0",
            "got both of value and secret_ref",
        ),
        (tiny(env=[{"name": "A", "secret_ref": {"name": "HF", "key": "t"}}]), "/env/0/secret_ref/name", 'got "HF"'),
        (tiny(env=[{"name": "A", "secret_ref": {"name": "hf", "key": "a/b"}}]), "/env/0/secret_ref/key", 'got "a/b"'),
        (tiny(compute={"gpu": "two words"}), "/compute/gpu", 'got "two words"'),
        (tiny(compute={"gpu": "x", "gpu_resource": "acme.com/tpu"}), "/compute/gpu", "else use node_selector"),
        (tiny(compute={"gpu_resource": "gpu"}), "/compute/gpu_resource", 'got "gpu"'),
        (tiny(compute={"shm": "64 GB"}), "/compute/shm", 'got "64 GB"'),
        (tiny(compute={"shm": "0"}), "/compute/shm", 'got "0"'),
        (tiny(compute={"rdma": {"resource": "ib"}}), "/compute/rdma/resource", 'got "ib"'),
        (tiny(compute={"rdma": {"resource": "rdma/ib", "count": 0}}), "/compute/rdma/count", "got 0"),
        (tiny(compute={"image": "my image"}), "/compute/image", 'got "my image"'),
        (tiny(compute={"image_pull_secrets": ["A"]}), "/compute/image_pull_secrets/0", 'got "A"'),
        (tiny(compute={"tolerations": [{}]}), "/compute/tolerations/0/key", "operator Exists"),
        (
            tiny(compute={"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}),
            "/compute/tolerations/0/value",
            "no value with operator Exists",
        ),
        (
            tiny(compute={"tolerations": [{"key": "a", "toleration_seconds": 1}]}),
            "/compute/tolerations/0/toleration_seconds",
            "with NoExecute alone",
        ),
        (tiny(scheduling={"queue": ""}), "/scheduling/queue", "1 or more characters"),
        (tiny(scheduling={"priority": "High"}), "/scheduling/priority", 'got "High"'),
        (tiny(limits={"ttl_after_finish_s": 60}), "/limits/ttl_after_finish_s", "3600"),
        (tiny(kubernetes={"kind": "MPIJob"}), "/kubernetes/kind", "'TrainJob'"),
        (tiny(kubernetes={"kind": "Job", "runtime": "x"}), "/kubernetes/runtime", "with kind TrainJob alone"),
        (tiny(pod_overrides=[]), "/pod_overrides", "an object"),
        (tiny(labels={"a b": "c"}), "/labels/a b/[key]", 'got "a b"'),
        (tiny(labels={"teragpt.io/run-id": "x"}), "/labels/teragpt.io~1run-id/[key]", "do not set themselves"),
        (
            tiny(labels={"kueue.x-k8s.io/queue-name": "q"}),
            "/labels/kueue.x-k8s.io~1queue-name/[key]",
            "allowed: keys that",
        ),
        (
            tiny(labels={"training.kubeflow.org/replica-index": "3"}),
            "/labels/training.kubeflow.org~1replica-index/[key]",
            "got",
        ),
        (tiny(labels={"job-name": "x"}), "/labels/job-name/[key]", "got 'job-name'"),
        (tiny(env=[{"name": "A", "value": "a\0b"}]), "/env/0/value", "text without NUL"),
        (tiny(env=[{"name": "A", "secret_ref": {"name": "s", "key": ".."}}]), "/env/0/secret_ref/key", 'got ".."'),
        (tiny(labels={"a/b": "c d"}), "/labels/a~1b", 'got "c d"'),
    ],
)
def test_a_bad_field_is_named_with_what_was_given_and_what_is_allowed(body: object, pointer: str, detail: str) -> None:
    problems = refused(body)
    assert pointer in problems
    assert detail in problems[pointer]


def test_ranks_beyond_the_batches_are_one_problem() -> None:
    assert list(refused(tiny(compute={"cpus_per_node": 70}))) == ["/compute/cpus_per_node"]
    assert list(refused(tiny(compute={"processes_per_node": 70}))) == ["/compute/processes_per_node"]


@pytest.mark.parametrize("name", ["می\u200cخواهم", "ක්\u200dෂ", "👩\u200d🔬", "東京\u3000大阪", "lr/3e-4"])  # noqa: RUF001
def test_a_name_may_hold_what_its_alphabet_is_written_with(name: str) -> None:
    assert parse_spec(tiny(name=name)).name == name


def test_every_bad_field_is_told_at_once() -> None:
    assert refused(tiny(foo=1, compute={"nodes": 0}, limits={"max_restarts": -1})).keys() == {
        "/foo",
        "/compute/nodes",
        "/limits/max_restarts",
    }
    assert refused(tiny(train={"steps": 0, "dim": -1})).keys() == {"/train/steps", "/train/dim"}


def test_a_long_value_is_shortened_in_the_complaint() -> None:
    assert len(refused(tiny(name=["x" * 5000]))["/name"]) < 200


def test_a_part_of_a_cpu_is_a_share_and_a_whole_one_stays_whole() -> None:
    spec = parse_spec(tiny(compute={"cpus_per_node": 0.25}))
    assert resolve(spec, Machine(), "/runs/x").to_json()["cpus_per_node"] == 0.25
    assert resolve(spec, Machine(), "/runs/x").layout.processes_per_node == 2
    for given in (2, 2.0):
        spec = parse_spec(tiny(compute={"cpus_per_node": given}))
        assert json.dumps(spec.model_dump(mode="json", exclude_unset=True)["compute"]) == '{"cpus_per_node": 2}'
        assert json.dumps(resolve(spec, Machine(), "/runs/x").to_json()["cpus_per_node"]) == "2"
    assert "three decimals" in refused(tiny(compute={"cpus_per_node": 0.1234}))["/compute/cpus_per_node"]
    for bad in (0, -1, float("inf"), True, "1"):
        assert "/compute/cpus_per_node" in refused(tiny(compute={"cpus_per_node": bad}))


def test_a_run_that_an_older_version_stored_still_loads() -> None:
    run = resolve(parse_spec(tiny()), Machine(), "/runs/x")
    stored = json.loads(json.dumps(run.to_json()))
    old = {name: stored[name] for name in OLDEST}
    assert ResolvedRun.from_json(old) == dataclasses.replace(run, planned={})  # which nobody knew then
    assert ResolvedRun.from_json(old).folder == "/runs/x"


def test_what_cannot_run_here_can_still_be_laid_out() -> None:
    spec = parse_spec({"size": "175b", "compute": {"nodes": 4}})
    run = lay_out(spec, Machine(), "/runs/x")
    assert run.parameters > 170e9
    assert {one.pointer for one in misfits(run.layout, spec, Machine())} == {"/compute/nodes"}


def test_a_dataset_brings_its_vocabulary() -> None:
    run = resolve(parse_spec(tiny(data={"uri": "/data"})), Machine(), "/runs/x", vocabulary=500)
    assert (run.config["num_tokens"], run.config["data"]) == (500, "/data")


def test_the_table_of_sizes_lists_every_size_with_what_it_derives() -> None:
    rows = {row["name"]: row for row in sizes()}
    assert list(rows) == list(SIZES)
    assert (rows["tiny"]["optimizer"], rows["175b"]["optimizer"]) == ("adamw", "muon")
    embeddings = (
        2 * rows["175b"]["num_tokens"] * rows["175b"]["dim"]
    )  # AdamW's, two moments; one of the blocks' matrices
    vectors = 96 * (2 * 12288 + 2 * 128) + 12288
    assert rows["175b"]["state_bytes"] == 12 * rows["175b"]["parameters"] + 4 * (embeddings + vectors)
    assert rows["tiny"]["steps"] > 0
