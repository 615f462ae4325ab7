"""Muon over sharded matrices (Jordan et al. 2024): momentum whose singular values are all brought near to 1.

The iteration that does this needs the whole matrix, of which a rank holds a part. So each matrix has one owner among
the ranks that share it, taken in turn, and matrices go in rounds of one for each rank: one exchange brings every owner
the parts of its matrix, and another takes the parts of its result back. A rank holds one whole matrix at a time.
Copies of the model (`dp_replicate`) each do this alone: the links between them carry nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from teragpt.config import Config
from teragpt.mesh import Mesh
from teragpt.placement import Region, region

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration: Jordan et al. 2024
ITERATIONS = 5
ADAMW_RMS = 0.2  # of an AdamW update's elements: Liu et al. 2025, "Muon is scalable for LLM training", section 2.2


class Muon:
    """The update of `matrices`, whose local `shards` it changes in place."""

    def __init__(
        self, matrices: Mapping[str, Tensor], shards: Mapping[str, Tensor], mesh: Mesh, config: Config
    ) -> None:
        self.matrices, self.shards, self.weight_decay = matrices, shards, config.weight_decay
        self.momentum = {name: torch.zeros_like(shards[name]) for name in matrices}
        self.group, self.ranks, self.rank = sharers(mesh)
        tp = mesh.size("tp")
        places = [{"fsdp": rank // tp, "tp": rank % tp, "dp_replicate": 0} for rank in range(self.ranks)]
        self.regions = {name: [region(matrix, place) for place in places] for name, matrix in matrices.items()}
        self.narrow = config.precision in {"auto", "bf16", "fp8"}

    def step(self, rate: float) -> None:
        """Take the shards' gradients into the momentum and move the shards by learning rate `rate`.

        A whole matrix moves by 0.2 sqrt(max(rows, columns)) times an orthogonal one, whose elements' root mean square
        is that of AdamW's update, so that both optimizers take the same rates and decay (Liu et al. 2025).
        """
        for names in self.rounds():
            for name, update in zip(names, self.orthogonal(names), strict=True):
                size = rate * ADAMW_RMS * math.sqrt(max(self.matrices[name].shape))
                self.shards[name].detach().mul_(1 - rate * self.weight_decay).sub_(update, alpha=size)

    def rounds(self) -> Iterator[list[str]]:
        """The matrices, a round at a time, the largest first: owners of one round have the same work."""
        names = sorted(self.matrices, key=lambda name: self.matrices[name].numel(), reverse=True)
        for start in range(0, len(names), self.ranks):
            yield names[start : start + self.ranks]

    def orthogonal(self, names: list[str]) -> list[Tensor]:
        """This rank's parts of one round's orthogonalised momenta; the matrix in place k belongs to rank k."""
        mine = [self.nesterov(name) for name in names]
        if self.ranks == 1:
            return [orthogonalize(mine[0])]
        owned = names[self.rank] if self.rank < len(names) else None
        regions = self.regions[owned] if owned else []
        parts = [part.numel() for part in mine] + [0] * (self.ranks - len(names))
        theirs = [volume(one) for one in regions] or [0] * self.ranks
        pieces = self.exchange(torch.cat([part.flatten() for part in mine]), parts, theirs)
        if owned:
            whole = pieces.new_empty(self.matrices[owned].shape)
            for where, piece in zip(regions, pieces.split(theirs), strict=True):
                whole[where].copy_(piece.view_as(whole[where]))
            whole = orthogonalize(whole)
            pieces = torch.cat([whole[where].flatten() for where in regions])
        back = self.exchange(pieces, theirs, parts).split(parts)
        return [piece.view_as(part) for piece, part in zip(back, mine, strict=False)]

    def exchange(self, pieces: Tensor, sizes: list[int], back: list[int]) -> Tensor:
        """Send each rank its piece, of these sizes, and receive one of each, of the sizes `back`."""
        received = pieces.new_empty(sum(back))
        dist.all_to_all_single(received, pieces, back, sizes, group=self.group)
        return received

    def nesterov(self, name: str) -> Tensor:
        """Take this rank's part of a gradient into the momentum, and look one step ahead; in the iteration's dtype."""
        grad, momentum = self.shards[name].grad, self.momentum[name]
        assert grad is not None, f"{name} has no gradient"
        momentum.lerp_(grad, 1 - MOMENTUM)
        return grad.lerp(momentum, MOMENTUM).to(torch.bfloat16 if self.narrow and grad.is_cuda else grad.dtype)


def orthogonalize(matrix: Tensor) -> Tensor:
    """The orthogonal matrix next to `matrix` (rows, columns), roughly: singular values between 0.7 and 1.2.

    Five turns of a quintic Newton-Schulz iteration (Jordan et al. 2024) on the smaller side, which bf16 is enough for.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.size(0) > matrix.size(1)
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def sharers(mesh: Mesh) -> tuple[dist.ProcessGroup | None, int, int]:
    """The ranks that hold the parts of one matrix between them: their group, their number, this rank's place."""
    fsdp, tp = mesh.size("fsdp"), mesh.size("tp")
    ranks, rank = fsdp * tp, mesh.rank("fsdp") * tp + mesh.rank("tp")
    if ranks == 1:
        return None, 1, 0
    if fsdp == 1 or tp == 1:
        return mesh.process_group("tp" if fsdp == 1 else "fsdp"), ranks, rank
    shape = (dist.get_world_size() // ranks, ranks)
    both = init_device_mesh(mesh.devices.device_type, shape, mesh_dim_names=("copies", "sharers"))
    return both.get_group("sharers"), ranks, rank


def volume(where: Region) -> int:
    """Elements of a region."""
    return math.prod(part.stop - part.start for part in where)
