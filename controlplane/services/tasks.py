"""What is done with a trained run where its folder is: a sample, an export, a copy. Each is a run of its own.

So it is queued, followed, logged and cancelled as any run is; it trains nothing and is in no list of runs. What it
hands back waits in the data folder for whoever asked.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Literal

from controlplane.domain.errors import NoCheckpoint, NotFound
from controlplane.domain.layout import POD_RANK_BYTES, Layout
from controlplane.domain.names import RUN_ID, new_run_id, suffix
from controlplane.domain.resolve import ResolvedRun
from controlplane.domain.spec import Limits, RunSpec
from controlplane.services import runs
from controlplane.services.attempts import authenticate
from controlplane.services.context import Context
from controlplane.services.insertion import Request
from controlplane.services.views import RunView

Task = Literal["sample", "export", "pull"]
COPIES = 4  # of the fp32 weights that a task holds at once, at most: as loaded, as written, and what comes and goes
KEPT_S = 86_400


def create_task(
    context: Context, run_id: str, task: Task, arguments: Sequence[str] = (), *, principal: str = runs.LOCAL
) -> RunView:
    """Have a task done with a run's newest checkpoint. Raises NotFound and NoCheckpoint."""
    parent = runs.get(context, run_id)
    if runs.last_step(parent) is None:
        raise NoCheckpoint(parent.id, parent.phase, parent.folder)
    _sweep(context)
    resolved = ResolvedRun.from_json(parent.resolved)
    doing = task, str(resolved.config["out"]), *arguments
    return begin(context, parent, task, doing, dataclasses.replace(resolved, layout=_one_rank(resolved)), principal)


def begin(
    context: Context, parent: RunView, task: str, doing: Sequence[str], resolved: ResolvedRun, principal: str
) -> RunView:
    """Store a run of one pod that does something with another's folder: `doing` is what `teragpt.task` is told."""
    made = new_run_id()
    alone = dataclasses.replace(
        resolved,
        kind="Job" if "Job" in runs.where(context, parent).cluster.traits().kinds else resolved.kind,
        runtime=None,
        command=("python", "-m", "teragpt.task", *doing),
        folder="",
    )
    request = Request(
        id=made,
        name=f"{task}-{suffix(made)}",
        spec=RunSpec(size=parent.size, labels=parent.labels, limits=Limits(max_restarts=0)),
        resolved=alone,
        principal=principal,
        key=None,
        body_hash="",
        queue=runs.queue_of(context, alone),
        task=task,
        task_of=parent.id,
    )
    return runs.store_run(context, request)[0]


def _one_rank(run: ResolvedRun) -> Layout:
    """One pod with one rank's share of what the run had, and memory for the whole model."""
    layout = run.layout
    ranks = layout.processes_per_node
    memory = POD_RANK_BYTES + COPIES * 4 * run.parameters
    return Layout(1, 1, min(1, layout.gpus_per_node), max(layout.cpus_per_node / ranks, 0.25), memory)


class Output:
    """What a task hands back, as it comes in: whole, or as if it had never begun."""

    def __init__(self, context: Context, run_id: str, token: str) -> None:
        """For the run whose pod shows this token. Raises NotFound and Unauthorized."""
        run_id = runs.get(context, run_id).id
        authenticate(context, run_id, token)
        self._path = _path(context, run_id)
        self._path.parent.mkdir(exist_ok=True)
        self._part = self._path.with_suffix(f".{os.urandom(4).hex()}")
        self._file: IO[bytes] = self._part.open("xb")

    def add(self, piece: bytes) -> None:
        """The next bytes. Raises OSError."""
        self._file.write(piece)

    def end(self, *, whole: bool) -> None:
        """No more comes: keep it, or forget it."""
        with self._file:
            if whole:
                self._file.flush()
                os.fsync(self._file.fileno())
        if whole:
            self._part.replace(self._path)
        else:
            self._part.unlink()


def output(context: Context, run_id: str) -> Path:
    """The file that a task has handed back. Raises NotFound."""
    run = runs.get(context, run_id)
    path = _path(context, run.id)
    if run.task_of is None or not path.is_file():
        raise NotFound("output of run", run.id)
    return path


def _path(context: Context, run_id: str) -> Path:
    assert RUN_ID.fullmatch(run_id)
    return context.home / "outputs" / f"{run_id}.tar"


def _sweep(context: Context) -> None:
    """Remove what nobody has fetched within a day."""
    for path in (context.home / "outputs").glob("run_*"):
        if path.stat().st_mtime < time.time() - KEPT_S:
            path.unlink(missing_ok=True)
