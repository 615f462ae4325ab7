"""Triton kernels for what a GPU would else read and write more often: passes over memory, and nothing of the model.

Each has its formula in plain PyTorch beside its caller (ops.py, fp8.py, optim.py) and a test that holds the two equal.
All compute in fp32, whatever they read and write. A machine without a GPU imports this file in tests alone, where
Triton's interpreter runs it.

N tokens (of B sequences of T), H query heads, G key/value heads, K head width, W = (H + 2G) K, V vocabulary.
"""

# pyright: basic, reportCallIssue=false, reportArgumentType=false
# (a kernel is called with its constants as plain numbers, and its strides at once)
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function

LIBRARY = torch.library.Library("teragpt", "FRAGMENT")  # by which compiled code calls them
LIBRARY.define(
    "norm_rotary(Tensor qkv, Tensor q_weight, Tensor k_weight, Tensor cos, Tensor sin, int kv_heads, float eps) "
    "-> Tensor"
)
LIBRARY.define(
    "norm_rotary_backward(Tensor dq, Tensor dk, Tensor dv, Tensor qkv, Tensor q_weight, Tensor k_weight, Tensor cos, "
    "Tensor sin, float eps) -> (Tensor, Tensor, Tensor)"
)
LIBRARY.define("cast_both(Tensor x, Tensor scale, ScalarType dtype) -> (Tensor, Tensor)")
OPS: Any = torch.ops.teragpt
BLOCK = 4096  # elements that a program holds at once
SIDE = 64  # of the square tile that a program transposes


def cross_entropy_(logits: Tensor, targets: Tensor, vocabulary: int, z: float = 0.0) -> Tensor:
    """Each token's loss (N) in fp32 under logits (N, V), which the gradients, the z-loss's with them, replace.

    Columns from `vocabulary` on stand for no token: they do not count, and their gradient is 0.
    """
    losses = torch.empty(logits.size(0), device=logits.device, dtype=torch.float32)
    _cross_entropy[(logits.size(0),)](logits, targets, losses, logits.size(1), vocabulary, z, BLOCK, num_warps=8)
    return losses


@triton.jit
def _cross_entropy(logits, targets, losses, width, vocabulary, z, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    logits += row.to(tl.int64) * width
    target = tl.load(targets + row)
    columns = tl.arange(0, BLOCK)
    largest = tl.full((), -1e30, tl.float32)  # an infinity would make NaN of its difference from itself
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, vocabulary, BLOCK):
        x = tl.load(logits + start + columns, mask=start + columns < vocabulary, other=-1e30).to(tl.float32)
        larger = tl.maximum(largest, tl.max(x))
        total = total * tl.exp(largest - larger) + tl.exp(x - larger)
        largest = larger
    log_sum = largest + tl.log(tl.sum(total))
    tl.store(losses + row, log_sum - tl.load(logits + target).to(tl.float32))
    for start in range(0, width, BLOCK):
        at = start + columns
        x = tl.load(logits + at, mask=at < vocabulary, other=-1e30).to(tl.float32)
        slope = tl.exp(x - log_sum) * (1 + 2 * z * log_sum) - (at == target).to(tl.float32)
        tl.store(logits + at, slope.to(logits.dtype.element_ty), mask=at < width)


class NormRotary(Function):
    """QK-norm and rotary embedding of the queries and keys in a joint projection (B, T, W): ops.NormRotary in a pass.

    Only the projection is kept for backward, which attention keeps too, for its values.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, kv_heads: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, T, H, K), keys and values (B, T, G, K)."""
        ctx.save_for_backward(qkv, q_weight, k_weight, cos, sin)
        ctx.eps = eps
        q, k = OPS.norm_rotary(qkv, q_weight, k_weight, cos, sin, kv_heads, eps).tensor_split([-kv_heads], dim=2)
        return q, k, torch.unflatten(qkv, -1, (-1, q_weight.size(0)))[:, :, -kv_heads:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the joint projection and of the two norms' weights."""
        dqkv, *dw = OPS.norm_rotary_backward(*grads, *ctx.saved_tensors, ctx.eps)
        q_weight, k_weight = (slope.to(weight.dtype) for slope, weight in zip(dw, ctx.saved_tensors[1:3], strict=True))
        return dqkv, q_weight, k_weight, None, None, None, None


@torch.library.impl(LIBRARY, "norm_rotary", "CUDA")
def norm_rotary(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, kv_heads: int, eps: float
) -> Tensor:
    """Queries and keys (B, T, H + G, K) of qkv (B, T, W), normalised a head and rotated by angles (T, 1, K/2)."""
    batch, tokens, width = qkv.shape
    head_dim = q_weight.size(0)
    heads = width // head_dim - 2 * kv_heads
    qk = qkv.new_empty(batch, tokens, heads + kv_heads, head_dim)
    columns = triton.next_power_of_2(head_dim // 2)
    rows = max(1, BLOCK // 2 // columns)
    grid = (triton.cdiv(batch * tokens, rows), heads + kv_heads)
    _norm_rotary[grid](
        qkv, q_weight, k_weight, cos, sin, qk, batch * tokens, tokens, heads, kv_heads, head_dim // 2, eps,
        rows, columns,
    )  # fmt: skip
    return qk


@torch.library.impl(LIBRARY, "norm_rotary", "Meta")
def _norm_rotary_shape(
    qkv: Tensor, q_weight: Tensor, _k: Tensor, _c: Tensor, _s: Tensor, kv_heads: int, _: float
) -> Tensor:
    heads = qkv.size(2) // q_weight.size(0) - kv_heads
    return qkv.new_empty(qkv.size(0), qkv.size(1), heads, q_weight.size(0))


@triton.jit
def _norm_rotary(
    qkv, q_weight, k_weight, cos, sin, qk, count, tokens, heads, kv_heads, half, eps, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    known = columns < half
    here = (rows < count)[:, None] & known[None, :]
    at = qkv + rows[:, None].to(tl.int64) * ((heads + 2 * kv_heads) * 2 * half) + head * 2 * half + columns[None, :]
    first = tl.load(at, mask=here, other=0.0).to(tl.float32)
    second = tl.load(at + half, mask=here, other=0.0).to(tl.float32)
    scale = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / (2 * half) + eps)[:, None]
    weight = q_weight if head < heads else k_weight
    first *= scale * tl.load(weight + columns, mask=known, other=0.0).to(tl.float32)[None, :]
    second *= scale * tl.load(weight + half + columns, mask=known, other=0.0).to(tl.float32)[None, :]
    angles = (rows % tokens)[:, None] * half + columns[None, :]
    c = tl.load(cos + angles, mask=here, other=0.0).to(tl.float32)
    s = tl.load(sin + angles, mask=here, other=0.0).to(tl.float32)
    to = qk + rows[:, None].to(tl.int64) * ((heads + kv_heads) * 2 * half) + head * 2 * half + columns[None, :]
    tl.store(to, (first * c - second * s).to(qk.dtype.element_ty), mask=here)
    tl.store(to + half, (second * c + first * s).to(qk.dtype.element_ty), mask=here)


@torch.library.impl(LIBRARY, "norm_rotary_backward", "CUDA")
def norm_rotary_backward(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of qkv (B, T, W) and of the weights (K), in fp32, by those of queries, keys and values (B, T, ., K)."""
    batch, tokens, heads, head_dim = dq.shape
    kv_heads = dk.size(2)
    dqkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    columns = triton.next_power_of_2(head_dim // 2)
    rows = max(1, BLOCK // 2 // columns)
    tiles = triton.cdiv(batch * tokens, rows)
    parts = torch.empty(tiles, heads + kv_heads, head_dim, device=qkv.device, dtype=torch.float32)
    dq, dk, dv = (grad if grad.stride(-1) == 1 else grad.contiguous() for grad in (dq, dk, dv))
    _norm_rotary_backward[tiles, heads + 2 * kv_heads](
        dq,
        *dq.stride()[:3],
        dk,
        *dk.stride()[:3],
        dv,
        *dv.stride()[:3],
        qkv,
        q_weight,
        k_weight,
        cos,
        sin,
        dqkv,
        parts,
        batch * tokens,
        tokens,
        heads,
        kv_heads,
        head_dim // 2,
        eps,
        rows,
        columns,
    )
    return dqkv, parts[:, :heads].sum((0, 1)), parts[:, heads:].sum((0, 1))


@torch.library.impl(LIBRARY, "norm_rotary_backward", "Meta")
def _norm_rotary_backward_shapes(
    _dq: Tensor, _dk: Tensor, _dv: Tensor, qkv: Tensor, q_weight: Tensor, k_weight: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    one, other = (torch.empty_like(weight, dtype=torch.float32) for weight in (q_weight, k_weight))
    return torch.empty_like(qkv, memory_format=torch.contiguous_format), one, other


@triton.jit
def _norm_rotary_backward(
    dq, dq_b, dq_t, dq_h, dk, dk_b, dk_t, dk_h, dv, dv_b, dv_t, dv_h, qkv, q_weight, k_weight, cos, sin, dqkv, parts,
    count, tokens, heads, kv_heads, half, eps, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    tile, head = tl.program_id(0), tl.program_id(1)
    rows, columns = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    known = columns < half
    here = (rows < count)[:, None] & known[None, :]
    sequence, token = (rows // tokens).to(tl.int64), (rows % tokens).to(tl.int64)
    if head < heads:
        slope = dq + (sequence * dq_b + token * dq_t + head * dq_h)[:, None] + columns[None, :]
    elif head < heads + kv_heads:
        slope = dk + (sequence * dk_b + token * dk_t + (head - heads) * dk_h)[:, None] + columns[None, :]
    else:
        slope = dv + (sequence * dv_b + token * dv_t + (head - heads - kv_heads) * dv_h)[:, None] + columns[None, :]
    first = tl.load(slope, mask=here, other=0.0).to(tl.float32)
    second = tl.load(slope + half, mask=here, other=0.0).to(tl.float32)
    at = rows[:, None].to(tl.int64) * ((heads + 2 * kv_heads) * 2 * half) + head * 2 * half + columns[None, :]
    if head < heads + kv_heads:
        angles = token[:, None] * half + columns[None, :]
        c = tl.load(cos + angles, mask=here, other=0.0).to(tl.float32)
        s = tl.load(sin + angles, mask=here, other=0.0).to(tl.float32)
        back = first * c + second * s
        second = second * c - first * s
        one = tl.load(qkv + at, mask=here, other=0.0).to(tl.float32)
        other = tl.load(qkv + at + half, mask=here, other=0.0).to(tl.float32)
        scale = tl.rsqrt((tl.sum(one * one, 1) + tl.sum(other * other, 1)) / (2 * half) + eps)[:, None]
        one *= scale
        other *= scale
        part = parts + (tile * (heads + kv_heads) + head) * 2 * half + columns
        tl.store(part, tl.sum(back * one, 0), mask=known)
        tl.store(part + half, tl.sum(second * other, 0), mask=known)
        weight = q_weight if head < heads else k_weight
        back *= tl.load(weight + columns, mask=known, other=0.0).to(tl.float32)[None, :]
        second *= tl.load(weight + half + columns, mask=known, other=0.0).to(tl.float32)[None, :]
        inner = ((tl.sum(back * one, 1) + tl.sum(second * other, 1)) / (2 * half))[:, None]
        first = scale * (back - one * inner)
        second = scale * (second - other * inner)
    tl.store(dqkv + at, first.to(dqkv.dtype.element_ty), mask=here)
    tl.store(dqkv + at + half, second.to(dqkv.dtype.element_ty), mask=here)


@torch.library.impl(LIBRARY, "cast_both", "CUDA")
def cast_both(x: Tensor, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x (M, N) times a scale in fp8, and its transpose (N, M), both with contiguous rows; what is larger saturates."""
    rows, columns = x.shape
    cast, turned = x.new_empty(rows, columns, dtype=dtype), x.new_empty(columns, rows, dtype=dtype)
    limit = torch.finfo(dtype).max
    grid = (triton.cdiv(rows, SIDE), triton.cdiv(columns, SIDE))
    _cast_both[grid](x, scale, cast, turned, rows, columns, x.stride(0), limit, SIDE)
    return cast, turned


@torch.library.impl(LIBRARY, "cast_both", "Meta")
def _cast_both_shapes(x: Tensor, _: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.size(1), x.size(0), dtype=dtype)


@triton.jit
def _cast_both(x, scale, cast, turned, rows, columns, stride, limit, SIDE: tl.constexpr):
    row, column = tl.program_id(0) * SIDE + tl.arange(0, SIDE), tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    here = (row < rows)[:, None] & (column < columns)[None, :]
    value = tl.load(x + row[:, None].to(tl.int64) * stride + column[None, :], mask=here, other=0.0).to(tl.float32)
    value = tl.clamp(value * tl.load(scale), -limit, limit).to(cast.dtype.element_ty)
    tl.store(cast + row[:, None].to(tl.int64) * columns + column[None, :], value, mask=here)
    tl.store(turned + column[:, None].to(tl.int64) * rows + row[None, :], tl.trans(value), mask=tl.trans(here))


def adamw_(
    master: Tensor, copy: Tensor, mean: Tensor, square: Tensor, grad: Tensor, clip: Tensor, rates: Tensor,
    decay: float, betas: tuple[float, float], eps: float,
) -> None:  # fmt: skip
    """AdamW's step of an fp32 master, of its copy in another dtype, and of its moments, in one pass.

    The gradient, in any dtype, is scaled by `clip`, a scalar. `rates` are the learning rate, 1 - beta1^t and the root
    of 1 - beta2^t.
    """
    grid = (triton.cdiv(master.numel(), BLOCK // 4),)
    state = master, copy, mean, square, grad, clip, rates
    _adamw[grid](*state, decay, *betas, eps, master.numel(), BLOCK // 4)


@triton.jit
def _adamw(
    master, copy, mean, square, grad, clip, rates, decay, beta1, beta2, eps, count, BLOCK: tl.constexpr
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < count
    rate = tl.load(rates)
    slope = tl.load(grad + at, mask=here, other=0.0).to(tl.float32) * tl.load(clip).to(tl.float32)
    first = tl.load(mean + at, mask=here, other=0.0) * beta1 + slope * (1 - beta1)
    second = tl.load(square + at, mask=here, other=0.0) * beta2 + slope * slope * (1 - beta2)
    value = tl.load(master + at, mask=here, other=0.0) * (1 - rate * decay)
    value -= rate / tl.load(rates + 1) * first / (tl.sqrt(second) / tl.load(rates + 2) + eps)
    tl.store(mean + at, first, mask=here)
    tl.store(square + at, second, mask=here)
    tl.store(master + at, value, mask=here)
    tl.store(copy + at, value.to(copy.dtype.element_ty), mask=here)
