"""Where the ranks of a run stood when it hung: the stacks in its folder, where that is on this machine, or in its logs.

In pods each rank prints its own (SIGUSR2, or before it is killed for not stopping), so that they are in the archive.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from controlplane import runfolder
from controlplane.domain.diagnoses import HUNG
from controlplane.services import attempts, runs
from controlplane.services.context import Context
from controlplane.services.logs import of_line, tail_of
from controlplane.services.views import AttemptView, RunView, StackFile, StacksView, moment

LAST = 10_000  # lines of a pod's log that are looked at
HEAD = re.compile(r"(Current thread|Thread) 0x[0-9a-f]+.*\(most recent call first\):$")  # as faulthandler writes
FRAME = re.compile(r'  (File "|\.\.\.|<)')


def stacks(context: Context, run_id: str) -> StacksView:
    """The stacks that were kept, oldest first. Raises NotFound."""
    run = runs.get(context, run_id)
    folder = Path(run.folder)
    if not folder.is_absolute():
        return StacksView(run.folder, seen=False, items=_printed(context, run))
    items = [StackFile(one.file, moment(one.time), one.text) for one in runfolder.stacks(folder)]
    return StacksView(run.folder, seen=True, items=items)


def dumps(lines: Iterable[str]) -> dict[int, str]:
    """The stacks among a pod's lines, by rank, as faulthandler prints them; cut where they are long."""
    found: dict[int, list[str]] = {}
    inside: dict[int, bool] = {}
    for line in lines:
        rank, text = of_line(line)
        begins = HEAD.match(text) is not None
        inside[rank] = begins or (inside.get(rank, False) and FRAME.match(text) is not None)
        if inside[rank]:
            found.setdefault(rank, []).append(f"\n{text}\n" if begins else f"{text}\n")
    return {rank: "".join(parts).lstrip("\n")[-runfolder.LARGEST_STACKS :] for rank, parts in sorted(found.items())}


def _printed(context: Context, run: RunView) -> list[StackFile]:
    """What ranks printed in the attempts that hung, and in the one that lives: the newest, of so many pods of each."""
    found: list[StackFile] = []
    for attempt in reversed(attempts.attempts(context, run.id)):
        room = runfolder.MOST_STACKS - len(found)
        if room and (attempt.reason == HUNG or attempt.finished_at is None):
            found[:0] = islice(_of_attempt(context, run, attempt, room), room)
    return found


def _of_attempt(context: Context, run: RunView, attempt: AttemptView, pods: int) -> Iterator[StackFile]:
    for pod in attempt.pods[:pods]:
        for rank, text in dumps(tail_of(context, run, attempt, pod.name, LAST)).items():
            yield StackFile(f"attempt-{attempt.attempt}-rank-{rank}.log", attempt.finished_at, text)
