"""Collectives that gradients pass through, eager or compiled: what one does forward, its transpose does backward.

They call torch's functional operators, which a compiler keeps in its graph, and wait at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

functional: Any = torch.ops._c10d_functional  # noqa: SLF001 - the one name of them in every version of torch


@dataclass(frozen=True)
class Group:
    """Ranks that communicate, as compilers take them: the group's name, its size, and this rank's place in it."""

    name: str
    size: int
    rank: int


def all_gather(x: Tensor, dim: int, group: Group) -> Tensor:
    """Every rank's x, side by side along `dim`, in the order of the ranks."""
    stacked = functional.wait_tensor(functional.all_gather_into_tensor(x.contiguous(), group.size, group.name))
    return stacked if dim == 0 else torch.cat(stacked.chunk(group.size), dim)


def reduce_scatter(x: Tensor, dim: int, group: Group) -> Tensor:
    """This rank's piece, along `dim`, of the sum of every rank's x."""
    stacked = x.contiguous() if dim == 0 else torch.cat(x.chunk(group.size, dim))
    scattered: Tensor = functional.wait_tensor(functional.reduce_scatter_tensor(stacked, "sum", group.size, group.name))
    return scattered


def all_reduce(x: Tensor, kind: str, group: Group) -> Tensor:
    """The `sum` or `max` of every rank's x."""
    reduced: Tensor = functional.wait_tensor(functional.all_reduce(x.contiguous(), kind, group.name))
    return reduced


class Gather(Function):
    """All-gather along a dimension; the gradients of all ranks' copies are summed where each piece came from."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Group) -> Tensor:
        """Every rank's x, side by side along `dim`."""
        ctx.where = dim, group
        return all_gather(x, dim, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """This rank's piece of the summed gradients."""
        return reduce_scatter(grads[0], *ctx.where), None, None


class Scatter(Function):
    """Reduce-scatter along a dimension, whose gradient every rank needs whole."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Group) -> Tensor:
        """This rank's piece of the sum of every rank's x."""
        ctx.where = dim, group
        return reduce_scatter(x, dim, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Every rank's gradient, side by side."""
        return all_gather(grads[0], *ctx.where), None, None


def gather(x: Tensor, dim: int, group: Group) -> Tensor:
    """All-gather of every rank's x along `dim`, differentiable."""
    whole: Tensor = Gather.apply(x, dim, group)
    return whole


def scatter(x: Tensor, dim: int, group: Group) -> Tensor:
    """Reduce-scatter of every rank's x along `dim`, differentiable."""
    piece: Tensor = Scatter.apply(x, dim, group)
    return piece
