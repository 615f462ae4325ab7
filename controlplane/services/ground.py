"""What a spec is resolved on: the cluster's numbers and traits, the installation's storage, the dataset's vocabulary.

A cluster that does not answer keeps nobody from asking for a run: what is not known of it is not checked.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from controlplane.clusters.base import Capacity, ClusterError, Traits
from controlplane.domain.errors import InvalidSpec, Problem
from controlplane.domain.laid_out import LaidOut
from controlplane.domain.layout import misfits
from controlplane.domain.planned import priced, too_large
from controlplane.domain.resolve import ANEW, ResolvedRun, Start, lay_out
from controlplane.domain.spec import RunSpec
from controlplane.domain.storage import within
from controlplane.services.context import Context
from controlplane.services.datasets import vocabulary_of
from controlplane.services.inputs import unfit
from controlplane.submission import ensure_renderable
from teragpt.config import ROWWISE_ON_CPU

UNKNOWN = Capacity(0, 0, 0, None, 0, 0, 0, known=False)
SHARED, NOT_SHARED = "ReadWriteMany", "claim_not_shared"
FRESH_S = 1.0  # for which the cluster and the folders that a spec names are not looked at again
MOST_REMEMBERED = 256  # specs


def capacity_of(context: Context) -> Capacity:
    """What the cluster has, as far as it says."""
    try:
        return context.cluster.capacity()
    except ClusterError:
        return UNKNOWN


def storage_of(context: Context) -> str:
    """Where runs without a checkpoint.uri write; empty where they must name one."""
    return context.storage or (str(context.home / "runs") if context.cluster.traits().shared_folders else "")


def laid_out(context: Context, spec: RunSpec, run_id: str, start: Start = ANEW) -> tuple[ResolvedRun, list[Problem]]:
    """The run that the spec describes, and why it can never run here, where it cannot. Raises InvalidSpec.

    What was found less than `FRESH_S` ago for a spec that differs in its name alone holds for this one too.
    """
    asked = _asked(spec, start)
    found = _fresh(context, asked)
    if found is None:
        found = _looked_at(context, spec, run_id, start)
        if len(context.laid_out) >= MOST_REMEMBERED:
            context.laid_out.clear()
        context.laid_out[asked] = found
    return found.of(run_id), [*found.problems]


def remembered(context: Context, spec: RunSpec, run_id: str) -> ResolvedRun | None:
    """As `fitting`, where that is known already and asks nobody; else None."""
    found = _fresh(context, _asked(spec, ANEW))
    return found.of(run_id) if found and not found.problems else None


def _asked(spec: RunSpec, start: Start) -> tuple[str, Start]:
    return spec.model_dump_json(exclude={"name", "notes", "pinned"}, exclude_unset=True), start


def _fresh(context: Context, asked: tuple[str, Start]) -> LaidOut | None:
    found = context.laid_out.get(asked)
    return found if found and time.monotonic() - found.since < FRESH_S else None


def _looked_at(context: Context, spec: RunSpec, run_id: str, start: Start) -> LaidOut:
    """The spec on its cluster as that is now; of nodes that nobody asked for, one, where only one can write."""
    since = time.monotonic()
    spec = context.defaults.under(spec)
    context = context.at(known(context, spec.compute.cluster))
    run, problems = _laid_out(context, spec, run_id, start)
    if spec.compute.nodes is None and any(problem.code == NOT_SHARED for problem in problems):
        alone = spec.model_copy(update={"compute": spec.compute.model_copy(update={"nodes": 1})})
        run, problems = _laid_out(context, alone, run_id, start)
    storage = "" if spec.checkpoint.uri else storage_of(context)
    return LaidOut(run, tuple(problems), storage, context.cluster.traits().shared_folders, since)


def _laid_out(context: Context, spec: RunSpec, run_id: str, start: Start) -> tuple[ResolvedRun, list[Problem]]:
    traits, machine, storage = context.cluster.traits(), capacity_of(context), storage_of(context)
    run = lay_out(
        spec,
        machine,
        within(storage, run_id) if storage else "",
        vocabulary=vocabulary_of(spec) if traits.shared_folders else None,
        start=start,
        shared_folders=traits.shared_folders,
        kinds=traits.kinds,
        kind=context.kind,
        namespaces=traits.namespaces,
        cluster=context.cluster.name if spec.compute.cluster in context.further else "",
    )
    run = replace(run, planned=priced(run.planned, context.gpu_price))
    ensure_renderable(run)
    large = too_large(run.planned, run.state_bytes["total"], spec, machine)
    return run, [
        *misfits(run.layout, spec, machine),
        *large,
        *_bad_claims(context, spec, run),
        *_beyond_quota(traits, run),
        *_beyond_torch(traits, run),
        *(unfit(spec, run) if traits.shared_folders else ()),
    ]


def fitting(context: Context, spec: RunSpec, run_id: str, start: Start = ANEW) -> ResolvedRun:
    """As `laid_out`. Raises InvalidSpec also for what can never run here."""
    run, problems = laid_out(context, spec, run_id, start)
    if problems:
        raise InvalidSpec(problems)
    return run


def known(context: Context, cluster: str | None) -> str:
    """A cluster that a run may name. Raises InvalidSpec."""
    names = (context.cluster.name, *context.further)
    if cluster is not None and cluster not in names:
        detail = f"got {cluster!r}; allowed: the installation's clusters, {', '.join(names)}"
        raise InvalidSpec([Problem("/compute/cluster", "no_such_cluster", detail)])
    return cluster or ""


def _beyond_quota(traits: Traits, run: ResolvedRun) -> Iterator[Problem]:
    """More GPUs than its namespace may ever hold."""
    namespace, gpus = run.namespace or traits.namespace, run.layout.nodes * run.layout.gpus_per_node
    quota = traits.quotas.get(namespace)
    if quota is not None and gpus > quota:
        detail = f"got {gpus} GPUs in all; allowed in namespace {namespace}: {quota}"
        yield Problem("/compute/gpus_per_node", "beyond_quota", detail)


def _beyond_torch(traits: Traits, run: ResolvedRun) -> Iterator[Problem]:
    """Products that this machine's torch cannot compute without a GPU, where it is this machine's that computes."""
    config, found = run.config, _torch()
    wanted = (config["precision"], config["fp8_recipe"]) == ("fp8", "rowwise") and not run.layout.gpus_per_node
    if traits.shared_folders and wanted and found and _minor(found) < ROWWISE_ON_CPU:
        first = ".".join(map(str, ROWWISE_ON_CPU))
        detail = (
            f"got 'rowwise'; allowed: tensorwise, or rowwise on a GPU or with torch {first}; here is {found} on CPU"
        )
        yield Problem("/train/fp8_recipe", "beyond_torch", detail)


@cache
def _torch() -> str:
    """The version of torch that is installed beside this; empty without one."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""


def _minor(found: str) -> tuple[int, int]:
    major, minor, *_ = found.split(".")
    return int(major), int(minor)


def _bad_claims(context: Context, spec: RunSpec, run: ResolvedRun) -> Iterator[Problem]:
    """Claims that are not there, or that only one node can write."""
    for claim in run.claims:
        reading = (at for at, uri in spec.data.uris.items() if uri.startswith(f"pvc://{claim}/"))
        yield from bad_claim(context, run, claim, next(reading, "/checkpoint/uri"))


def bad_claim(context: Context, run: ResolvedRun, claim: str, pointer: str) -> Iterator[Problem]:
    """Why the run cannot use a claim that `pointer` names, as far as the cluster tells."""
    namespace = run.namespace or context.cluster.traits().namespace
    try:
        modes = context.cluster.access_modes(claim, namespace)
    except ClusterError:
        return
    if modes is None:
        detail = f"got {claim!r}; allowed: a claim of the namespace {namespace}"
        yield Problem(pointer, "no_such_claim", detail)
    elif run.layout.nodes > 1 and SHARED not in modes:
        detail = f"got {claim!r}, which is {', '.join(sorted(modes))}; allowed on {run.layout.nodes} nodes: {SHARED}"
        yield Problem(pointer, NOT_SHARED, detail)
