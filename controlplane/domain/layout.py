"""How many pods and ranks a run has, and what each node gets: what its user gave, the rest from the machine.

It knows sizes in bytes and the machine's numbers, no storage and no manifest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from controlplane.domain.errors import Problem
from controlplane.domain.spec import Compute, RunSpec
from teragpt.config import Config
from teragpt.layout import State, state
from teragpt.sizes import TINY

CPU_RANKS = 2  # ranks of a run without a GPU: enough to exercise every collective, and it leaves a laptop usable
PROCESS_BYTES = 768 << 20  # resident set of a rank before its state: interpreter, torch, gloo
# On Kubernetes memory is a wall, so that there is room for what comes and goes: imports, a checkpoint's copy.
POD_RANK_BYTES = 1536 << 20
GPU_RANK_BYTES = 8 << 30  # host memory of a rank with a GPU: CUDA's context, pinned buffers, compiler
TINY_NODES, TINY_CPUS = 2, 0.25  # the smallest run that crosses nodes, on any cluster


class Machine(Protocol):
    """What a cluster has, as far as a layout depends on it: `memory` in bytes."""

    @property
    def cpus(self) -> int:
        """CPU cores."""
        ...

    @property
    def memory(self) -> int:
        """Bytes of memory."""
        ...

    @property
    def gpus(self) -> int:
        """GPUs."""
        ...

    @property
    def gpu_type(self) -> str | None:
        """What the cluster calls them; None where it does not say."""
        ...

    @property
    def largest(self) -> tuple[int, int, int] | None:
        """CPUs, bytes and GPUs of the largest node; None where nodes are not told apart."""
        ...

    @property
    def known(self) -> bool:
        """Whether the numbers say anything."""
        ...


@dataclass(frozen=True)
class Layout:
    """Pods and ranks of a run: what each node gets. CPUs may be parts of one, memory is in bytes.

    Where nobody gave the memory, it is an estimate.
    """

    nodes: int
    processes_per_node: int
    gpus_per_node: int
    cpus_per_node: float
    memory_per_node: int
    memory_given: bool = False

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.nodes * self.processes_per_node


def layout_on_machine(compute: Compute, machine: Machine, config: Config) -> Layout:
    """One process per GPU; where there is no GPU, one per CPU core, two by default."""
    nodes = compute.nodes or 1
    each = max(1, machine.gpus // nodes)
    gpus = compute.gpus_per_node if compute.gpus_per_node is not None else min(machine.gpus, each)
    cpu_ranks = int(compute.cpus_per_node or 0) or max(1, min(CPU_RANKS, machine.cpus // nodes))
    processes = compute.processes_per_node or gpus or cpu_ranks
    cpus = compute.cpus_per_node or max(1, min(processes, machine.cpus // nodes))
    on_rank = PROCESS_BYTES + (0 if gpus else state(config, nodes * processes).total)
    memory, given = processes * on_rank, compute.memory_per_node
    return Layout(nodes, processes, gpus, cpus, given or memory, memory_given=given is not None)


def layout_on_cluster(compute: Compute, machine: Machine, config: Config) -> Layout:
    """One node of the largest kind, one process per GPU; the tiny size takes two small pods and no GPU."""
    gpus = _cluster_gpus(compute, machine, config.size)
    tiny = config.size == TINY and not gpus
    nodes = compute.nodes or (TINY_NODES if tiny else 1)
    there = machine.largest[0] if machine.known and machine.largest else CPU_RANKS
    cpu_ranks = int(compute.cpus_per_node or 0) or (1 if tiny else max(1, min(CPU_RANKS, there)))
    processes = compute.processes_per_node or gpus or cpu_ranks
    derived = _whole(processes * TINY_CPUS) if tiny else processes
    kept = state(config, nodes * processes)
    memory = processes * (POD_RANK_BYTES if tiny else _pod_bytes(kept, with_gpu=gpus > 0))
    given = compute.memory_per_node
    return Layout(nodes, processes, gpus, compute.cpus_per_node or derived, given or memory, given is not None)


def _cluster_gpus(compute: Compute, machine: Machine, size: str) -> int:
    if compute.gpus_per_node is not None:
        return compute.gpus_per_node
    if size == TINY:
        return 0
    if not machine.known:
        return 1
    most = machine.largest[2] if machine.largest else machine.gpus
    return min(most, max(1, machine.gpus // (compute.nodes or 1)))


def _pod_bytes(kept: State, *, with_gpu: bool) -> int:
    """Host memory of a rank: what it keeps there, and the copy that a checkpoint is written from."""
    copied = kept.parameters + kept.optimizer
    return copied + (GPU_RANK_BYTES if with_gpu else POD_RANK_BYTES + kept.total)


def misfits(layout: Layout, spec: RunSpec, machine: Machine) -> Iterator[Problem]:
    """What the machine can never give, however long the run waits: to all pods, then to one."""
    if not machine.known:
        return
    largest = machine.largest or (machine.cpus, machine.memory, machine.gpus)
    where = "machine" if largest == (machine.cpus, machine.memory, machine.gpus) else "cluster"
    wanted = (
        ("gpus_per_node", "GPUs", layout.gpus_per_node, machine.gpus, largest[2]),
        ("cpus_per_node", "CPUs", layout.cpus_per_node, machine.cpus, largest[0]),
        ("memory_per_node", "bytes of memory", layout.memory_per_node, machine.memory, largest[1]),
    )
    for name, unit, each, there, most in wanted:
        if each * layout.nodes > there:
            yield _misfit(spec, layout, name, f"{each * layout.nodes:,} {unit}", f"this {where}'s {there:,}")
        elif each > most:
            yield _misfit(spec, layout, name, f"{each:,} {unit} on one node", f"its largest node's {most:,}")


def _misfit(spec: RunSpec, layout: Layout, name: str, needs: str, there: str) -> Problem:
    """Blames what the user gave: the share itself, else the number of nodes, else the size."""
    given = getattr(spec.compute, name)
    pointer = f"/compute/{name}"
    if given is None:
        many = layout.nodes > 1
        pointer, given = ("/compute/nodes", layout.nodes) if many else ("/size", spec.size)
    return Problem(pointer, "does_not_fit", f"got {given!r}, which needs {needs}; allowed: what fits {there}")


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number
