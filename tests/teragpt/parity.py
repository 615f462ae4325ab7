"""Loss and every gradient on any mesh, beside one rank's: the cells of a matrix, all of one launch in its processes.

As a rank: `python -m tests.teragpt.parity FOLDER CELL.json` computes the cells of the file and leaves each one's loss
and whole gradients, at steps 1 and 5, in the folder. It fails where a graph breaks, or is compiled again after step 2.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._dynamo.utils import counters
from torch.distributed.tensor import DTensor

from teragpt.config import Config, resolve
from teragpt.data import open_dataset
from teragpt.datasets.packing import confine
from teragpt.launcher.environment import read_world
from teragpt.optimizers.optim import Optimizer
from teragpt.parallel import (
    build_model,
    compute_dtype,
    connect,
    forward_backward,
    load_attribute,
    materialize,
    parallelize,
)
from teragpt.parallelism.mesh import Mesh, build_mesh

COMPILED_BY = 2  # the step after which nothing is compiled again
LOOKED_AT = (1, 5)  # steps whose gradients are compared; the loss is at every step
SAME = {
    "tied",
    "head_dim",
    "depth",
    "packing",
    "z_loss",
    "optimizer",
    "precision",
    "steps",
    "model",
    "rope_scaling",
}  # settings that a cell shares with the cell of one rank
SHAPE = {
    "dim": 64, "depth": 2, "heads": 4, "kv_heads": 2, "ffn": 64, "context": 32, "global_batch_tokens": 256,
    "micro_batch": 2, "steps": 5, "warmup_steps": 2, "learning_rate": 1e-3, "precision": "fp64",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One cell: how many ranks, and what differs from one rank's settings. `backend`: torch.compile's."""

    ranks: int
    mesh: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    backend: str = ""

    @property
    def name(self) -> str:
        """A file's name."""
        told = {**self.mesh, **self.settings, "backend": self.backend}
        return "-".join([f"{self.ranks}", *(f"{key}={value}" for key, value in told.items() if value != "")])

    @property
    def model(self) -> Cell:
        """The cell of one rank that has the same model and data, eager."""
        kept = {key: value for key, value in self.settings.items() if key in SAME}
        return Cell(1, {}, kept)


def compute(cells: Iterable[Cell], folder: Path) -> dict[str, dict[str, Tensor]]:
    """The numbers of each cell, by its name, from a launch for each count of ranks."""
    from tests.teragpt import ranks  # needs what a rank does not, and a GPU machine may not have

    found: dict[str, dict[str, Tensor]] = {}
    wanted = {cell.name: cell for cell in cells}
    for count in sorted({cell.ranks for cell in wanted.values()}):
        some = [cell for cell in wanted.values() if cell.ranks == count]
        listed = folder / f"cells-{count}.json"
        listed.write_text(json.dumps([[dict(one.mesh), dict(one.settings), one.backend] for one in some]))
        seconds = ranks.PATIENCE_S * max(4, len(some))
        code, output = ranks.run(["-m", "tests.teragpt.parity", str(folder), str(listed)], count, seconds=seconds)
        assert code == 0, output
        found |= {cell.name: torch.load(folder / f"{cell.name}.pt") for cell in some}
    return found


def difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor], kind: str = "") -> float:
    """The largest difference of any gradient or loss, or of the `kind`, against the largest number of its tensor."""
    assert one.keys() == other.keys(), sorted(one.keys() ^ other.keys())
    named = [name for name in one if name.endswith(kind)]
    return max(float((one[name] - other[name]).abs().max() / one[name].abs().max()) for name in named)


def numbers(config: Config, device: torch.device) -> dict[str, Tensor]:
    """This cell's losses and gradients, whole, on every rank."""
    dataset = open_dataset(config.data)
    mesh, dtype = build_mesh(config, device), compute_dtype(config, device)
    model = build_model(load_attribute(config.model, "model"), config, dtype)
    parallelize(model, mesh, config, dtype)
    first, _ = dataset.batch(0, config.sequences, config.context, config.seed, 0, 1)
    confine(model, mesh, config, int(first.flatten().mode().values))  # as if documents were of a few tokens
    materialize(model, config, device)
    optimizer = Optimizer(model, mesh, config)
    found: dict[str, Tensor] = {}
    graphs = 0
    for step in range(config.steps):
        ids, targets = dataset.batch(
            step, config.sequences, config.context, config.seed, mesh.data_rank, mesh.data_ranks
        )
        share = forward_backward(model, ids.to(device), targets.to(device), mesh, config)
        summary = optimizer.reduce(share, torch.zeros((), device=device))
        found |= {f"{step + 1} loss": summary[0], f"{step + 1} norm": summary[1]}
        if step + 1 in LOOKED_AT:
            found |= whole(step + 1, optimizer, mesh)
        if step + 1 == COMPILED_BY:
            graphs = counters["stats"]["unique_graphs"]
        optimizer.schedule(step)
        optimizer.step(summary[1])
    assert counters["stats"]["unique_graphs"] == graphs, "compiled again after step 2"
    assert (graphs > 0) == (config.compile == "on")
    assert not counters["graph_break"], counters["graph_break"]
    return found


def whole(step: int, optimizer: Optimizer, mesh: Mesh) -> dict[str, Tensor]:
    """Every parameter's gradient, those of other pipeline stages too."""
    grads = {
        f"{step} {name}": (one.grad.full_tensor() if isinstance(one.grad, DTensor) else one.grad).clone()
        for name, one in optimizer.parameters.items()
        if one.grad is not None
    }
    stages: list[Any] = [None] * mesh.size("pp")
    dist.all_gather_object(stages, grads, group=mesh.process_group("pp"))
    return {name: grad for stage in stages for name, grad in stage.items()}


def main(folder: Path, listed: Path) -> None:
    """Compute the cells of a file on this launch's ranks."""
    device = connect(read_world(os.environ, torch.cuda.device_count()))
    compile_ = torch.compile
    gc.disable()  # a sixth of what compiling takes
    for mesh, settings, backend in json.loads(listed.read_text()):
        cell = Cell(dist.get_world_size(), mesh, settings, backend)
        torch.compile = functools.partial(compile_, backend=backend or "inductor")
        torch.compiler.reset()
        counters.clear()
        gc.collect()
        given = {**SHAPE, **mesh, **settings, "compile": "on" if backend else "off"}
        found = numbers(resolve(given), device)
        if dist.get_rank() == 0:
            torch.save(found, folder / f"{cell.name}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
