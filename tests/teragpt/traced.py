"""The memory of a training step on one GPU that is not there: fake tensors make it, an allocator like CUDA's serves it.

Every storage that an operation of our own model makes is asked for when it is made and given back when nobody holds it
any more, as `torch.cuda`'s caching allocator would be asked. Kernels are not run: their shapes are enough.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left, insort
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from teragpt.compute import ops
from teragpt.config import Config
from teragpt.model import TeraGPT
from teragpt.optimizers.optim import join, summed_in
from teragpt.recompute import recompute

MIB = 1 << 20
UNIT, SMALL = 512, MIB  # bytes that sizes are rounded to; the largest that shares a segment of the small pool


class OutOfMemory(Exception):
    """What is asked for is not there, nor in segments that could be given back."""


@dataclass
class Allocator:
    """As torch's c10/cuda/CUDACachingAllocator.cpp by its defaults: best fit, split, neighbours merged.

    Segments are taken from `memory` bytes: of 2 MiB for what is up to 1 MiB, of 20 up to 10, else as asked for.
    """

    memory: int
    allocated: int = 0
    reserved: int = 0
    most_allocated: int = 0
    most_reserved: int = 0
    free: dict[bool, list[tuple[int, int]]] = field(default_factory=lambda: {True: [], False: []})
    blocks: dict[int, tuple[int, int, int, bool]] = field(default_factory=dict[int, tuple[int, int, int, bool]])
    ends: dict[int, int] = field(default_factory=dict[int, int])
    next_segment: int = 0

    def ask(self, size: int) -> int:
        """The address of a block. Raises OutOfMemory."""
        size = max(UNIT, -(-size // UNIT) * UNIT)
        small = size <= SMALL
        found = bisect_left(self.free[small], (size, -1))
        if found == len(self.free[small]):
            self.segment(size, small=small)
            found = bisect_left(self.free[small], (size, -1))
        have, address = self.free[small].pop(found)
        start, stop = self.blocks[address][1], self.blocks[address][2]
        left = have - size
        if left >= (UNIT if small else SMALL + 1):
            self.blocks[address + size] = left, start, stop, True
            self.ends[address + have] = address + size
            insort(self.free[small], (left, address + size))
            have = size
        self.blocks[address] = have, start, stop, False
        self.ends[address + have] = address
        self.allocated += have
        self.most_allocated = max(self.most_allocated, self.allocated)
        return address

    def segment(self, size: int, *, small: bool) -> None:
        """A further one, once all that are empty are given back where they must be. Raises OutOfMemory."""
        whole = 2 * MIB if small else 20 * MIB if size < 10 * MIB else -(-size // (2 * MIB)) * 2 * MIB
        if self.reserved + whole > self.memory:
            self.give_back()
        if self.reserved + whole > self.memory:
            raise OutOfMemory(f"{self.reserved:,} of {self.memory:,} bytes are taken; {whole:,} more are asked for")
        start, self.next_segment = self.next_segment, self.next_segment + whole
        self.blocks[start], self.ends[start + whole] = (whole, start, start + whole, True), start
        insort(self.free[small], (whole, start))
        self.reserved += whole
        self.most_reserved = max(self.most_reserved, self.reserved)

    def give_back(self) -> None:
        """Segments in which nothing lies."""
        for small, free in self.free.items():
            empty = {at for size, at in free if self.blocks[at][1] == at and self.blocks[at][2] == at + size}
            self.free[small] = [one for one in free if one[1] not in empty]
            for at in empty:
                size = self.blocks.pop(at)[0]
                del self.ends[at + size]
                self.reserved -= size

    def release(self, address: int) -> None:
        """A block, which joins those beside it that are free."""
        size, start, stop, _ = self.blocks[address]
        self.allocated -= size
        small = stop - start == 2 * MIB
        before = self.ends.get(address) if address > start else None
        if before is not None and self.blocks[before][3]:
            self.free[small].remove((self.blocks[before][0], before))
            del self.blocks[address], self.ends[address]
            size, address = size + self.blocks[before][0], before
        after = address + size
        if after < stop and self.blocks[after][3]:
            self.free[small].remove((self.blocks[after][0], after))
            size += self.blocks.pop(after)[0]
            del self.ends[after]
        self.blocks[address], self.ends[address + size] = (size, start, stop, True), address
        insort(self.free[small], (size, address))


class Live(TorchDispatchMode):
    """Counts bytes of storages that operations have made and somebody still holds; asks an `allocator` for them."""

    def __init__(self, allocator: Allocator | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allocator = allocator
        self.seen: dict[int, tuple[int, int]] = {}
        self.now: int = 0
        self.peak: int = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = op(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (key := address(storage := tensor.untyped_storage())) not in self.seen:
                size = storage.nbytes()
                self.seen[key] = size, self.allocator.ask(size) if self.allocator else 0
                self.now += size
                weakref.finalize(storage, self.gone, key)
        self.peak = max(self.peak, self.now)
        return out

    def gone(self, key: int) -> None:
        """A storage that nobody holds any more."""
        size, place = self.seen.pop(key, (0, 0))
        self.now -= size
        if self.allocator and size:
            self.allocator.release(place)


def address(storage: torch.UntypedStorage) -> int:
    """What tells fake storages apart."""
    return int(storage._cdata)  # pyright: ignore[reportPrivateUsage]


def built(config: Config) -> TeraGPT:
    """The model, in bf16."""
    heads = {"kv_heads": config.kv_heads, "head_dim": config.head_dim, "ffn": config.ffn}
    more = {"tied": config.tied, "dtype": torch.bfloat16}
    torch.set_default_dtype(torch.bfloat16)
    try:
        return TeraGPT(config.dim, config.depth, config.heads, config.num_tokens, **heads, **more)  # type: ignore[arg-type]
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def kernels() -> Generator[None]:
    """The operations of a GPU, of which only shapes are asked."""
    found = import_module("teragpt.compute.kernels")

    def losses(logits: Tensor, *_: object) -> Tensor:
        return logits.new_empty(logits.size(0), dtype=torch.float32)

    def on_gpu(_: Tensor) -> bool:  # a mock would hold what it is called with
        return True

    with (
        mock.patch.object(found, "cross_entropy_", losses),
        mock.patch.object(ops, "kernels", found, create=True),
        mock.patch.object(ops, "fused", on_gpu),
        mock.patch.object(ops, "LOGITS_CHUNK", ops.GPU_LOGITS_CHUNK),
    ):
        yield


def step(config: Config, count: int, allocator: Allocator, state: int) -> None:
    """A step of so many micro-batches, beside the parameters and moments of `state` bytes. Raises OutOfMemory."""
    allocator.ask(state)
    with kernels(), FakeTensorMode(allow_non_fake_inputs=True):
        with Live(allocator) as live:
            model = built(config)  # what is computed with, which the masters have a copy in
            wide = summed_in(config, torch.bfloat16, several=count > 1)
            for parameter in model.parameters():
                parameter.grad_dtype = wide
            recompute(model.layers, config)
            joints = list(join(model, wide))
            ids = torch.zeros(config.micro_batch, config.context, dtype=torch.long)
            for _ in range(count):
                model(ids, targets=ids).backward()
            del joints
        del live
