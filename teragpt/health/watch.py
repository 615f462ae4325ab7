"""Ends a job that stands still, and says which rank it waits for.

In a collective every rank waits for the slowest, and none can tell for whom. So each rank has a thread that sees when
no step has come for too long: it tells the others where its main thread stands, over the store that they met at. A rank
that stands where no other does is the one, and one that tells nothing is dead or stopped. Works on every backend, and
needs nothing of torch's own watchdogs.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from teragpt.config import Config
from teragpt.health import evidence
from teragpt.launcher.environment import World
from teragpt.storage import folder_at

CRASHED = 1
LOOK_S = 0.5
SETTLE_S = 3.0  # for every rank to have told
PATIENCE = timedelta(seconds=5)  # with the store, which rank 0 or its launcher keeps
PACKAGE = Path(__file__).parents[1]
SHOWN = 8  # ranks that a line names
LONGEST = 200  # characters of an error


class Watch:
    """One rank's: `beat` at the start of each step; the settings say how long the first and later ones may take."""

    def __init__(self, world: World, config: Config) -> None:
        self.world, self.config, self.folder = world, config, folder_at(config.out, "out") / "faults"
        self.allowed, self.beats, self.last = float(config.start_timeout), 0, time.monotonic()
        self.places: dict[int, str] = {}
        self.main, self.over = threading.get_ident(), threading.Event()
        self.thread = threading.Thread(target=self.look, name="watch", daemon=True)
        self.thread.start()

    def beat(self) -> None:
        """A step begins."""
        self.last, self.beats = time.monotonic(), self.beats + 1
        if self.beats > 1:  # the first has ended
            self.allowed = float(self.config.step_timeout)

    def close(self) -> None:
        """Watch no more."""
        self.over.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Watch no more; keep a picture of memory that was too small; name the rank whose end was this one's too."""
        self.close()
        if isinstance(error, torch.OutOfMemoryError):
            for line in out_of_memory(self.world.rank, evidence.keep_memory(self.folder, self.name())):
                print(line, file=sys.stderr, flush=True)
        if isinstance(error, RuntimeError) and self.world.world_size > 1:
            self.tell(f"{type(error).__name__}: {str(error).partition(chr(10))[0][:LONGEST]}")
            time.sleep(SETTLE_S)
            self.report("a rank failed")

    def look(self) -> None:
        """The thread: wait for a step that does not come."""
        while not self.over.wait(LOOK_S):
            if time.monotonic() - self.last > self.allowed:
                self.end()
                return

    def end(self) -> None:
        """Say where everyone stands, keep what helps to find out why, and end this rank."""
        frames = sys._current_frames()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - the one way to them
        self.tell(where(frames[self.main]))
        evidence.keep(self.folder, self.name())
        time.sleep(SETTLE_S if self.world.rank == 0 else 2 * SETTLE_S)  # rank 0's end, with its report, comes first
        if not self.over.is_set():
            self.report(f"no step in {self.allowed:g} s")
            print(f"every rank's stacks are in {self.folder}", file=sys.stderr, flush=True)
            os._exit(CRASHED)  # the main thread waits in a call that nothing ends

    def name(self) -> str:
        """What files of this rank are called, in the order in which attempts came."""
        return f"{time.strftime('%Y%m%d-%H%M%S')}-rank-{self.world.rank}"

    def tell(self, place: str) -> None:
        """Tell the other ranks where this one stands."""
        self.places = {self.world.rank: place}
        if self.world.world_size > 1:
            try:
                self.store().set(str(self.world.rank), place)
            except (dist.DistError, RuntimeError):
                self.places[0] = ""  # who keeps the store, or whose launcher does

    def report(self, what: str) -> None:
        """Print, on rank 0 or on whoever cannot reach it, where all ranks stand."""
        if self.world.rank == 0 and self.world.world_size > 1:
            self.places = self.told()
        if self.world.rank == 0 or self.places.get(0) == "":
            for line in lines(self.places):
                print(f"{what}: {line}", file=sys.stderr, flush=True)

    def told(self) -> dict[int, str]:
        """What each rank has told; nothing from those that are dead or stopped."""
        try:
            store = self.store()
            names = [str(rank) for rank in range(self.world.world_size)]
            return {int(name): store.get(name).decode() if store.check([name]) else "" for name in names}
        except (dist.DistError, RuntimeError):
            return self.places

    def store(self) -> Store:
        """A connection of this thread's own to the store that the ranks met at."""
        store = TCPStore(self.world.master_addr, self.world.master_port, is_master=False, timeout=PATIENCE)
        return PrefixStore("watch", store)


def where(frame: FrameType | None) -> str:
    """Where a thread stands, in the innermost function of this package: `optim.py:58 reduce`, and what that calls."""
    called = ""
    while frame is not None:
        code = frame.f_code
        if Path(code.co_filename).is_relative_to(PACKAGE):
            return f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}{called}"
        called = f" in {code.co_name}"
        frame = frame.f_back
    return "outside of this package"


def lines(places: Mapping[int, str]) -> Iterator[str]:
    """One line for each place, those with the fewest ranks first, since there stands the rank that is waited for."""
    there = defaultdict[str, list[int]](list)
    for rank, place in sorted(places.items()):
        there[place].append(rank)
    for place, ranks in sorted(there.items(), key=lambda one: (bool(one[0]), len(one[1]))):
        names = ", ".join(map(str, ranks[:SHOWN])) + (f" and {len(ranks) - SHOWN} more" if len(ranks) > SHOWN else "")
        verb = f"stands at {place}" if place else "tells nothing: dead or stopped"
        yield f"rank {names} {verb}"


def out_of_memory(rank: int, kept: Sequence[str]) -> Iterator[str]:
    """What there was of memory, and what helps."""
    used, whole = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(torch.cuda.current_device())
    yield (
        f"rank {rank} is out of GPU memory: {used / 1e9:.1f} GB of {whole.total_memory / 1e9:.1f} GB were taken; less "
        "is needed with a smaller micro_batch, recompute, a shorter context or more ranks"
    )
    if kept:
        yield f"a picture of the memory for https://pytorch.org/memory_viz is kept: faults/{kept[0]}"
