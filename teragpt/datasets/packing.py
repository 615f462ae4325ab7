"""Documents packed into one sequence, with attention confined to each: no token sees what another document says.

Rotary embeddings depend on distances alone, so within a document the positions are as good as counted from its start.
Applied to a model from outside, like parallelism. Every rank of `cp`, `tp` and `pp` knows the ids of its sequences
whole, so on no mesh does anything travel for it. A GPU that has whole sequences takes a kernel that skips what is
masked; elsewhere the mask is made. It must not know where tokens come from.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teragpt.compute.collectives import Group
from teragpt.config import Config, ConfigError, Problem
from teragpt.parallelism.context_parallel import gather_pieces, pieces
from teragpt.parallelism.mesh import Mesh

WIDE = ("fp32", "fp64")  # which the kernel does not take
FLASH: Any = torch.ops.aten._flash_attention_forward  # noqa: SLF001 - of sequences of any lengths (Dao 2023)


def confine(model: nn.Module, mesh: Mesh, config: Config, end: int | None) -> None:
    """Have a parallelized model attend within documents where `packing` says so; `end` is the separator's id.

    Raises ConfigError for a model whose attention is no `attend`, and for a dataset without a separator.
    """
    if config.packing == "plain":
        return
    parts = [module for module in model.modules() if hasattr(module, "attend")]
    if end is None or not parts:
        allowed = (
            "plain for a loader without `end`" if end is None else f"plain for {config.model}, which has no attend"
        )
        raise ConfigError([Problem("packing", config.packing, allowed)])
    within = Within(end, mesh.context, masked=config.precision in WIDE)
    cast("Any", model).pipeline.told.append(within.read)
    for part in parts:
        cast("Any", part).attend = within


class Within:
    """Causal attention within documents, of the sequences whose ids it `read` last.

    Of the ranks of a `group` each has its pieces of them (context_parallel.py).
    """

    def __init__(self, end: int, group: Group, *, masked: bool = False) -> None:
        """Everywhere `masked`, if wanted."""
        self.end, self.group, self.masked = end, group, masked
        self.ids = self.mask = self.starts = torch.empty(0)

    def read(self, ids: Tensor) -> None:
        """Take the documents of whole sequences of ids (B, T); a separator ends its document."""
        if ids is self.ids:
            return
        self.ids, ends = ids, ids == self.end
        document = ends.cumsum(1) - ends.long()
        here = torch.arange(ids.size(1), device=ids.device)
        if self.skips(ids):
            first = (here == 0) | ends.roll(1, 1)
            self.starts = padded_starts(first.flatten(), self.starts.numel())
            return
        mine, places = pieces(document, 1, self.group), pieces(here, 0, self.group)
        same = mine.unsqueeze(2) == document.unsqueeze(1)
        self.mask = (same & (places.unsqueeze(1) >= here)).unsqueeze(1)  # (B, 1, T / cp, T)

    def skips(self, x: Tensor) -> bool:
        """Whether attention is by the kernel for sequences of any lengths."""
        return x.is_cuda and self.group.size == 1 and not self.masked

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of this rank's queries (B, H, T / cp, K) over all keys and values, here (B, G, T / cp, K)."""
        if self.skips(q):
            rows = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
            y = FLASH(*rows, self.starts, self.starts, q.size(2), q.size(2), 0.0, True, False)[0]  # noqa: FBT003
            joined: Tensor = y.view(q.size(0), q.size(2), q.size(1), q.size(3)).transpose(1, 2)
            return joined
        if self.group.size > 1:
            k, v = gather_pieces(k, v, self.group)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, enable_gqa=q.size(1) != k.size(1))


def padded_starts(first: Tensor, room: int) -> Tensor:
    """Where documents start among tokens (N) of which `first` says it, then N as often as fills the tensor.

    It has at least `room` places, and a power of two of them, so that compiled code sees few sizes.
    """
    found = first.nonzero().flatten()
    size = max(room, 1 << found.numel().bit_length())
    starts = found.new_full((size,), first.numel(), dtype=torch.int32)
    starts[: found.numel()] = found
    return starts
