"""TeraGPT's model: a decoder with the shape of `Qwen3ForCausalLM`, from 124M parameters to 175B and beyond.

It knows nothing of meshes, clusters or training. Parallelism is applied to it from outside (parallel.py), and its
names and layouts are those of Qwen3, so that a checkpoint opens in `transformers` without permuting a weight.

B batch, T tokens, D model width, H query heads, G key/value heads, K head width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from teragpt.compute.ops import (
    attention,
    linear,
    linear_cross_entropy,
    norm_rotary,
    project,
    rms_norm,
    rotary,
    swiglu,
    within,
)
from teragpt.config import check_shape
from teragpt.rope import scaling
from teragpt.sizes import padded

Rope = tuple[Tensor, Tensor]


class Norm(nn.Module):
    """RMSNorm over the last dimension."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width), normalised."""
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Causal grouped-query attention with per-head QK-norm and rotary positions."""

    def __init__(self, dim: int, heads: int, kv_heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.head_dim, self.group = head_dim, heads // kv_heads
        self.attend = attention
        self.q_proj = nn.Linear(dim, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, dim, bias=False)
        self.q_norm = Norm(head_dim, eps)
        self.k_norm = Norm(head_dim, eps)

    def forward(self, x: Tensor, rope: Rope) -> Tensor:
        """x (B, T, D) to (B, T, D)."""
        qkv = project(x, self.q_proj, self.k_proj, self.v_proj)
        kv_heads = qkv.size(-1) // self.head_dim // (self.group + 2)
        q, k, v = norm_rotary(qkv, self.q_norm.weight, self.k_norm.weight, rope, kv_heads, self.q_norm.eps)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H or G, T, K)
        y = self.attend(q, k, v)  # (B, H, T, K)
        return project(y.transpose(1, 2).flatten(2), self.o_proj)


class FeedForward(nn.Module):
    """The gated feed-forward layer."""

    def __init__(self, dim: int, ffn: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, ffn, bias=False)
        self.up_proj = nn.Linear(dim, ffn, bias=False)
        self.down_proj = nn.Linear(ffn, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) to (B, T, D)."""
        return project(swiglu(project(x, self.gate_proj, self.up_proj)), self.down_proj)


class Block(nn.Module):
    """One layer: attention, then feed-forward, each normalised first and added to the residual stream."""

    def __init__(self, dim: int, heads: int, kv_heads: int, head_dim: int, ffn: int, eps: float) -> None:
        super().__init__()
        self.input_layernorm = Norm(dim, eps)
        self.self_attn = Attention(dim, heads, kv_heads, head_dim, eps)
        self.post_attention_layernorm = Norm(dim, eps)
        self.mlp = FeedForward(dim, ffn)

    def forward(self, x: Tensor, rope: Rope) -> Tensor:
        """x (B, T, D) to (B, T, D)."""
        x = x + self.self_attn(self.input_layernorm(x), rope)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class TeraGPT(nn.Module):
    """A GPT of `depth` blocks of width `dim` over a vocabulary of `num_tokens` (padded inside to a multiple of 128).

    `kv_heads` defaults to `heads`, `head_dim` to dim / heads, `ffn` to 8/3 of `dim` in multiples of 128; `tied` models
    have no head of their own; `rope_scaling` is a text as rope.py has it. `dtype` is what activations are computed in;
    parameters keep the dtype that they are made with.
    """

    def __init__(  # noqa: PLR0913 - a shape
        self,
        dim: int,
        depth: int,
        heads: int,
        num_tokens: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        ffn: int | None = None,
        tied: bool = False,
        rope_theta: float = 10_000.0,
        rope_scaling: str | None = None,
        norm_eps: float = 1e-6,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        derived = {"kv_heads": kv_heads, "head_dim": head_dim, "ffn": ffn, "rope_scaling": rope_scaling}
        given = {"dim": dim, "depth": depth, "heads": heads, "num_tokens": num_tokens, "tied": tied}
        check_shape(derived, **given, rope_theta=rope_theta, norm_eps=norm_eps)
        kv_heads = kv_heads or heads
        width = head_dim or dim / heads
        if width % 2 or heads % kv_heads:
            allowed = f"a multiple of kv_heads {kv_heads}, each of an even width (head_dim, else dim {dim} / heads)"
            raise ValueError(f"heads: got {heads}; allowed: {allowed}")
        ffn = ffn or padded(8 * dim // 3)
        self.num_tokens, self.depth, self.head_dim, self.rope_theta = num_tokens, depth, int(width), rope_theta
        self.dtype, self.rope_scaling = dtype, scaling(rope_scaling)
        self.embed_tokens = nn.Embedding(padded(num_tokens), dim)
        self.layers = nn.ModuleList(Block(dim, heads, kv_heads, self.head_dim, ffn, norm_eps) for _ in range(depth))
        self.norm = Norm(dim, norm_eps)
        self.lm_head = None if tied else nn.Linear(dim, padded(num_tokens), bias=False)
        self.loss = linear_cross_entropy

    def forward(self, ids: Tensor, positions: Tensor | None = None, targets: Tensor | None = None) -> Tensor:
        """Logits (B, T, num_tokens) of ids (B, T), or with targets (B, T) their mean loss without ever those logits.

        `positions` (T) default to 0, 1, ... On CPU, raises ValueError for ids that are no tokens of the vocabulary.
        """
        if positions is None:
            positions = torch.arange(ids.size(1), device=ids.device)
        x = self.embed_tokens(within(ids, self.num_tokens))
        x = x.to(self.dtype or x.dtype)
        rope = rotary(positions, self.head_dim, self.rope_theta, x.dtype, self.rope_scaling)
        for block in self.layers:
            x = block(x, rope)
        x = self.norm(x)
        output = (self.embed_tokens if self.lm_head is None else self.lm_head).weight
        if targets is None:
            return linear(x, output[: self.num_tokens])
        return self.loss(x, output, targets, self.num_tokens)

    def initial_std(self, name: str, columns: int) -> float:
        """Standard deviation of a matrix's initial values: GPT-2's 0.02 at width 768, narrower in wider models.

        Matrices that write to the residual stream start smaller by the square root of their number (Radford 2019).
        """
        residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        return float(0.5 * columns**-0.5 * ((2 * self.depth) ** -0.5 if residual else 1.0))
