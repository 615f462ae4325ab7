"""Blocks of all sources to parts, on all cores: threads read, processes tokenize.

Why: reading waits and decompressing lets other threads run, but tokenizing needs processes, since Python handles every
token once. What waits between the two is bounded. It must not know what a part holds.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from threading import BoundedSemaphore, Event
from types import TracebackType
from typing import Protocol, Self

from teragpt.config import ConfigError, Problem
from teragpt.datasets.files import fail
from teragpt.prepare.documents import Recipe
from teragpt.prepare.parts import Part, part_of, start_worker, work
from teragpt.prepare.sources import Block, Source, blocks, units
from teragpt.tokenization.tokenizer import Tokenizer

READERS = 4  # threads
Made = Future[tuple[Problem, ...]]


class Bar(Protocol):
    """Shows how far a preparation is."""

    def update(self, n: int, /) -> object:
        """So many bytes more of the sources are done."""
        ...


class Workers:
    """`count` processes that turn blocks into parts in `folder`; one is this process, whose tokenizer has threads.

    As many blocks again may wait for them. `stop` tells readers that one of them has failed.
    """

    def __init__(self, count: int, folder: Path, tokenizer: Tokenizer, recipe: Recipe) -> None:
        self.count, self.folder, self.tokenizer, self.recipe = count, folder, tokenizer, recipe
        self.slots, self.stop = BoundedSemaphore(2 * count), Event()
        self.processes = None
        if count > 1:
            context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks
            self.processes = ProcessPoolExecutor(count, context, start_worker, (tokenizer, recipe))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.processes is not None:
            self.processes.shutdown(cancel_futures=error is not None)

    def make(self, name: str, block: Block, bar: Bar) -> tuple[Part, Made]:
        """The part of that name, and when it will have been made of a block; waits for room. Raises OSError."""
        part = Part(self.folder / name)
        self.slots.acquire()
        try:
            made = self.submit(part, block)
        except BaseException:
            self.slots.release()
            raise

        def done(_: object) -> None:
            self.slots.release()
            bar.update(block.read)

        made.add_done_callback(done)
        return part, made

    def submit(self, part: Part, block: Block) -> Made:
        """Start making a part."""
        if self.processes is not None:
            return self.processes.submit(work, part.path, block.segments)
        made: Made = Future()
        made.set_result(part_of(part.path, block.segments, self.tokenizer, self.recipe))
        return made


def make_parts(sources: Iterable[Source], workers: Workers, bar: Bar) -> list[Part]:
    """The parts of all sources, in order, each made unless it is there. Raises ConfigError, OSError."""
    with ThreadPoolExecutor(min(READERS, workers.count)) as readers:
        reading = [readers.submit(read_unit, *one, workers, bar) for one in enumerate(units(sources))]
        try:
            return [part for one in reading for part in one.result()]
        except BrokenProcessPool:
            allowed = "as many as there is memory for, started under `if __name__ == '__main__'` (one of them died)"
            raise fail("workers", workers.count, allowed) from None
        finally:
            workers.stop.set()
            readers.shutdown(wait=False, cancel_futures=True)


def read_unit(number: int, unit: Sequence[Source], workers: Workers, bar: Bar) -> list[Part]:
    """The parts of a unit, or some of them when another unit has failed. Raises ConfigError, OSError."""
    parts: list[Part] = []
    making: list[Made] = []
    try:
        for index, block in enumerate(blocks(unit, workers.recipe)):
            if workers.stop.is_set():
                return parts
            part, made = workers.make(f"{number:06d}-{index:06d}.npz", block, bar)
            parts.append(part)
            making = [one for one in (*making, made) if not (one.done() and check(one))]
        return parts if all(map(check, making)) else []
    except BaseException:
        workers.stop.set()
        raise


def check(made: Made) -> bool:
    """Wait until a part is made. Raises ConfigError for what is wrong with its text, OSError."""
    if problems := made.result():
        raise ConfigError(problems)
    return True
