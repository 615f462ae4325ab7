"""A run's batches on its device: read some steps ahead in a thread, and sent while the device computes a step.

Why: a batch is a function of its number, so what comes next is known, and neither a cold disk nor a store far away
holds up a step. It knows a loader's `batch` and a place to put it, and neither model nor loop.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

import torch
from torch import Tensor

from teragpt.datasets.crew import Crew

Batch = tuple[Tensor, Tensor]
AHEAD = 8  # batches; a rank's part of one is small
reader = Crew(1, "batches")  # one thread: a loader is never asked for two batches at once


class Batches:
    """Batches by number, of which `fetch` reads one: ids and targets (n, T) on the host."""

    def __init__(self, fetch: Callable[[int], Batch], device: torch.device) -> None:
        self.fetch, self.device = fetch, device
        self.reading: dict[int, Future[Batch]] = {}
        self.ready: dict[int, Batch] = {}

    def prepare(self, number: int, left: int = AHEAD) -> None:
        """Have a batch ready, the first of `left` that will probably be wanted, and read those after it ahead.

        What was read or ready of other numbers is dropped. Raises what reading this one raises.
        """
        wanted = range(number, number + min(left, AHEAD))
        for other in self.reading.keys() - set(wanted):
            self.reading.pop(other).cancel()
        for one in wanted:
            if one not in self.reading:
                self.reading[one] = reader.do(lambda one=one: self.fetch(one))  # type: ignore[misc]
        self.ready = {}
        if wanted:
            ids, targets = self.reading.pop(number).result()
            self.ready = {number: (to_device(ids, self.device), to_device(targets, self.device))}

    def take(self, number: int) -> Batch:
        """A batch on the device. Raises what reading it raises."""
        if number not in self.ready:
            self.prepare(number, 1)
        return self.ready.pop(number)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device; a GPU takes it in its own time, for which it is pinned."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(values: Tensor) -> Callable[[], list[float]]:
    """Values (n) on their way from the device; what is returned waits for them, and for nothing that comes later."""
    if not values.is_cuda:
        return values.tolist
    arrived, there = torch.cuda.Event(external=True), torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    there.copy_(values, non_blocking=True)
    arrived.record()

    def read() -> list[float]:
        arrived.synchronize()
        found: list[float] = there.tolist()
        return found

    return read
