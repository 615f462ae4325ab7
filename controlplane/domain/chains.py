"""Chains: a run that starts from another's last checkpoint when that one has succeeded. It knows no store.

A run can only follow one that is there, for good, so that no circle of runs can wait for itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from controlplane.domain.errors import Problem
from controlplane.domain.phases import Phase
from controlplane.domain.resolve import ResolvedRun
from controlplane.domain.spec import RunSpec, short
from controlplane.domain.storage import MOUNT
from teragpt.config import TENSORS, kept

AFTER = "/after"
WAITS_FOR_RUN = "WaitsForRun"
BROKEN = {Phase.FAILED: "UpstreamFailed", Phase.CANCELLED: "UpstreamCancelled"}


def waits_for_run(name: str, run_id: str) -> str:
    """What a run is told whose upstream goes on."""
    return f"waits for run {name!r} ({run_id}) to succeed"


def broken_words(name: str, run_id: str, phase: str) -> tuple[str, str]:
    """Why a run fails whose upstream did not succeed, as reason and message."""
    how = "has failed" if phase == Phase.FAILED else "was cancelled"
    return BROKEN[Phase(phase)], f"run {name!r} ({run_id}), from whose checkpoint it was to start, {how}"


def cannot_follow(spec: RunSpec, name: str, phase: str, task: str | None) -> Iterator[Problem]:
    """Why a run with this spec cannot come after the run of this name."""
    if task is not None or phase in BROKEN:
        is_so = f"is a {task}" if task else "has failed" if phase == Phase.FAILED else "was cancelled"
        detail = f"got {short(name)}, which {is_so}; allowed: a run that lives or has succeeded"
        yield Problem(AFTER, "cannot_follow", detail)
    if spec.train.get("start_from"):
        detail = f"got {short(spec.train['start_from'])}; allowed: nothing beside {AFTER}, which says it"
        yield Problem("/train/start_from", "one_of", detail)


def does_not_fit(run: ResolvedRun, before: Mapping[str, Any]) -> Iterator[Problem]:
    """Why training cannot go on from where a run ends that is `before`, as the store keeps it."""
    unknown = {*run.left_open, *before.get("left_open", ())}  # only the trainer can know them, and compares them
    config, other = run.config, vars(kept(before["config"]))
    differing = [name for name in TENSORS if name not in unknown and config[name] != other[name]]
    if differing:
        told = ", ".join(f"{name} {config[name]!r} and not {other[name]!r}" for name in differing)
        detail = f"got {told}; allowed: the shape and optimizer of the run whose checkpoint it starts from"
        yield Problem(AFTER, "other_tensors", detail)
    if run.cluster != before.get("cluster", "") and config["start_from"].startswith("/"):
        detail = (
            f"got {run.cluster or 'the own one'}; allowed: where the folder of that run's checkpoint is, or a bucket"
        )
        yield Problem("/compute/cluster", "other_cluster", detail)
    elif run.namespace != before.get("namespace", run.namespace) and config["start_from"].startswith(MOUNT):
        detail = f"got {run.namespace}; allowed: {before['namespace']}, where the claim of that run's checkpoint is"
        yield Problem("/kubernetes/namespace", "other_namespace", detail)
    if run.steps <= before["steps"]:
        detail = f"got {run.steps:,}; allowed: more than the {before['steps']:,} steps of the run that it comes after"
        yield Problem("/train/steps", "nothing_left", detail)
