"""Documents packed into one sequence, with attention confined to each: no token sees what another document says.

Rotary embeddings depend on distances alone, so within a document the positions are as good as counted from its start.
Applied to a model from outside, like parallelism. It must not know where tokens come from.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teragpt.config import Config, ConfigError, Problem


def confine(model: nn.Module, config: Config, end: int | None) -> None:
    """Have a model attend within documents where the setting `packing` says so; `end` is the separator's id.

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
    within = Within(end)
    model.register_forward_pre_hook(within.read, with_kwargs=True)
    for part in parts:
        cast("Any", part).attend = within


class Within:
    """Causal attention within documents, of the sequences that its model was given last.

    One at a time: a micro-batch goes forward and backward before the next one, so none of `pp` and no cache.
    """

    def __init__(self, end: int) -> None:
        self.end = end
        self.mask = torch.empty(0)

    def read(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take the documents of ids (B, T), the model's first argument; a separator ends its document."""
        ids: Tensor = args[0] if args else kwargs["ids"]
        ends = ids == self.end
        document = ends.cumsum(1) - ends.long()
        self.mask = (document.unsqueeze(2) == document.unsqueeze(1)).tril().unsqueeze(1)  # (B, 1, T, T)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of queries (B, H, T, K) over keys and values (B, G, T, K)."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, enable_gqa=q.size(1) != k.size(1))
