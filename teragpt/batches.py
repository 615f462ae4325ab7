"""A run's batches on its device: each is read and sent while the device computes the step before it.

It knows a loader's `batch` and a place to put it, and neither model nor loop.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]


class Batches:
    """Batches by number, of which `fetch` reads one: ids and targets (n, T) on the host."""

    def __init__(self, fetch: Callable[[int], Batch], device: torch.device) -> None:
        self.fetch, self.device = fetch, device
        self.ready: dict[int, Batch] = {}

    def prepare(self, number: int) -> None:
        """Have a batch ready, which will probably be wanted next; another one that was ready is dropped."""
        ids, targets = self.fetch(number)
        self.ready = {number: (to_device(ids, self.device), to_device(targets, self.device))}

    def take(self, number: int) -> Batch:
        """A batch on the device."""
        if number not in self.ready:
            self.prepare(number)
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
