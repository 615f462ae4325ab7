"""Where a parameter's parts lie: which rows and columns each rank holds, and a part as a tensor of the whole mesh.

`tp` cuts a parameter first, `fsdp` then cuts each part, both into pieces of ceil(size / ranks). It knows tensors and
meshes, no model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor
from torch.distributed.tensor import DTensor

Region = tuple[slice, ...]


def region(parameter: Tensor, place: Mapping[str, int] | None = None) -> Region:
    """What this rank owns of a parameter, by dimension; or the rank at `place`, its coordinates by mesh dimension."""
    found = [slice(0, size) for size in parameter.shape]
    if not isinstance(parameter, DTensor):
        return tuple(found)
    mesh = parameter.device_mesh
    for index in reversed(range(mesh.ndim)):
        dim = getattr(parameter.placements[index], "dim", None)
        if dim is not None:
            start, stop = found[dim].start, found[dim].stop
            width = math.ceil((stop - start) / mesh.size(index))
            rank = mesh.get_local_rank(index) if place is None else place[(mesh.mesh_dim_names or ())[index]]
            first = min(start + rank * width, stop)
            found[dim] = slice(first, min(first + width, stop))
    return tuple(found)


def like(parameter: Tensor, shard: Tensor) -> Tensor:
    """A local shard as a tensor that is placed on the mesh as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return shard
    return DTensor.from_local(
        shard,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
