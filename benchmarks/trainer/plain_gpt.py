"""The baseline: a GPT-2-shaped model and loop in one plain PyTorch file, in nanoGPT's manner, tuned for the machine.

Learned positions, LayerNorm, GELU, one qkv projection, dense logits, AdamW and clipping, the whole model compiled. It
exists to be measured against; nothing of the product imports it.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Layer(nn.Module):
    """Attention and a four times wider GELU layer, pre-norm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(dim, bias=False), nn.LayerNorm(dim, bias=False)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.wide, self.narrow = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D)."""
        batch, length, dim = x.shape
        q, k, v = self.qkv(self.first(x)).split(dim, dim=2)
        q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, dim)
        x = x + self.out(y)
        out: Tensor = x + self.narrow(F.gelu(self.wide(self.second(x))))
        return out


class PlainGPT(nn.Module):
    """A GPT-2 with tied embeddings; returns the loss."""

    def __init__(self, dim: int, depth: int, heads: int, vocabulary: int, context: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, dim), nn.Embedding(context, dim)
        self.layers = nn.ModuleList(Layer(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, bias=False)
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.02)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """ids, targets (B, T)."""
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1), device=ids.device))
        for layer in self.layers:
            x = layer(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main(threads: int, micro_batch: int, accumulation: int, steps: int) -> float:
    """Tokens per second of the tiny size's dimensions over `steps` steps, after the compile and two warm steps."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    dim, depth, heads, vocabulary, context = 128, 3, 2, 2048, 256
    model = PlainGPT(dim, depth, heads, vocabulary, context)
    model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
    ids = torch.randint(0, vocabulary, (micro_batch, context + 1))

    def step() -> None:
        for _ in range(accumulation):
            (model(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()) / accumulation).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    step()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return steps * accumulation * micro_batch * context / (time.perf_counter() - start)


if __name__ == "__main__":
    print(json.dumps({"tokens_per_s": main(*map(int, sys.argv[1:5]))}))
