from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from controlplane.domain.errors import InvalidSpec
from controlplane.domain.layout import Layout
from controlplane.domain.planned import PASSING
from controlplane.domain.resolve import ResolvedRun, Start
from controlplane.domain.spec import parse_spec
from tests.controlplane.domain.resolving import resolve

OUT = "pvc://runs/x"
GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Nodes:
    """A cluster: `largest` is its largest node's CPUs, bytes and GPUs."""

    cpus: int = 256
    memory: int = 4096 * GIB
    gpus: int = 32
    gpu_type: str | None = None
    largest: tuple[int, int, int] | None = (64, 1024 * GIB, 8)
    known: bool = True


def on_cluster(machine: Nodes | None = None, **spec: Any) -> ResolvedRun:
    return resolve(parse_spec({"size": "tiny", **spec}), machine or Nodes(), OUT, shared_folders=False)


def refused(machine: Nodes | None = None, **spec: Any) -> dict[str, str]:
    with pytest.raises(InvalidSpec) as caught:
        on_cluster(machine, **spec)
    return {problem.pointer: problem.detail for problem in caught.value.problems}


@pytest.mark.parametrize("machine", [Nodes(), Nodes(gpus=0, largest=(2, 8 * GIB, 0)), Nodes(known=False)])
def test_the_tiny_size_is_two_small_pods_on_any_cluster(machine: Nodes) -> None:
    assert on_cluster(machine).layout == Layout(2, 1, 0, 0.25, 1536 << 20)


@pytest.mark.parametrize(
    ("compute", "layout"),
    [
        ({"nodes": 1}, (1, 1, 0, 0.25, 1536 << 20)),
        ({"processes_per_node": 2}, (2, 2, 0, 0.5, 3 * GIB)),
        ({"nodes": 1, "processes_per_node": 4}, (1, 4, 0, 1, 6 * GIB)),
        ({"cpus_per_node": 2}, (2, 2, 0, 2, 3 * GIB)),
        ({"cpus_per_node": 0.5}, (2, 1, 0, 0.5, 1536 << 20)),
        ({"memory_per_node": GIB}, (2, 1, 0, 0.25, GIB)),
        ({"gpus_per_node": 2}, (1, 2, 2, 2, None)),
    ],
)
def test_what_the_user_gives_of_the_tiny_size_wins(compute: dict[str, Any], layout: tuple[Any, ...]) -> None:
    there = dataclasses.astuple(on_cluster(compute=compute).layout)
    assert there[:4] == layout[:4]
    assert layout[4] in {None, there[4]}


@pytest.mark.parametrize(
    ("machine", "compute", "layout"),
    [
        (Nodes(), {}, (1, 8, 8, 8)),
        (Nodes(), {"nodes": 4}, (4, 8, 8, 8)),
        (Nodes(), {"nodes": 16}, (16, 2, 2, 2)),
        (Nodes(gpus=4, largest=None), {}, (1, 4, 4, 4)),
        (Nodes(gpus=0, largest=(64, 1024 * GIB, 0)), {}, (1, 2, 0, 2)),
        (Nodes(gpus=0, largest=(1, 1024 * GIB, 0)), {}, (1, 1, 0, 1)),
        (Nodes(known=False), {}, (1, 1, 1, 1)),
        (Nodes(known=False), {"nodes": 2, "gpus_per_node": 8}, (2, 8, 8, 8)),
        (Nodes(known=False), {"gpus_per_node": 0}, (1, 2, 0, 2)),
    ],
)
def test_larger_sizes_take_one_rank_per_gpu_of_the_largest_node(
    machine: Nodes, compute: dict[str, int], layout: tuple[int, ...]
) -> None:
    there = on_cluster(machine, size="124m", compute=compute).layout
    assert (there.nodes, there.processes_per_node, there.gpus_per_node, there.cpus_per_node) == layout


def test_a_rank_has_room_for_its_state_and_for_a_checkpoints_copy() -> None:
    run = on_cluster(size="124m", compute={"nodes": 1, "gpus_per_node": 0})
    kept = run.state_bytes
    copied = kept["parameters"] + kept["optimizer"]
    passing = sum(run.planned["memory"]["kinds"][kind] for kind in PASSING)
    assert run.layout.memory_per_node == 2 * ((1536 << 20) + kept["total"] + copied + passing)
    run = on_cluster(size="124m")
    assert run.layout.memory_per_node == 8 * (8 * GIB + run.state_bytes["parameters"] + run.state_bytes["optimizer"])


def test_a_pod_must_fit_the_largest_node_and_all_pods_the_cluster() -> None:
    assert refused(compute={"gpus_per_node": 9, "processes_per_node": 1}) == {
        "/compute/gpus_per_node": "got 9, which needs 9 GPUs on one node; allowed: what fits its largest node's 8"
    }
    assert refused(size="124m", compute={"nodes": 5, "gpus_per_node": 8})["/compute/gpus_per_node"] == (
        "got 8, which needs 40 GPUs; allowed: what fits this cluster's 32"
    )
    assert "64" in refused(compute={"cpus_per_node": 65, "processes_per_node": 1})["/compute/cpus_per_node"]
    assert refused(Nodes(cpus=1, largest=(1, 9 * GIB, 0)), compute={"nodes": 5})["/compute/nodes"] == (
        "got 5, which needs 1.25 CPUs; allowed: what fits this cluster's 1"
    )


def test_a_cluster_that_does_not_show_its_nodes_refuses_nothing_for_its_size() -> None:
    run = on_cluster(Nodes(known=False, cpus=0, memory=0, gpus=0, largest=None), compute={"gpus_per_node": 8})
    assert run.layout.gpus_per_node == 8


def test_folders_become_claims_and_paths_in_the_pods() -> None:
    run = on_cluster(data={"uri": "pvc://datasets/books"}, train={"start_from": "pvc://old/run"})
    assert run.folder == OUT
    assert run.claims == ("datasets", "old", "runs")
    assert run.config["out"] == "/mnt/teragpt/runs/x"
    assert run.config["data"] == "/mnt/teragpt/datasets/books"
    assert run.config["start_from"] == "/mnt/teragpt/old/run"
    assert ResolvedRun.from_json(run.to_json()) == run


def test_a_retry_names_the_old_run_by_its_address_or_by_its_path() -> None:
    spec = parse_spec({"size": "tiny"})
    for start in ("pvc://old/run", "/mnt/teragpt/old/run"):
        run = resolve(spec, Nodes(), "s3://bucket/new", start=Start(start), shared_folders=False)
        assert run.config["start_from"] == "/mnt/teragpt/old/run"
        assert (run.claims, run.folder, run.config["out"]) == (("old",), "s3://bucket/new", "s3://bucket/new")


def test_a_run_begins_with_the_optimizer_of_its_checkpoint_which_the_trainer_looks_at_where_it_is_not_known() -> None:
    old = resolve(parse_spec({"size": "124m", "train": {"optimizer": "adamw"}}), Nodes(), OUT, shared_folders=False)

    def begun(start: Start, **train: Any) -> ResolvedRun:
        spec = parse_spec({"size": "124m", "train": train})
        return resolve(spec, Nodes(), "s3://bucket/new", start=start, shared_folders=False)

    known = begun(Start.of(old.to_json(), old.folder))
    assert (known.config["optimizer"], known.left_open) == ("adamw", ())
    unknown = begun(Start(old.folder))
    assert (unknown.config["optimizer"], unknown.left_open) == ("muon", ("optimizer",))
    assert Start.of(unknown.to_json(), unknown.folder).optimizer == ""
    given = begun(Start.of(old.to_json(), old.folder), optimizer="muon")
    assert (given.config["optimizer"], given.left_open) == ("muon", ())


def test_folders_of_this_machine_mean_nothing_on_a_cluster() -> None:
    problems = refused(data={"uri": "/data"}, checkpoint={"uri": "/runs"}, train={"start_from": "/old"})
    assert problems.keys() == {"/data/uri", "/checkpoint/uri", "/train/start_from"}
    assert all("pvc://CLAIM/PATH" in detail for detail in problems.values())


def test_where_there_is_no_storage_the_spec_must_name_one() -> None:
    with pytest.raises(InvalidSpec) as caught:
        resolve(parse_spec({"size": "tiny"}), Nodes(), "", shared_folders=False)
    assert [(one.pointer, one.code) for one in caught.value.problems] == [("/checkpoint/uri", "missing")]
    with pytest.raises(InvalidSpec, match="start_from"):
        on_cluster(train={"start_from": 5})


def source(uri: str, weight: float, **more: Any) -> dict[str, Any]:
    return {"uri": uri, "weight": weight, **more}


def test_a_mixture_is_one_setting_of_the_trainer_and_claims_for_the_pods() -> None:
    run = on_cluster(data={"sources": [source("pvc://web/a", 0.7), source("s3://bucket/code", 1e-5, epochs=2)]})
    assert run.config["data"] == "/mnt/teragpt/web/a:0.7,s3://bucket/code:0.00001:2"
    assert run.claims == ("runs", "web")
    assert run.left_open == ("num_tokens",)
    assert on_cluster(data={"sources": [source("s3://bucket/code", 3)]}).config["data"] == "s3://bucket/code"
    assert on_cluster(data={"sources": [source("s3://b/c:2", 3, epochs=1)]}).config["data"] == "s3://b/c:2:3.0:1"


@pytest.mark.parametrize(
    ("data", "pointer", "detail"),
    [
        ({"uri": "s3://b/a", "sources": [source("s3://b/c", 1)]}, "/data/sources", "one of the two"),
        ({"sources": []}, "/data/sources", "one or more, or leave it out for the embedded corpus"),
        ({"sources": [source("s3://b/a", 0), source("s3://b/c", 0)]}, "/data/sources/0/weight", "more than 0"),
        ({"sources": [source("s3://b/a", 1), {"uri": "s3://b/c"}]}, "/data/sources/1/weight", "required"),
        ({"sources": [source("s3://b/a", 1, epochs=0)]}, "/data/sources/0/epochs", "at least 1"),
        ({"sources": [source("s3://b/a", 1), source("/data", 1)]}, "/data/sources/1/uri", "pvc://CLAIM/PATH"),
        ({"sources": [source("s3://b/a", 1), source("s3://b/a", 1)]}, "/data/sources", "each place once"),
        ({"sources": [source("s3://b/a", 1), source("s3://b/c", 1e-6)]}, "/data/sources", "whole parts"),
        ({"sources": [source("s3://b/a,b", 3), source("s3://b/c", 1)]}, "/data/sources", "PLACE:WEIGHT"),
        ({"sources": [source("s3://b/a:1,s3://b", 3), source("s3://b/c", 1)]}, "/data/sources", "without commas"),
    ],
)
def test_a_mixture_that_is_none_names_the_field(data: dict[str, Any], pointer: str, detail: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        on_cluster(data=data)
    assert detail in {one.pointer: one.detail for one in caught.value.problems}[pointer]
