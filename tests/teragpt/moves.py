"""Checkpoints that move from one mesh to another: every run of one count of ranks is one launch's work.

As a rank: `python -m tests.teragpt.moves RUNS.json` makes the runs of the file, each a mesh and a run to start from or
none, and leaves what it saw of each in its run folder: digests of the whole state and of the next batch where the run
stood at its checkpoint, and the losses of the steps after it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from teragpt.launcher.environment import read_world
from teragpt.parallel import connect
from teragpt.train import Trainer
from tests.teragpt import ranks

BEFORE, AFTER = 2, 2  # steps to the checkpoint, and from it
SETTINGS = {
    **ranks.SMALL, "kv_heads": 2, "micro_batch": 8, "tied": False, "steps": BEFORE + AFTER, "compile": "off",
}  # fmt: skip


@dataclass(frozen=True)
class Mesh:
    """A mesh by name: how many ranks, and their settings."""

    name: str
    ranks: int
    settings: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Seen:
    """A run where it stood at its checkpoint: `state` and `batch` as digests; the `losses` of the steps after it."""

    state: dict[str, str]
    batch: str
    losses: list[float]


def name_of(reader: Mesh, writer: Mesh | None = None) -> str:
    """A run's name."""
    return f"{reader.name} from {writer.name}" if writer else reader.name


def make(meshes: Iterable[tuple[Mesh, Mesh | None]], folder: Path) -> dict[str, Seen]:
    """Runs on the first of each pair of meshes, from the checkpoint of the run on the second; from nothing if None."""
    wanted = list(meshes)
    for count in sorted({mesh.ranks for mesh, _ in wanted}):
        runs = [
            {**SETTINGS, **dict(mesh.settings), "out": str(folder / name_of(mesh, writer))}
            | ({"start_from": str(folder / writer.name)} if writer else {})
            for mesh, writer in wanted
            if mesh.ranks == count
        ]
        listed = folder / f"runs-{count}.json"
        listed.write_text(json.dumps(runs))
        code, output = ranks.run(["-m", "tests.teragpt.moves", str(listed)], count)
        assert code == 0, output
    names = [name_of(mesh, writer) for mesh, writer in wanted]
    return {name: Seen(**json.loads((folder / name / "seen.json").read_text())) for name in names}


def run(settings: dict[str, Any], device: torch.device) -> Seen:
    """Make one run."""
    trainer = Trainer(settings)
    trainer.device = device
    trainer.set_up()
    if not trainer.checkpoints.start:
        steps(trainer, BEFORE)
        trainer.save()
    state = {name: digest(whole(one)) for name, one in sorted(trainer.state().items())}
    seen = Seen(state, next_batch(trainer), steps(trainer, AFTER))
    trainer.checkpoints.finish()
    trainer.metrics.close(lambda: 0.0)
    return seen


def steps(trainer: Trainer, count: int) -> list[float]:
    """Losses of so many steps."""
    found: list[float] = []
    for _ in range(count):
        (loss, _), _ = trainer.step()
        trainer.progress.step += 1
        found.append(loss)
    return found


def next_batch(trainer: Trainer) -> str:
    """The tokens that all ranks together would take next, in the order of the batch."""
    config, mesh = trainer.config, trainer.mesh
    share = (trainer.progress.step, config.sequences, config.context, config.seed, mesh.data_rank, mesh.data_ranks)
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, (mesh.data_rank, trainer.dataset.batch(*share)))
    by_rank = [batch for _, batch in sorted(dict(parts).items())]
    return digest(torch.stack([torch.cat(some) for some in zip(*by_rank, strict=True)]))


def whole(tensor: Tensor) -> Tensor:
    """A tensor with every rank's part of it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def digest(tensor: Tensor) -> str:
    """Of a tensor's shape and bits."""
    return hashlib.blake2b(f"{tuple(tensor.shape)}".encode() + tensor.detach().numpy().tobytes()).hexdigest()


def main(listed: Path) -> None:
    """Make the runs of a file on this launch's ranks."""
    device = connect(read_world(os.environ, torch.cuda.device_count()))
    for settings in json.loads(listed.read_text()):
        seen = run(settings, device)
        if dist.get_rank() == 0:
            Path(settings["out"], "seen.json").write_text(json.dumps(asdict(seen)))
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
