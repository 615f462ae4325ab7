"""Keeps where the ranks stand before an attempt that hangs is ended, and says in its verdict where that is.

What cannot be kept is named there too: it is evidence, and holds up no decision.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from controlplane.clusters.base import Cluster, ClusterError, Stacks
from controlplane.domain.diagnoses import HUNG
from controlplane.reconcile.decide import Decision, Look
from controlplane.runfolder import stack_file


def with_stacks(cluster: Cluster, look: Look, decision: Decision) -> Decision:
    """The decision; one on a hang names the file of stacks that was just written, or why there is none."""
    verdict = decision.verdict
    if verdict is None or verdict.reason != HUNG:
        return decision
    return replace(decision, verdict=replace(verdict, message=f"{verdict.message}; {_kept(cluster, look)}"))


def _kept(cluster: Cluster, look: Look) -> str:
    try:
        seen = cluster.stacks(look.attempt.object_name)
    except ClusterError as error:
        seen = Stacks(problem=str(error))
    if not seen.text:
        return f"no stacks were kept: {seen.problem}"
    file = stack_file(Path(look.run.folder), look.attempt.number)
    part = file.with_suffix(".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(seen.text, "utf-8")
        part.replace(file)
    except OSError as error:
        return f"no stacks were kept: {file}: {error.strerror}"
    lacks = f", but not all: {seen.problem}" if seen.problem else ""
    return f"the stacks of {seen.processes} processes are in {file}{lacks}"
