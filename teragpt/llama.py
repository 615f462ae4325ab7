"""The model with Llama's attention: no norms of queries and keys. All else is TeraGPT's, as Llama has it too.

It is what `teragpt import` makes of a `LlamaForCausalLM`, and `--model teragpt.llama:Llama` trains one from nothing.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from teragpt import model
from teragpt.compute.ops import project, rotate
from teragpt.model import Rope, TeraGPT


class Attention(model.Attention):
    """Causal grouped-query attention with rotary positions (Touvron et al. 2023)."""

    def __init__(self, dim: int, heads: int, kv_heads: int, head_dim: int, eps: float) -> None:
        super().__init__(dim, heads, kv_heads, head_dim, eps)
        del self.q_norm, self.k_norm

    def forward(self, x: Tensor, rope: Rope) -> Tensor:
        """x (B, T, D) to (B, T, D)."""
        heads = project(x, self.q_proj, self.k_proj, self.v_proj).unflatten(-1, (-1, self.head_dim))
        kv_heads = heads.size(2) // (self.group + 2)
        q, k, v = heads.split([self.group * kv_heads, kv_heads, kv_heads], dim=2)
        q, k, v = rotate(q, *rope).transpose(1, 2), rotate(k, *rope).transpose(1, 2), v.transpose(1, 2)
        return project(self.attend(q, k, v).transpose(1, 2).flatten(2), self.o_proj)


class Llama(TeraGPT):
    """As `TeraGPT`, of the same arguments."""

    def __init__(self, dim: int, depth: int, heads: int, num_tokens: int, **shape: Any) -> None:
        super().__init__(dim, depth, heads, num_tokens, **shape)
        for block in self.layers:
            kv_heads, eps = shape.get("kv_heads") or heads, shape.get("norm_eps", 1e-6)
            block.self_attn = Attention(dim, heads, kv_heads, self.head_dim, eps)
