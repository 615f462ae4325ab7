"""The mesh: which ranks share a model's layers, its matrices, a sequence, and the batch.

Dimensions, from the slowest link to the fastest: `pp` (layers), `dp_replicate` (whole copies), `dp_shard` (slices of
every parameter), `cp` (pieces of a sequence), `tp` (parts of a matrix). Parameters are sliced over `dp_shard` x `cp`
together, one dimension here: `fsdp`. It knows ranks and groups, no model.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from teragpt.compute.collectives import Group
from teragpt.config import Config, ConfigError, for_cores
from teragpt.layout import layout, misfits

DIMENSIONS = ("pp", "dp_replicate", "fsdp", "tp")


@dataclass(frozen=True)
class Mesh:
    """All ranks, in the dimensions of `DIMENSIONS`; `cp` neighbours within `fsdp` share their sequences."""

    devices: DeviceMesh
    cp: int
    context: Group

    def size(self, dimension: str) -> int:
        """Ranks along a dimension."""
        return int(self.devices[dimension].size())

    def rank(self, dimension: str) -> int:
        """This rank's place along a dimension."""
        return int(self.devices.get_local_rank(dimension))

    def process_group(self, dimension: str) -> dist.ProcessGroup:
        """The ranks that differ from this one along a dimension alone."""
        return self.devices.get_group(dimension)

    def group(self, dimension: str) -> Group:
        """The same, by name."""
        return Group(self.process_group(dimension).group_name, self.size(dimension), self.rank(dimension))

    @property
    def data_parallel(self) -> DeviceMesh:
        """The ranks over which a parameter is sliced, and before them those that hold copies, if any do."""
        return self.devices["dp_replicate", "fsdp"] if self.size("dp_replicate") > 1 else self.devices["fsdp"]

    @property
    def data_ranks(self) -> int:
        """Parts that a global batch is cut into."""
        return self.size("dp_replicate") * self.size("fsdp") // self.cp

    @property
    def data_rank(self) -> int:
        """The part of every global batch that this rank and those beside it in `pp`, `cp` and `tp` take together."""
        return (self.rank("dp_replicate") * self.size("fsdp") + self.rank("fsdp")) // self.cp


def build_mesh(config: Config, device: torch.device, memory: int | None = None) -> Mesh:
    """The mesh of the settings over all ranks; `dp_shard` is what the others leave.

    Raises ConfigError on every rank where they cannot be laid out so, or `memory` bytes cannot hold a rank's part.
    """
    ranks = dist.get_world_size()
    problems = list(misfits(config if device.type == "cuda" else eager(config), ranks, memory))
    if problems:
        raise ConfigError(problems)
    sizes, cp, tp = layout(config, ranks), config.cp, config.tp
    shape = tuple(getattr(sizes, name) for name in DIMENSIONS)
    devices = init_device_mesh(device.type, shape, mesh_dim_names=DIMENSIONS)
    context = Group("", 1, 0)
    if cp > 1:
        names = ("outer", "cp", "tp")
        neighbours = init_device_mesh(device.type, (ranks // (cp * tp), cp, tp), mesh_dim_names=names)
        context = Group(neighbours.get_group("cp").group_name, cp, int(neighbours.get_local_rank("cp")))
    return Mesh(devices, cp, context)


def settled(config: Config, given: Mapping[str, object], device: torch.device) -> Config:
    """The configuration on a device, where not all is `given`."""
    return config if device.type == "cuda" else for_cores(config, given)


def eager(config: Config) -> Config:
    """What `auto` stands for on CPU, as far as bytes follow from it."""
    precision, compiled = (None if one == "auto" else one for one in (config.precision, config.compile))
    return replace(config, precision=precision or "fp32", compile=compiled or "off")


def memory_of(device: torch.device) -> int:
    """Bytes that a rank can have in all: its GPU's, or its part of the machine's and of the control group's limit."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no such file, or no limit
        there = min(there, int(Path("/sys/fs/cgroup/memory.max").read_text("utf-8")))
    return there // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
