"""Muon over sharded matrices (Jordan et al. 2024): momentum whose singular values are all brought near to 1.

The iteration that does this needs whole matrices, of which a rank holds parts. So each matrix has one owner among the
ranks that share it. Matrices of one shape go in batches, of which each rank owns as many: one exchange brings every
owner the parts of its matrices, another takes the parts of the results back, and what happens to a batch is a few
launches, however many matrices it has. Copies of the model (`dp_replicate`) each do this alone: the links between them
carry nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from teragpt.compute.ops import foreach_lerp_, foreach_mul_, foreach_sub_
from teragpt.config import Config
from teragpt.layout import AT_ONCE
from teragpt.parallelism.mesh import Mesh
from teragpt.parallelism.placement import Region, region

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
        self.group, self.ranks, self.rank = sharers(mesh)
        tp = mesh.size("tp")
        places = [{"fsdp": rank // tp, "tp": rank % tp, "dp_replicate": 0} for rank in range(self.ranks)]
        self.regions = {name: [region(matrix, place) for place in places] for name, matrix in matrices.items()}
        self.narrow = config.precision in {"auto", "bf16", "fp8"}
        self.momentum = {name: torch.zeros_like(shards[name]) for name in matrices}
        self.batches = list(self.grouped())

    def grouped(self) -> Iterator[list[str]]:
        """Matrices that are cut alike, in batches of as many for each rank, so that owners have the same work."""
        alike: dict[str, list[str]] = {}
        for name, matrix in self.matrices.items():
            alike.setdefault(f"{tuple(matrix.shape)} {self.regions[name]}", []).append(name)
        for names in alike.values():
            count = self.ranks * max(1, AT_ONCE // self.matrices[names[0]].numel())
            for start in range(0, len(names), count):
                yield names[start : start + count]

    @torch.no_grad()
    def step(self, grads: Mapping[str, Tensor], scale: Tensor, rate: Tensor) -> None:
        """Take the shards' gradients, each times `scale`, into the momentum; move the shards by learning rate `rate`.

        A whole matrix moves by 0.2 sqrt(max(rows, columns)) times an orthogonal one, whose elements' root mean square
        is that of AdamW's update, so that both optimizers take the same rates and decay (Liu et al. 2025).
        """
        for names in self.batches:
            shards = [self.shards[name].detach() for name in names]
            rate, scale = rate.to(shards[0].dtype), scale.to(shards[0].dtype)
            size = rate * ADAMW_RMS * math.sqrt(max(self.matrices[names[0]].shape))
            ahead = self.nesterov(names, torch.stack([grads[name] for name in names]) * scale.view(1))
            update = self.orthogonal(names, ahead) * size.view(1)
            foreach_mul_(shards, 1 - self.weight_decay * rate)
            foreach_sub_(shards, list(update.unbind()))

    def nesterov(self, names: Sequence[str], grads: Tensor) -> Tensor:
        """Take this rank's parts of gradients (n, rows, columns) into the momenta, and look a step ahead.

        In the iteration's dtype, and in the memory of `grads`.
        """
        momenta, each = [self.momentum[name] for name in names], list(grads.unbind())
        foreach_lerp_(momenta, each, 1 - MOMENTUM)
        foreach_lerp_(each, momenta, MOMENTUM)
        return grads.bfloat16() if self.narrow and grads.is_cuda else grads

    def orthogonal(self, names: Sequence[str], mine: Tensor) -> Tensor:
        """This rank's parts (n, rows, columns) of a batch of whole matrices made orthogonal, where it holds `mine`."""
        if self.ranks == 1:
            return orthogonalize(mine)
        each = math.ceil(len(names) / self.ranks)
        shares = [names[rank * each : (rank + 1) * each] for rank in range(self.ranks)]
        regions, owned = self.regions[names[0]], len(shares[self.rank])
        sent = [len(share) * mine[0].numel() for share in shares]
        theirs = [owned * volume(one) for one in regions]
        pieces = self.exchange(mine.flatten(), sent, theirs)
        if owned:
            whole = pieces.new_empty(owned, *self.matrices[names[0]].shape)
            for where, piece in zip(regions, pieces.split(theirs), strict=True):
                part = whole[(slice(None), *where)]
                part.copy_(piece.view_as(part))
            whole = orthogonalize(whole)
            pieces = torch.cat([whole[(slice(None), *where)].flatten() for where in regions])
        return self.exchange(pieces, theirs, sent).view_as(mine)

    def exchange(self, pieces: Tensor, sizes: list[int], back: list[int]) -> Tensor:
        """Send each rank its piece, of these sizes, and receive one of each, of the sizes `back`."""
        received = pieces.new_empty(sum(back))
        dist.all_to_all_single(received, pieces, back, sizes, group=self.group)
        return received


def orthogonalize(matrices: Tensor) -> Tensor:
    """The orthogonal matrix next to each of (n, rows, columns), roughly: singular values between 0.7 and 1.2.

    Five turns of a quintic Newton-Schulz iteration (Jordan et al. 2024) on the smaller side, which bf16 is enough for.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


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
