"""Where the ranks of a run stood when it hung: the stacks in its folder, where that is on this machine."""

from __future__ import annotations

from pathlib import Path

from controlplane import runfolder
from controlplane.services import runs
from controlplane.services.context import Context
from controlplane.services.views import StackFile, StacksView, moment


def stacks(context: Context, run_id: str) -> StacksView:
    """The stacks that were kept, oldest first. Raises NotFound."""
    run = runs.get(context, run_id)
    folder = Path(run.folder)
    if not folder.is_absolute():
        return StacksView(run.folder, seen=False, items=[])
    items = [StackFile(one.file, moment(one.time), one.text) for one in runfolder.stacks(folder)]
    return StacksView(run.folder, seen=True, items=items)
