"""What a run would be, without making one: its plan, its manifest, and the table of sizes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from controlplane.domain.errors import Problem
from controlplane.domain.layout import misfits
from controlplane.domain.names import default_name, new_run_id, object_name
from controlplane.domain.resolve import ResolvedRun, lay_out
from controlplane.domain.resolve import sizes as table_of_sizes
from controlplane.domain.spec import RunSpec
from controlplane.render import operator_environment, render
from controlplane.services.context import Context
from controlplane.services.datasets import vocabulary_of
from controlplane.submission import attempt_of


@dataclass(frozen=True)
class Plan:
    """How a spec lies on this cluster; `problems` say why it can never run there, where it cannot."""

    size: str
    resolved: ResolvedRun
    capacity: dict[str, Any]
    problems: tuple[Problem, ...]

    @property
    def fits(self) -> bool:
        """Whether it can run here."""
        return not self.problems


@dataclass(frozen=True)
class Preview:
    """What would be sent: the manifest, what the operator adds to each pod's environment, and warnings."""

    plan: Plan
    manifest: dict[str, Any]
    environment: dict[str, dict[str, str]]
    warnings: tuple[str, ...]


def sizes() -> list[dict[str, Any]]:
    """Every named size with what it derives."""
    return table_of_sizes()


def plan(context: Context, spec: RunSpec) -> Plan:
    """The layout and exact bytes of state, whether it fits or not. Raises InvalidSpec for what no machine takes."""
    out = str(context.home / "runs" / "run_preview")
    capacity = context.cluster.capacity()
    resolved = lay_out(spec, capacity, out, vocabulary=vocabulary_of(spec))
    return Plan(spec.size, resolved, dataclasses.asdict(capacity), tuple(misfits(resolved.layout, spec, capacity)))


def preview(context: Context, spec: RunSpec) -> Preview:
    """What `POST /runs` with this spec would create; nothing is created. Raises InvalidSpec."""
    planned, run_id = plan(context, spec), new_run_id()
    name = object_name(spec.name or default_name(spec.size, run_id), run_id, 1)
    run = planned.resolved
    attempt = attempt_of(run_id, name, 1, run, spec_hash=run.spec_hash, url=context.url, image=context.image, token="-")
    manifest = render(attempt)
    return Preview(planned, manifest, operator_environment(manifest), tuple(_warnings(planned)))


def _warnings(planned: Plan) -> list[str]:
    run, there = planned.resolved, planned.capacity
    warnings = [f"it can never run here: {problem}" for problem in planned.problems]
    wanted = run.layout.nodes * run.layout.cpus_per_node
    if planned.fits and wanted > there["free_cpus"]:
        warnings.append(f"it will wait: it needs {wanted:,} CPUs, and {there['free_cpus']} of {there['cpus']} are free")
    if run.layout.processes_per_node > run.layout.cpus_per_node:
        warnings.append(f"{run.layout.processes_per_node} ranks share {run.layout.cpus_per_node} CPUs of a node")
    return warnings
