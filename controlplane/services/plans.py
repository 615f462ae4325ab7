"""What a run would be, without making one: its plan, its manifest, and the table of sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from controlplane.clusters.base import ClusterError, Manifest, NameConflict, Rejected, Traits
from controlplane.domain.chains import does_not_fit
from controlplane.domain.errors import Problem
from controlplane.domain.names import default_name, new_run_id, object_name
from controlplane.domain.planned import REFUSED, formulas
from controlplane.domain.resolve import ResolvedRun
from controlplane.domain.resolve import sizes as table_of_sizes
from controlplane.domain.spec import RunSpec
from controlplane.render import companions_of, environment_of, render
from controlplane.render.blame import pointer_of
from controlplane.services import runs
from controlplane.services.context import Context
from controlplane.services.ground import capacity_of, laid_out
from controlplane.submission import attempt_of
from teragpt.config import kept
from teragpt.plan.explain import Line

MOST_PODS = 64  # whose environment a preview shows: they differ in their rank alone


@dataclass(frozen=True)
class Plan:
    """How a spec lies on this cluster; `problems` say why it can never run there, where it cannot.

    `formulas` are those of `resolved.planned`.
    """

    size: str
    resolved: ResolvedRun
    capacity: dict[str, Any]
    problems: tuple[Problem, ...]
    formulas: tuple[Line, ...]

    @property
    def fits(self) -> bool:
        """Whether it can run here."""
        return not self.problems


@dataclass(frozen=True)
class DryRun:
    """What the cluster says to the object: accepted, refused (`problems` say why) or unknown (`detail` says why)."""

    result: Literal["accepted", "refused", "unknown"]
    problems: tuple[Problem, ...] = ()
    detail: str = ""


@dataclass(frozen=True)
class Preview:
    """What would be sent: the object, why it is of its kind, what it needs beside it, what its pods are told.

    `environment` is the training container's, by pod, of the first pods. `audience`: of the service-account token that
    pods show; None where each attempt has a secret of its own.
    """

    plan: Plan
    kind: str
    reason: str
    namespace: str
    audience: str | None
    manifest: dict[str, Any]
    companions: tuple[dict[str, Any], ...]
    environment: dict[str, dict[str, str]]
    dry_run: DryRun
    warnings: tuple[str, ...]


def sizes() -> list[dict[str, Any]]:
    """Every named size with what it derives."""
    return table_of_sizes()


def plan(context: Context, spec: RunSpec) -> Plan:
    """The layout and exact bytes of state, whether it fits or not. Raises InvalidSpec for what no machine takes."""
    before = runs.upstream(context, spec)
    resolved, problems = laid_out(context, spec, "run_preview", runs.start_of(before))
    if before:
        problems += does_not_fit(resolved, before.resolved)
    machine = capacity_of(context.at(resolved.cluster))
    told = formulas(spec, kept(resolved.config), resolved.layout, machine)
    return Plan(spec.size, resolved, dataclasses.asdict(machine), tuple(problems), tuple(told))


def preview(context: Context, spec: RunSpec) -> Preview:
    """What `POST /runs` with this spec would create; nothing is created. Raises InvalidSpec."""
    planned, run_id = plan(context, spec), new_run_id()
    run, context = planned.resolved, context.at(planned.resolved.cluster)
    traits = context.cluster.traits()
    attempt = attempt_of(
        run_id,
        object_name(spec.name or default_name(spec.size, run_id), run_id, 1),
        1,
        run,
        spec_hash=run.spec_hash,
        url=context.url,
        image=context.image,
        token="-",
        namespace=traits.namespace,
        audience=traits.audience,
        queue=context.queue,
    )
    manifest = render(attempt)
    return Preview(
        plan=planned,
        kind=run.kind,
        reason=_reason(run, spec, traits, context.kind),
        namespace=run.namespace or traits.namespace,
        audience=traits.audience,
        manifest=manifest,
        companions=tuple(companions_of(manifest)),
        environment=environment_of(manifest, MOST_PODS),
        dry_run=_dry_run(context, manifest, spec),
        warnings=tuple(_warnings(planned)),
    )


def _reason(run: ResolvedRun, spec: RunSpec, traits: Traits, installation: str) -> str:
    """Why its objects are of their kind."""
    if spec.kubernetes.kind != "auto":
        return "the request asks for it"
    if run.runtime is not None:
        return "the request names a runtime of the Kubeflow Trainer"
    if installation != "auto":
        return "the installation asks for it"
    return traits.reasons.get(run.kind, "every Kubernetes cluster has it, and nothing is known of this one yet")


def _dry_run(context: Context, manifest: Manifest, spec: RunSpec) -> DryRun:
    """What the cluster says; a refusal of a part names the field of the request that the part was made from."""
    try:
        context.cluster.dry_run(manifest)
    except Rejected as error:
        patch = "/pod_overrides" if spec.pod_overrides else ""
        problems = (Problem(pointer_of(one.path) or patch, "refused_by_cluster", str(one)) for one in error.problems)
        return DryRun("refused", tuple(problems))
    except NameConflict as error:
        return DryRun("refused", (Problem("/name", "refused_by_cluster", str(error)),))
    except ClusterError as error:
        return DryRun("unknown", detail=str(error))
    return DryRun("accepted")


def _warnings(planned: Plan) -> Iterator[str]:
    layout, there = planned.resolved.layout, planned.capacity
    yield from (f"it can never run here: {problem}" for problem in planned.problems)
    if planned.fits and there["known"]:
        wanted = (("CPUs", "cpus", layout.cpus_per_node), ("GPUs", "gpus", layout.gpus_per_node))
        for unit, name, each in wanted:
            total, free = layout.nodes * each, there[f"free_{name}"]
            if total > free:
                yield f"it will wait: it needs {total:,} {unit}, and {free} of {there[name]} are free"
    if planned.fits and (why := planned.resolved.planned.get(REFUSED)):
        yield f"its GPUs may be too few: {why}"
    if not there["known"]:
        yield "the cluster does not show its nodes: whether it fits is not known"
    if layout.processes_per_node > layout.cpus_per_node >= 1:
        yield f"{layout.processes_per_node} ranks share {layout.cpus_per_node} CPUs of a node"
    if layout.nodes > MOST_PODS:
        yield f"environment shows the first {MOST_PODS} of {layout.nodes:,} pods"
