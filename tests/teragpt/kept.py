"""What a block really keeps between forward and backward, counted by who still holds its memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from teragpt.compute.ops import rotary

SEQUENCES = 2, 4  # of two batches, each of more rows than ops.FEW_ROWS, so that one kernel multiplies both


class Made(TorchDispatchMode):
    """Follows the memory of every tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: dict[int, tuple[Any, int]] = {}
        self.ops: list[Any] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = op(*args, **(kwargs or {}))
        self.ops.append(op)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        return out

    def alive(self) -> int:
        """Bytes of them that somebody holds."""
        return sum(size for held, size in self.storages.values() if not held.expired())


def bytes_a_token(block: nn.Module, dim: int, head_dim: int, tokens: int, dtype: torch.dtype, tp: int = 1) -> float:
    """Bytes that each of `tokens` adds on this rank to what `block` holds after its forward, its input among them.

    The difference of two batches: weights that a block casts or joins do not grow with tokens. Of `tp` ranks each
    gives the block its part of the tokens.
    """
    few, many = (
        # the least of some: a thread of a collective's may let go of what it sent a little late
        min(
            held_after_forward(block, torch.randn(size, tokens // tp, dim, dtype=dtype), head_dim, tokens) for _ in "12"
        )
        for size in SEQUENCES
    )
    return (many - few) / (2 * tokens)


def held_after_forward(block: nn.Module, given: Tensor, head_dim: int, tokens: int) -> int:
    """Bytes that are held once `block` has run, without its output."""
    given.requires_grad_()
    made = Made()
    with made:
        x = given * 1
        y: Tensor = block(x, angles(head_dim, tokens, given.dtype))
        del x
    return made.alive() - y.untyped_storage().nbytes()


def compiled_bytes_a_token(block: nn.Module, dim: int, head_dim: int, tokens: int, dtype: torch.dtype) -> float:
    """The same of a compiled block, by what it saves for backward, since no other operation is seen there."""
    held: list[int] = []
    for sequences in SEQUENCES:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            storage = tensor.untyped_storage()
            sizes[storage._cdata] = storage.nbytes()  # pyright: ignore[reportPrivateUsage] - fake ones have no address
            return tensor

        x = torch.randn(sequences, tokens, dim, dtype=dtype, requires_grad=True) * 1
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = block(x, angles(head_dim, tokens, dtype))
        held.append(sum(sizes.values()))
        del y
    return (held[1] - held[0]) / (2 * tokens)


def angles(head_dim: int, tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The rotary angles of positions from 0 on."""
    return rotary(torch.arange(tokens), head_dim, 1e4, dtype)
