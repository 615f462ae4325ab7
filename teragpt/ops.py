"""The model's fused operations, each as plain PyTorch that any mesh, dtype and device can run.

B batch, T tokens, D model width, H heads, K head width, F feed-forward width, V vocabulary rows, N = B x T.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

LOGITS_CHUNK = 1 << 21  # logits held at once: 8 MB in fp32, about what a core's caches hold


def linear(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """Projections of x (..., D) by each weight (out, D), as one matmul in x's dtype; masters stay as they are."""
    if len(weights) == 1:
        return (F.linear(x, weights[0].to(x.dtype)),)
    joined = torch.cat([weight.to(x.dtype) for weight in weights])
    return torch.split(F.linear(x, joined), [weight.size(0) for weight in weights], dim=-1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., D) over its root mean square, times weight (D); computed in fp32 at least (Zhang & Sennrich 2019)."""
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)


def rotary(positions: Tensor, width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, 1, K) of the rotary embedding at positions (T), halves side by side (Su et al. 2021)."""
    frequencies = theta ** -(torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width)
    angles = torch.outer(positions.float(), frequencies)
    angles = torch.cat([angles, angles], dim=-1).unsqueeze(1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """x (B, T, H, K) turned by its position: pairs are an element of the first half and one of the second."""
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """SiLU(gate) x up, both (..., F) (Shazeer 2020)."""
    return F.silu(gate) * up


class LinearCrossEntropy(Function):
    """Mean cross-entropy of softmax(x W^T), a chunk of tokens at a time, gradients made on the way forward.

    The full logits (N, V) never exist, and nothing is computed twice: what backward needs are dx (N, D) and dW (V, D),
    which each chunk adds while its logits are still in cache.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        """x (N, D), weight (V, D) in x's dtype, targets (N): the mean loss, a scalar of at least fp32."""
        wide = torch.promote_types(x.dtype, torch.float32)
        needs_grad = any(ctx.needs_input_grad)
        dx = torch.empty_like(x) if needs_grad else None
        dw = torch.zeros_like(weight, dtype=wide) if needs_grad else None
        total = x.new_zeros((), dtype=wide)
        for start in range(0, x.size(0), chunk):
            part, wanted = x[start : start + chunk], targets[start : start + chunk].unsqueeze(1)
            scores = (part @ weight.T).to(wide)
            log_sum = scores.logsumexp(dim=1, keepdim=True)
            total += (log_sum - scores.gather(1, wanted)).sum()
            if dx is None or dw is None:
                continue
            slope = scores.sub_(log_sum).exp_()
            slope.scatter_add_(1, wanted, slope.new_full((1, 1), -1.0).expand_as(wanted))
            slope = slope.div_(x.size(0)).to(x.dtype)
            torch.mm(slope, weight, out=dx[start : start + chunk])
            dw.addmm_(slope.T, part) if dw.dtype == part.dtype else dw.add_(slope.T @ part)
        ctx.save_for_backward(dx, dw)
        ctx.weight_dtype = weight.dtype
        return total / x.size(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """The stored gradients, times the loss's own."""
        dx, dw = ctx.saved_tensors
        return dx * grads[0].to(dx.dtype), (dw * grads[0]).to(ctx.weight_dtype), None, None


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the tokens x (B, T, D) under the output weight (V, D), against targets (B, T)."""
    chunk = max(16, LOGITS_CHUNK // weight.size(0))
    loss: Tensor = LinearCrossEntropy.apply(x.flatten(0, -2), weight.to(x.dtype), targets.flatten(), chunk)
    return loss
