"""A rank of a training run that gets a signal inside a save, a load, a compilation or a step, at a call drawn by lot.

`python -m tests.teragpt.struck STRIKE TRAINER'S ARGUMENTS`, the strike as JSON, runs the trainer; the struck rank
counts the calls of Python functions, and of C ones from them, that happen inside, in every thread, and strikes at the
one that is asked for: itself, or every rank of the job, the others wherever they are. It says where first. A run that
makes fewer calls there ends as it would, and says how many it made. A call and not a time is drawn, so that the same
strike hits the same place on a loaded machine too. Of a compilation only what dynamo does is there (backend `eager`).
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import torch
from torch._dynamo.callback import callback_handler
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from teragpt.checkpoint import Checkpoints

TOLD, MADE = "struck by ", "calls made inside: "


@dataclass(frozen=True)
class Strike:
    """`number`: the signal, for `rank` at its `call`-th call inside the `phase`; `everyone`: for all ranks then."""

    phase: str
    number: int
    everyone: bool
    rank: int
    call: int


class Count:
    """Counts calls inside the phase, in whichever thread, and strikes."""

    def __init__(self, strike: Strike) -> None:
        self.strike, self.made = strike, 0

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """A profiler's hook: something is called, or has returned."""
        self.made += 1
        if self.made != self.strike.call:
            return
        place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
        name = signal.Signals(self.strike.number).name
        os.write(1, f"{TOLD}{name} in {self.strike.phase} at {place}, {event}\n".encode())
        pids = [one.pid for one in psutil.Process(os.getppid()).children()] if self.strike.everyone else []
        for pid in [*sorted(set(pids) - {os.getpid()}), os.getpid()]:
            os.kill(pid, self.strike.number)

    def begin(self, *_: object) -> None:
        """This thread is inside."""
        sys.setprofile(self)

    def end(self, *_: object) -> None:
        """This thread is outside again."""
        sys.setprofile(None)

    def inside(self, owner: type, name: str) -> None:
        """Count what happens inside a method."""
        method: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(method)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.begin()
            try:
                return method(*args, **kwargs)
            finally:
                self.end()

        setattr(owner, name, counted)


def arm(strike: Strike) -> Count:
    """Have this process count, and strike."""
    from teragpt.train import Trainer  # anew in each rank, as the trainer itself is

    count = Count(strike)
    methods: dict[str, list[tuple[type, str]]] = {
        "save": [(Checkpoints, "save"), (FileSystemWriter, "write_data"), (Checkpoints, "publish")],
        "load": [(Checkpoints, "load")],
        "step": [(Trainer, "step")],
    }
    for owner, name in methods.get(strike.phase, []):
        count.inside(owner, name)
    if strike.phase == "compile":
        callback_handler.register_start_callback(count.begin)
        callback_handler.register_end_callback(count.end)
    return count


def main() -> int:
    """Train."""
    strike = Strike(**json.loads(sys.argv[1]))
    torch.compile = functools.partial(torch.compile, backend="eager")
    count = arm(strike) if strike.rank == int(os.environ["RANK"]) else None
    from teragpt import train

    code = train.main(sys.argv[2:])
    if count:
        print(f"{MADE}{count.made}")
    return code


if __name__ == "__main__":
    sys.exit(main())
