"""The checkpoints of a run: those in its folder, where that is on this machine, else the last one that it told of."""

from __future__ import annotations

from pathlib import Path

from controlplane import runfolder
from controlplane.services import runs
from controlplane.services.context import Context
from controlplane.services.views import CheckpointsView, CheckpointView, moment


def checkpoints(context: Context, run_id: str) -> CheckpointsView:
    """Its complete checkpoints, oldest first. Raises NotFound."""
    run = runs.get(context, run_id)
    folder = Path(run.folder)
    if run.folder and folder.is_absolute():
        found = [
            CheckpointView(one.step, one.attempt, moment(one.time), one.size, one.ranks, str(one.folder))
            for one in runfolder.checkpoints(folder)
        ]
        return CheckpointsView(run.folder, seen=True, items=found)
    last = [] if run.checkpoint_step is None else [CheckpointView(run.checkpoint_step, None, None, None, None, None)]
    return CheckpointsView(run.folder, seen=False, items=last)
