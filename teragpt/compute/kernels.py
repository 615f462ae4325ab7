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
LIBRARY.define("swiglu_backward(Tensor grad, Tensor joint) -> Tensor")
LIBRARY.define("cast_both(Tensor x, Tensor scale, ScalarType dtype) -> (Tensor, Tensor)")
OPS: Any = torch.ops.teragpt
BLOCK = 4096  # elements that a program holds at once
SIDE = 64  # of the square tile that a program transposes
TILES = 8  # of tokens that a program takes in turn, so that few parts of a weight's gradient are left to add up


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
        saved = ctx.saved_tensors  # once: recompute gives them out a single time
        dqkv, *parts = OPS.norm_rotary_backward(*grads, *saved, ctx.eps)
        pairs = zip(parts, saved[1:3], strict=True)
        q_weight, k_weight = (part.sum((0, 1)).to(weight.dtype) for part, weight in pairs)
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
    """The gradient of qkv (B, T, W) by those of queries, keys and values (B, T, ., K), and the weights' in parts.

    These are (parts, H, K) and (parts, G, K), in fp32.
    """
    batch, tokens, heads, head_dim = dq.shape
    kv_heads = dk.size(2)
    dqkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    columns = triton.next_power_of_2(head_dim // 2)
    rows = max(1, BLOCK // 2 // columns)
    programs = triton.cdiv(batch * tokens, rows * TILES)
    q_parts, k_parts = (
        torch.empty(programs, some, head_dim, device=qkv.device, dtype=torch.float32) for some in (heads, kv_heads)
    )
    dq, dk, dv = (grad if grad.stride(-1) == 1 else grad.contiguous() for grad in (dq, dk, dv))
    slopes = dq, *dq.stride()[:3], dk, *dk.stride()[:3], dv, *dv.stride()[:3]
    _norm_rotary_backward[programs, heads + 2 * kv_heads](
        *slopes, qkv, q_weight, k_weight, cos, sin, dqkv, q_parts, k_parts, batch * tokens, tokens, heads, kv_heads,
        head_dim // 2, eps, TILES, rows, columns,
    )  # fmt: skip
    return dqkv, q_parts, k_parts


@torch.library.impl(LIBRARY, "norm_rotary_backward", "Meta")
def _norm_rotary_backward_shapes(
    dq: Tensor, dk: Tensor, _dv: Tensor, qkv: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    rows = max(1, BLOCK // 2 // triton.next_power_of_2(dq.size(3) // 2))
    programs = triton.cdiv(dq.size(0) * dq.size(1), rows * TILES)
    q_parts, k_parts = (slope.new_empty(programs, *slope.shape[2:], dtype=torch.float32) for slope in (dq, dk))
    return torch.empty_like(qkv, memory_format=torch.contiguous_format), q_parts, k_parts


@triton.jit
def _norm_rotary_backward(
    dq, dq_b, dq_t, dq_h, dk, dk_b, dk_t, dk_h, dv, dv_b, dv_t, dv_h, qkv, q_weight, k_weight, cos, sin, dqkv, q_parts,
    k_parts, count, tokens, heads, kv_heads, half, eps, TILES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    program, head = tl.program_id(0), tl.program_id(1)
    columns = tl.arange(0, COLUMNS)
    known = columns < half
    normed = head < heads + kv_heads
    of_first, of_second = tl.zeros((COLUMNS,), dtype=tl.float32), tl.zeros((COLUMNS,), dtype=tl.float32)
    weight = q_weight if head < heads else k_weight
    one_weight = tl.load(weight + columns, mask=known, other=0.0).to(tl.float32)[None, :]
    other_weight = tl.load(weight + half + columns, mask=known, other=0.0).to(tl.float32)[None, :]
    for tile in range(program * TILES, program * TILES + TILES):
        rows = tile * ROWS + tl.arange(0, ROWS)
        here = (rows < count)[:, None] & known[None, :]
        sequence, token = (rows // tokens).to(tl.int64), (rows % tokens).to(tl.int64)
        if head < heads:
            slope = dq + (sequence * dq_b + token * dq_t + head * dq_h)[:, None] + columns[None, :]
        elif normed:
            slope = dk + (sequence * dk_b + token * dk_t + (head - heads) * dk_h)[:, None] + columns[None, :]
        else:
            slope = dv + (sequence * dv_b + token * dv_t + (head - heads - kv_heads) * dv_h)[:, None] + columns[None, :]
        first = tl.load(slope, mask=here, other=0.0).to(tl.float32)
        second = tl.load(slope + half, mask=here, other=0.0).to(tl.float32)
        at = rows[:, None].to(tl.int64) * ((heads + 2 * kv_heads) * 2 * half) + head * 2 * half + columns[None, :]
        if normed:
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
            of_first += tl.sum(back * one, 0)
            of_second += tl.sum(second * other, 0)
            back *= one_weight
            second *= other_weight
            inner = ((tl.sum(back * one, 1) + tl.sum(second * other, 1)) / (2 * half))[:, None]
            first = scale * (back - one * inner)
            second = scale * (second - other * inner)
        tl.store(dqkv + at, first.to(dqkv.dtype.element_ty), mask=here)
        tl.store(dqkv + at + half, second.to(dqkv.dtype.element_ty), mask=here)
    if normed:
        part = q_parts + (program * heads + head) * 2 * half + columns
        if head >= heads:
            part = k_parts + (program * kv_heads + head - heads) * 2 * half + columns
        tl.store(part, of_first, mask=known)
        tl.store(part + half, of_second, mask=known)


class SwiGLU(Function):
    """SiLU(gate) x up of a joint projection (..., 2F), backward in one pass: ops.SwiGLU's formulas."""

    @staticmethod
    def forward(ctx: Any, joint: Tensor) -> Tensor:
        """(..., F)."""
        ctx.save_for_backward(joint)
        gate, up = joint.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """The gradient (..., 2F)."""
        slope: Tensor = OPS.swiglu_backward(grads[0], *ctx.saved_tensors)
        return slope


@torch.library.impl(LIBRARY, "swiglu_backward", "CUDA")
def swiglu_backward(grad: Tensor, joint: Tensor) -> Tensor:
    """The gradient of a joint projection (..., 2F) by that of SiLU(gate) x up (..., F)."""
    grad, joint = grad.contiguous(), joint.contiguous()
    slope = torch.empty_like(joint)
    width = grad.size(-1)
    grid = (grad.numel() // width, triton.cdiv(width, BLOCK // 4))
    _swiglu_backward[grid](grad, joint, slope, width, BLOCK // 4)
    return slope


@torch.library.impl(LIBRARY, "swiglu_backward", "Meta")
def _swiglu_backward_shape(_: Tensor, joint: Tensor) -> Tensor:
    return torch.empty_like(joint, memory_format=torch.contiguous_format)


@triton.jit
def _swiglu_backward(grad, joint, slope, width, BLOCK: tl.constexpr):
    row, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = columns < width
    at = row * 2 * width + columns
    dy = tl.load(grad + row * width + columns, mask=here, other=0.0).to(tl.float32)
    gate = tl.load(joint + at, mask=here, other=0.0).to(tl.float32)
    up = tl.load(joint + at + width, mask=here, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    tl.store(slope + at, (dy * up * (sigmoid + silu * (1 - sigmoid))).to(slope.dtype.element_ty), mask=here)
    tl.store(slope + at + width, (dy * silu).to(slope.dtype.element_ty), mask=here)


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
    value, first, second = _moved(master, mean, square, grad, clip, rates, decay, beta1, beta2, eps, at, here)
    tl.store(mean + at, first, mask=here)
    tl.store(square + at, second, mask=here)
    tl.store(master + at, value, mask=here)
    tl.store(copy + at, value.to(copy.dtype.element_ty), mask=here)


@triton.jit
def _moved(master, mean, square, grad, clip, rates, decay, beta1, beta2, eps, at, here):
    rate = tl.load(rates)
    slope = tl.load(grad + at, mask=here, other=0.0).to(tl.float32) * tl.load(clip).to(tl.float32)
    first = tl.load(mean + at, mask=here, other=0.0).to(tl.float32) * beta1 + slope * (1 - beta1)
    second = tl.load(square + at, mask=here, other=0.0).to(tl.float32) * beta2 + slope * slope * (1 - beta2)
    value = tl.load(master + at, mask=here, other=0.0).to(tl.float32) * (1 - rate * decay)
    value -= rate / tl.load(rates + 1) * first / (tl.sqrt(second) / tl.load(rates + 2) + eps)
    return value, first, second


def rounded_adamw_(
    weight: Tensor, mean: Tensor, square: Tensor, grad: Tensor, clip: Tensor, rates: Tensor, seed: int, decay: float,
    betas: tuple[float, float], eps: float,
) -> None:  # fmt: skip
    """rounding.adamw_ in one pass."""
    grid = (triton.cdiv(weight.numel(), BLOCK // 4),)
    state = weight, mean, square, grad, clip, rates
    _rounded_adamw[grid](*state, seed, decay, *betas, eps, weight.numel(), BLOCK // 4)


@triton.jit
def _rounded_adamw(
    weight, mean, square, grad, clip, rates, seed, decay, beta1, beta2, eps, count, BLOCK: tl.constexpr
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < count
    value, first, second = _moved(weight, mean, square, grad, clip, rates, decay, beta1, beta2, eps, at, here)
    thrown = _dice(at, tl.load(rates + 3).to(tl.int64) + seed)
    tl.store(mean + at, first.to(mean.dtype.element_ty), mask=here)
    tl.store(square + at, _rounded(second, thrown >> 16).to(square.dtype.element_ty), mask=here)
    tl.store(weight + at, _rounded(value, thrown & 0xFFFF).to(weight.dtype.element_ty), mask=here)


@triton.jit
def _dice(at, seed):
    word = (at + (seed & 0xFFFFFFFF) * 0x9E3779B9) & 0xFFFFFFFF
    word = ((word ^ (word >> 16)) * 0x21F0AAAD) & 0xFFFFFFFF
    word = ((word ^ (word >> 15)) * 0x735A2D97) & 0xFFFFFFFF
    return word ^ (word >> 15)


@triton.jit
def _rounded(value, bits):
    whole = value.to(tl.int32, bitcast=True).to(tl.int64) + bits
    return (whole & ~0xFFFF).to(tl.int32).to(tl.float32, bitcast=True)
