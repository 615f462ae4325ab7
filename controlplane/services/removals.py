"""A deleted run's folder where only pods see it, on a claim or in an object store: one of them removes it.

A removal is a task as others are, of a run that is hidden already. A purge asks for it, and goes on once it has
succeeded; it asks again for one that has failed. What its user named is its user's, and is never removed.
"""

from __future__ import annotations

import dataclasses

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from controlplane.domain.layout import Layout
from controlplane.domain.phases import LIVE, Phase
from controlplane.domain.placement import Placement
from controlplane.domain.resolve import ResolvedRun
from controlplane.services import runs, tasks
from controlplane.services.context import Context
from controlplane.store.tables import Attempt, Run

TASK = "removal"
ALONE = Layout(1, 1, 0, 0.1, 512 << 20)  # a Python that knows an object store
PLACED = ("node_selector", "tolerations", "image", "image_pull_secrets")  # a run's GPUs and devices it needs not


def ours(session: Session, run: Run) -> bool:
    """Whether a run has, or had, a folder of our making that only pods see; none of its pods ran: there is none."""
    if run.folder.startswith("/") or run.folder.rpartition("/")[2] != run.id:
        return False
    attempts = session.execute(select(Attempt.started_at, Attempt.pods).where(Attempt.run_id == run.id))
    return any(started or any(pod.get("started_at") for pod in pods) for started, pods in attempts)


def begun(session: Session, run_id: str) -> bool:
    """Whether a pod removes, or has removed, the folder of a run."""
    return under_way(session, run_id) is not None or done(session, run_id)


def done(session: Session, run_id: str) -> bool:
    """Whether a pod has removed it."""
    return session.scalar(_of(run_id).where(Run.phase == Phase.SUCCEEDED)) is not None


def under_way(session: Session, run_id: str) -> str | None:
    """The removal that goes on, if one does."""
    return session.scalar(_of(run_id).where(Run.phase.in_([*LIVE])))


def ask(context: Context, run_id: str, *, actor: str = runs.LOCAL) -> str:
    """Have the folder of a deleted run removed; the id of the run that does it."""
    run = runs.of_id(context, run_id)
    resolved = ResolvedRun.from_json(run.resolved)
    placed = Placement.model_validate({name: getattr(resolved.placement, name) for name in PLACED})
    alone = dataclasses.replace(resolved, layout=ALONE, placement=placed, planned={})
    return tasks.begin(context, run, TASK, ("remove", str(resolved.config["out"]), run.id), alone, actor).id


def _of(run_id: str) -> Select[str]:
    return select(Run.id).where(Run.task_of == run_id, Run.task == TASK).limit(1)
