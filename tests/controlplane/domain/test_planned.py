from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from controlplane.domain.errors import InvalidSpec
from controlplane.domain.planned import priced, too_large
from controlplane.domain.resolve import ResolvedRun, lay_out
from controlplane.domain.spec import RunSpec, parse_spec
from teragpt.config import Config, for_cores, resolve
from teragpt.layout import misfits
from teragpt.plan import cluster_of, plan
from teragpt.plan.planner import planned

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Cards:
    """A cluster of nodes of eight GPUs."""

    gpus: int = 64
    gpu_type: str | None = "NVIDIA-H100-80GB-HBM3"
    cpus: int = 4096
    memory: int = 1 << 46
    largest: tuple[int, int, int] | None = (128, 2048 * GIB, 8)
    known: bool = True


def laid(machine: Cards, **spec: Any) -> ResolvedRun:
    return lay_out(asked(**spec), machine, "pvc://runs/x", shared_folders=False)


def asked(**spec: Any) -> RunSpec:
    return parse_spec({"size": "8b", "data": {"uri": "pvc://runs/books"}, **spec})


def test_a_size_alone_gets_the_planners_layout_where_gpus_are_known() -> None:
    run = laid(Cards())
    best = plan({"size": "8b", "num_tokens": run.config["num_tokens"]}, cluster_of("h100", 8, nodes=1), exactly=True)
    assert best.settings.items() <= run.config.items()
    assert run.planned["forecast"]["days"] == best.forecast.days
    assert run.planned["gpus_used"] == run.world_size == 8
    assert ResolvedRun.from_json(run.to_json()) == run
    assert not list(misfits(Config(**run.config), run.world_size))


def test_a_plan_tells_what_a_run_costs_where_a_gpus_price_is_known() -> None:
    planned = laid(Cards()).planned
    assert priced(planned, 0.0)["forecast"]["cost"] is None
    assert priced(planned, 2.5)["forecast"]["cost"] == pytest.approx(2.5 * planned["forecast"]["gpu_hours"])
    assert priced({}, 2.5) == {}


def test_a_size_that_one_node_cannot_hold_gets_the_fewest_nodes_that_do() -> None:
    run = laid(Cards(gpus=512), size="70b")
    assert run.layout.nodes > 1
    assert run.planned["gpus_used"] == run.world_size == run.layout.nodes * 8
    assert "refused" in laid(Cards(gpus=512), size="70b", compute={"nodes": 1}).planned


def test_a_gpu_that_nobody_knows_is_planned_by_its_numbers() -> None:
    numbers = {"memory_gb": 80, "bf16_tflops": 500, "bandwidth_gbs": 2000}
    unknown = Cards(gpu_type="ACME-9000")
    assert not laid(unknown).planned
    run = laid(unknown, compute={"gpu_numbers": numbers})
    assert run.planned["gpu"] == "ACME-9000 by its numbers"
    assert ResolvedRun.from_json(run.to_json()) == run
    with pytest.raises(InvalidSpec) as caught:
        asked(compute={"gpu_numbers": {**numbers, "watts": -1}})
    assert [problem.pointer for problem in caught.value.problems] == ["/compute/gpu_numbers"]


@pytest.mark.parametrize("links", [{"link": "roce-200", "node_link": "pcie-4"}, {"link": 25, "node_link": 32.0}])
def test_a_run_is_planned_with_the_links_that_it_tells_of(links: dict[str, Any]) -> None:
    run = laid(Cards(), compute={"nodes": 2, **links})
    assert (run.planned["network_gbs"], run.planned["node_link_gbs"]) == (25, 32)
    assert run.planned["step"]["seconds"] > laid(Cards(), compute={"nodes": 2}).planned["step"]["seconds"]
    assert ResolvedRun.from_json(run.to_json()) == run


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("link", "nvlink-4"),
        ("link", -1),
        ("link", True),
        ("node_link", "ib-ndr"),
        ("node_link", 1e5),
        ("node_link", {}),
    ],
)
def test_a_link_that_cannot_be_is_refused_by_its_field(field: str, value: object) -> None:
    with pytest.raises(InvalidSpec, match="allowed: one of") as caught:
        asked(compute={field: value})
    assert [problem.pointer for problem in caught.value.problems] == [f"/compute/{field}"]


def test_what_was_given_stays_and_the_rest_is_found() -> None:
    given = {"tp": 2, "recompute": "full", "micro_batch": 2}
    run = laid(Cards(), train=given, checkpoint={"every_steps": 123})
    assert {**given, "checkpoint_every": 123}.items() <= run.config.items()
    assert run.planned["layout"]["tp"] == 2


@pytest.mark.parametrize(
    ("machine", "spec"),
    [
        (Cards(gpu_type="NVIDIA-Unheard-Of"), {}),
        (Cards(gpu_type=None), {}),
        (Cards(), {"compute": {"gpus_per_node": 0}, "train": {"precision": "fp64"}, "size": "124m"}),
        (Cards(), {"compute": {"gpus_per_node": 0}, "train": {"model": "mine:Model"}, "size": "124m"}),
        (Cards(), {"train": {"precision": "fp32"}, "size": "124m"}),
        (Cards(), {"train": {"model": "mine:Model"}, "size": "124m"}),
        (Cards(), {"compute": {"gpus_per_node": 8, "processes_per_node": 2}, "size": "124m"}),
    ],
)
def test_a_run_that_nobody_can_plan_is_as_it_was(machine: Cards, spec: dict[str, Any]) -> None:
    run = laid(machine, **spec)
    assert run.planned == {}
    assert (run.config["tp"], run.config["pp"], run.config["dp_replicate"]) == (1, 1, 1)


def test_a_run_on_cores_is_told_how_long_it_takes_and_keeps_its_layout() -> None:
    run = laid(Cards(), size="124m", compute={"gpus_per_node": 0, "cpus_per_node": 4, "processes_per_node": 2})
    given = {
        "size": "124m",
        "num_tokens": run.config["num_tokens"],
        "out": run.config["out"],
        "data": run.config["data"],
    }
    assert dataclasses.asdict(for_cores(resolve(given), {})) == run.config
    assert (run.planned["gpu"], run.planned["gpus_used"]) == ("cpu-core", 2)
    alone = laid(Cards(), size="124m", compute={"gpus_per_node": 0, "cpus_per_node": 2, "processes_per_node": 2})
    assert run.planned["step"]["seconds"] < alone.planned["step"]["seconds"] < 2.1 * run.planned["step"]["seconds"]
    assert priced(run.planned, 2.5)["forecast"]["cost"] is None
    assert ResolvedRun.from_json(run.to_json()) == run


@pytest.mark.parametrize("shared", [True, False], ids=["here", "cluster"])
def test_a_run_on_cores_takes_few_sequences_at_once_and_gets_memory_for_its_step(*, shared: bool) -> None:
    def laid_out(**spec: Any) -> ResolvedRun:
        out = "/runs/x" if shared else "pvc://runs/x"
        return lay_out(parse_spec({"compute": {"gpus_per_node": 0}, **spec}), Cards(), out, shared_folders=shared)

    run = laid_out(size="124m")
    each = run.layout.memory_per_node // run.layout.processes_per_node
    assert run.config["micro_batch"] == 1
    assert each == run.planned["memory"]["limit"] > 0.95 * run.planned["memory"]["peak"]
    more = laid_out(size="124m", train={"micro_batch": 16})
    assert more.config["micro_batch"] == 16
    assert more.layout.memory_per_node // 2 > each + 10 * GIB
    assert laid_out(size="124m", compute={"gpus_per_node": 0, "memory_per_node": GIB}).layout.memory_per_node == GIB
    assert laid_out(size="tiny").config["micro_batch"] == resolve({"size": "tiny"}).micro_batch


def test_state_that_is_more_than_the_gpus_have_is_refused_with_the_fewest_that_do() -> None:
    few = Cards(gpus=8)
    run = laid(few, size="175b")
    (problem,) = too_large(run.planned, run.state_bytes["total"], asked(size="175b"), few)
    assert problem.pointer == "/size"
    assert "GPUs are the fewest that do" in problem.detail
    ours = laid(few)
    assert not list(too_large(ours.planned, ours.state_bytes["total"], asked(), few))


def test_a_known_plan_costs_a_request_nothing() -> None:
    first, searched = laid(Cards()), planned.cache_info().misses
    assert laid(Cards()) == first
    assert planned.cache_info().misses == searched


def test_a_forecast_does_not_change_which_object_a_run_is() -> None:
    run = laid(Cards())
    assert dataclasses.replace(run, planned={}).spec_hash == run.spec_hash
