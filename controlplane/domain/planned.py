"""What the planner says of a run on the GPUs that it gets: the layout that nobody gave, its memory, its speed.

On CPU cores it says how long a run takes, and changes nothing. A run on cards that nobody has described, or of
somebody's own model, is as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from controlplane.domain.errors import Problem
from controlplane.domain.layout import Layout, Machine
from controlplane.domain.spec import Compute, RunSpec
from teragpt.config import Config, ConfigError
from teragpt.layout import OURS
from teragpt.plan import Plan, TooSmall, cluster_of, plan
from teragpt.plan.cores import cores
from teragpt.plan.explain import Line, explain
from teragpt.plan.hardware import CORE, Cluster, Device, device, known
from teragpt.sizes import TINY

ELSEWHERE = frozenset({"start_from", "tokenizer", "loader", "model"})  # settings that no step depends on
WIDE = frozenset({"fp32", "fp64"})  # precisions of which nobody has measured a step on a GPU
ON_CORES = frozenset({"auto", "fp32"})  # those of which somebody has on a core
REFUSED = "refused"
PASSING = "activations", "one block's backward", "gathered weights", "logits and loss"  # what a step holds beside state
Lay: TypeAlias = Callable[[Compute, Machine, Config], Layout]


def on_gpus(spec: RunSpec, config: Config, machine: Machine, lay: Lay) -> tuple[Layout, Plan | ConfigError | None]:
    """The pods of a run and the plan of all of their GPUs, or why there is none; None where there is nothing to plan.

    Settings that were given stay as they are. Of a number of nodes that nobody gave, the fewest on which it fits.
    """
    compute = spec.compute
    layout = lay(compute, machine, config)
    if not layout.gpus_per_node:
        first = _on_cores(spec, config, layout)
        whole = _roomy(layout, first, config.size)
        return whole, first if whole is layout else _on_cores(spec, config, whole)
    found = _plan(spec, config, layout, machine)
    if isinstance(found, TooSmall) and compute.nodes is None and found.enough and found.enough <= machine.gpus:
        each = layout.gpus_per_node
        compute = compute.model_copy(update={"nodes": -(-found.enough // each), "gpus_per_node": each})
        found = _plan(spec, config, lay(compute, machine, config), machine)
    if isinstance(found, Plan):  # what a node needs follows from the layout
        layout = lay(compute, machine, replace(config, **found.settings))
    return layout, found


def _plan(spec: RunSpec, config: Config, layout: Layout, machine: Machine) -> Plan | ConfigError | None:
    kind = card(spec, machine)
    whole = layout.gpus_per_node == layout.processes_per_node
    if kind is None or not whole or config.model != OURS or config.precision in WIDE:
        return None
    try:
        return plan(_settings(spec, config), _cluster(spec, kind, layout), exactly=True)
    except ConfigError as error:
        return error


def _cluster(spec: RunSpec, kind: Device, layout: Layout) -> Cluster:
    """Its ranks, and the links that its user told of."""
    compute = spec.compute
    return cluster_of(kind, layout.world_size, nodes=layout.nodes, network=compute.link, inside=compute.node_link)


def _settings(spec: RunSpec, config: Config) -> dict[str, Any]:
    """What was given of the trainer's, as far as a plan depends on it."""
    settings = {name: value for name, value in spec.train.items() if name not in ELSEWHERE}
    settings |= {"size": spec.size, "num_tokens": config.num_tokens, "optimizer": config.optimizer}
    if spec.checkpoint.every_steps is not None:
        settings["checkpoint_every"] = spec.checkpoint.every_steps
    return settings


def _on_cores(spec: RunSpec, config: Config, layout: Layout) -> Plan | None:
    """What the run takes without a GPU; None where that cannot be told."""
    if config.model != OURS or config.precision not in ON_CORES:
        return None
    kind = cores(layout.cpus_per_node / layout.processes_per_node)
    kind = replace(kind, memory=layout.memory_per_node // layout.processes_per_node)
    try:
        return plan(_settings(spec, config), _cluster(spec, kind, layout))
    except ConfigError:
        return None


def _roomy(layout: Layout, found: Plan | None, size: str) -> Layout:
    """A layout without a GPU, with memory for what comes and goes in a step, where its user gave none.

    A rank of the tiny size was measured with it.
    """
    if found is None or layout.memory_given or size == TINY:
        return layout
    passing = sum(found.best.memory.kinds[kind] for kind in PASSING)
    return replace(layout, memory_per_node=layout.memory_per_node + layout.processes_per_node * passing)


def card(spec: RunSpec, machine: Machine) -> Device | None:
    """What a run's GPUs can do: as the spec says, else as is known of their type; None where neither is."""
    name, numbers = spec.compute.gpu or machine.gpu_type, spec.compute.gpu_numbers
    return device({"name": name, **numbers}) if numbers else known(name)


def told(found: Plan | ConfigError | None) -> dict[str, Any]:
    """As a run keeps it."""
    if isinstance(found, ConfigError):
        return {REFUSED: "; ".join(one.detail for one in found.problems)}
    return found.to_json() if found else {}


def formulas(spec: RunSpec, config: Config, layout: Layout, machine: Machine) -> list[Line]:
    """Every formula of the plan of a run that became this, with its numbers and its source; none without a plan."""
    found = _plan(spec, config, layout, machine) if layout.gpus_per_node else _on_cores(spec, config, layout)
    return list(explain(found)) if isinstance(found, Plan) else []


def priced(planned: dict[str, Any], price: float) -> dict[str, Any]:
    """What was told of a plan with the money that it costs, at a `price` of an hour of one GPU; 0: nobody knows it."""
    if not price or "forecast" not in planned or planned["gpu"] == CORE.name:
        return planned
    whole = planned["forecast"]
    return {**planned, "forecast": {**whole, "cost": price * whole["gpu_hours"]}}


def too_large(planned: Mapping[str, Any], state: int, spec: RunSpec, machine: Machine) -> Iterator[Problem]:
    """That a rank's exact state alone is more than its GPU has; what only may not fit is left to the trainer."""
    kind = card(spec, machine)
    if REFUSED in planned and kind is not None and state > kind.memory:
        yield Problem("/size", "does_not_fit", planned[REFUSED])
