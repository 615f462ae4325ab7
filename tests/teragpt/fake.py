"""Worlds that are not there: one rank of thousands, its model laid out and sharded by the real code, on no device.

`python -m tests.teragpt.fake --ranks 1024 --size 175b --set tp=8` builds the first and the last rank on the meta
device, and prints the bytes of each, the seconds of CPU that they took after imports, and the largest resident set.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.testing._internal.distributed.fake_pg import FakeStore

from teragpt.compute.ops import local
from teragpt.config import Config
from teragpt.layout import State, asked
from teragpt.model import TeraGPT
from teragpt.optimizers.optim import Optimizer
from teragpt.parallel import PRECISIONS, build_model, compute_dtype, forward_backward, materialize, parallelize
from teragpt.parallelism.mesh import Mesh, build_mesh
from teragpt.reporting.metrics import memory_bytes

CPU = torch.device("cpu")


@contextmanager
def world(ranks: int, rank: int) -> Iterator[None]:
    """A process group in which every collective succeeds at once, and nobody else is there."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()
        _clear_sharding_prop_cache()  # it holds meshes, whose groups are gone


def laid_out(config: Config, constructor: Callable[..., nn.Module] = TeraGPT) -> tuple[nn.Module, Mesh]:
    """This rank's part of the model, on the meta device."""
    mesh, dtype = build_mesh(config, CPU), compute_dtype(config, CPU)
    model = build_model(constructor, config, dtype).to(PRECISIONS[config.state_dtype])
    parallelize(model, mesh, config, dtype)
    return model, mesh


def on_meta(config: Config, ranks: int, rank: int) -> State:
    """What a rank would hold: room for its parameters, as much for their gradients, and the optimizer's tensors."""
    with world(ranks, rank):
        model, mesh = laid_out(config)
        room = nbytes(model.parameters())
        return State(room, room, nbytes(moments(Optimizer(model, mesh, config))))


def trained(config: Config, ranks: int, rank: int) -> State:
    """What a rank does hold after a backward pass and the optimizer's first step, in real memory."""
    with world(ranks, rank):
        model, mesh = laid_out(config)
        materialize(model, config, CPU)
        optimizer = Optimizer(model, mesh, config)
        sequences = config.sequences // mesh.data_ranks
        ids = torch.zeros(sequences, config.context, dtype=torch.long)
        forward_backward(model, ids, ids, mesh, config)
        held = nbytes(model.parameters()), nbytes(p.grad for p in model.parameters() if p.grad is not None)
        optimizer.schedule(0)
        optimizer.step(torch.ones((), dtype=torch.float64))
        return State(*held, nbytes(moments(optimizer)))


def moments(optimizer: Optimizer) -> Iterator[Tensor]:
    """What the optimizer holds beside the parameters."""
    return (
        value for name, value in optimizer.state().items() if name not in optimizer.shards or name in optimizer.copied
    )


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory behind this rank's parts, padding included; what several share counts once."""
    storages = [local(tensor).untyped_storage() for tensor in tensors]
    return sum({one._cdata: one.nbytes() for one in storages}.values())


def main(arguments: Iterable[str]) -> None:
    """Build the first and the last rank."""
    (config, ranks), started = asked(arguments), time.process_time()
    held = [on_meta(config, ranks, rank) for rank in (0, ranks - 1)]
    seconds = time.process_time() - started
    peak = memory_bytes()
    print(json.dumps({"held": [vars(one) for one in held], "seconds": seconds, "peak": peak}))


if __name__ == "__main__":
    main(sys.argv[1:])
