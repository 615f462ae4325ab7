"""The model's fused operations, for any mesh, dtype and device.

Each has two forms of one formula: plain, which a compiler fuses with what stands around it, and an `autograd.Function`
of few passes over memory, for where nothing compiles. On a GPU some are kernels of our own (kernels.py). Tests hold
their values and gradients equal.

B batch, T tokens, D model width, H heads, K head width, F feed-forward width, V vocabulary rows, N = B x T.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from teragpt.compute.collectives import Group, all_reduce
from teragpt.rope import ORIGINAL, Scaling

if TYPE_CHECKING or torch.cuda.is_available():  # Triton takes its time to import
    from teragpt.compute import kernels

ALONE = Group("", 1, 0)
ONEDNN = torch.backends.mkldnn.is_available()
FEW_ROWS = 16  # a product with no more takes as long as reading its weight
LIBRARY = torch.library.Library("teragpt", "DEF")
LIBRARY.define("product(Tensor x, Tensor weight) -> Tensor")  # inductor takes oneDNN's own for constant weights alone
foreach_norm: Any = torch.ops.aten._foreach_norm.Scalar  # noqa: SLF001 - norms of many tensors in few kernels
foreach_mul_: Any = torch.ops.aten._foreach_mul_.Tensor
foreach_sub_: Any = torch.ops.aten._foreach_sub_.List
foreach_lerp_: Any = torch.ops.aten._foreach_lerp_.Scalar
foreach_copy_: Any = torch.ops.aten._foreach_copy_.default
PRODUCT: Any = torch.ops.teragpt.product.default
LOGITS_CHUNK = 1 << 21  # logits held at once: 8 MB in fp32, about what a core's caches hold
GPU_LOGITS_CHUNK = 1 << 30  # 2 GB in bf16: products that fill a GPU
JOINED = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))  # as the model does


def local(value: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory."""
    return value.to_local() if isinstance(value, DTensor) else value


def fused(x: Tensor) -> bool:
    """Whether x is where kernels.py runs, which computes in fp32."""
    return x.is_cuda and x.dtype != torch.float64


def few(x: Tensor) -> bool:
    """Whether x is so few rows, and none to be learned from, that calls and not arithmetic take the time."""
    return x.numel() <= FEW_ROWS * x.size(-1) and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def within(ids: Tensor, vocabulary: int) -> Tensor:
    """The ids, once seen to be tokens of the vocabulary, whose table has rows beyond it. Raises ValueError.

    A GPU is not waited for, nor is a compiler or tracer stopped; between pipeline stages there are no ids.
    """
    known = ids.device.type == "cpu" and type(ids) is Tensor and not torch.compiler.is_compiling()
    if known and ids.numel() and not ids.is_floating_point():
        low, high = (int(end) for end in ids.aminmax())
        if low < 0 or high >= vocabulary:
            raise ValueError(f"ids: got {low if low < 0 else high}; allowed: 0 to {vocabulary - 1}, below num_tokens")
    return ids


def linear(x: Tensor, *weights: Tensor, by: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
    """Projections of x (..., D) by this rank's part of each weight (out, D), side by side: one matmul in x's dtype."""
    mine = [local(weight).to(x.dtype) for weight in weights]
    if by is None and few(x):
        return torch.cat([F.linear(x, weight) for weight in mine], dim=-1)  # to join weights would take longer
    joined = mine[0] if len(mine) == 1 else torch.cat(mine)
    if by is not None:
        return by(x, joined)
    projected: Tensor = Linear.apply(x, joined) if in_onednn(x) else F.linear(x, joined)
    return projected


def project(x: Tensor, *layers: nn.Linear) -> Tensor:
    """`linear` by the weights of layers.

    The first of them may bring a product of its own (fp8.py), and all weights in one tensor (optim.py).
    """
    joint = getattr(layers[0], "joint", None)
    weights = [layer.weight for layer in layers] if joint is None else [joint]
    return linear(x, *weights, by=getattr(layers[0], "product", None))


class Linear(Function):
    """x (..., D) by the transpose of a weight (out, D), with oneDNN's kernels forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """(..., out)."""
        ctx.save_for_backward(x, weight)
        return product(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of x and weight."""
        x, weight = ctx.saved_tensors
        slope = grads[0].flatten(0, -2)
        return product(slope, weight.t()).view_as(x), outer_product(slope, x.flatten(0, -2))


def in_onednn(x: Tensor) -> bool:
    """Whether products with x (..., D) are oneDNN's: fp32 on CPU, where torch would take MKL.

    MKL leaves half of the vector units idle on processors that are not Intel's; for a few rows only memory counts.
    """
    return ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > FEW_ROWS * x.size(-1)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., D) by the transpose of a weight (out, D). It has no gradient of its own."""
    result: Tensor = PRODUCT(x, weight) if in_onednn(x) else F.linear(x, weight)
    return result


def outer_product(slope: Tensor, x: Tensor) -> Tensor:
    """A weight's gradient (out, D) of the output's, slope (N, out), and the input x (N, D)."""
    if in_onednn(x) and slope.size(1) > x.size(1):  # what stands first is copied to have its rows contiguous
        return product(x.t(), slope.t()).t()
    return product(slope.t(), x.t())


@torch.library.impl(LIBRARY, "product", "CPU")
def _product(x: Tensor, weight: Tensor) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")  # noqa: SLF001 - no other name
    return result


@torch.library.impl(LIBRARY, "product", "Meta")
def _product_shape(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.size(0))


class RMSNorm(Function):
    """x (..., D) over its root mean square, times weight (D) (Zhang & Sennrich 2019), in few passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """The normalised x; what it is before the weight is kept for backward."""
        scale = inverse_rms(x, eps)
        unit = (x * scale).to(x.dtype)
        ctx.save_for_backward(unit, weight, scale)
        return unit * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of x and weight."""
        unit, weight, scale = ctx.saved_tensors
        product = grads[0] * unit
        dx = (grads[0] * weight).addcmul_(unit, (product @ weight).unsqueeze(-1), value=-1 / unit.size(-1)).mul_(scale)
        return dx, product.flatten(0, -2).sum(0), None


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 over the root mean square of x's last dimension, kept (..., 1), in fp32 at least: bf16 is 0.4% off."""
    wide = torch.promote_types(x.dtype, torch.float32)
    mean_square: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square_() / x.size(-1)
    return mean_square.add_(eps).rsqrt_()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., D) over its root mean square, times weight (D). GPUs have a kernel of their own for it."""
    if x.is_cuda or torch.compiler.is_compiling() or few(x):
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)
    normal: Tensor = RMSNorm.apply(x, weight.to(x.dtype), eps)
    return normal


def rotary(
    positions: Tensor, width: int, theta: float, dtype: torch.dtype, scaling: Scaling | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, 1, K/2) of the rotary embedding at positions (T) (Su et al. 2021)."""
    wide = torch.promote_types(dtype, torch.float32)
    frequencies = theta ** -(torch.arange(0, width, 2, device=positions.device, dtype=wide) / width)
    angles = torch.outer(positions.to(wide), scaled(frequencies, theta, scaling) if scaling else frequencies)
    cos, sin = angles.unsqueeze(1).cos(), angles.unsqueeze(1).sin()
    if scaling and scaling.strength != 1:
        cos, sin = cos * scaling.strength, sin * scaling.strength
    return cos.to(dtype), sin.to(dtype)


def scaled(frequencies: Tensor, theta: float, scaling: Scaling) -> Tensor:
    """Frequencies (K/2) of a base, each as fast as it was or up to `factor` times as slow."""
    numbers, factor = scaling.numbers, scaling.numbers["factor"]
    if scaling.kind == "linear":
        return frequencies / factor
    if scaling.kind == "llama3":  # what turns often in an original context stays
        low, turns = numbers["low_freq_factor"], numbers[ORIGINAL] * frequencies / (2 * math.pi)
        kept = ((turns - low) / (numbers["high_freq_factor"] - low)).clamp(0, 1)
    else:
        first, last = yarn_places(len(frequencies), theta, scaling)
        kept = 1 - ((frequencies.new_ones(len(frequencies)).cumsum(0) - 1 - first) / (last - first or 0.001)).clamp(
            0, 1
        )
    return frequencies * (kept + (1 - kept) / factor)


def yarn_places(pairs: int, theta: float, scaling: Scaling) -> tuple[int, int]:
    """The first of so many frequencies that does not stay as it is with yarn, and the one after which all are slower.

    By how often each turns in an original context, in the measure of the places of frequencies.
    """

    def place(turns: float) -> float:
        return pairs * math.log(scaling.numbers[ORIGINAL] / (turns * 2 * math.pi)) / math.log(theta)

    first, last = place(scaling.numbers.get("beta_fast", 32)), place(scaling.numbers.get("beta_slow", 1))
    return max(math.floor(first), 0), min(math.ceil(last), 2 * pairs - 1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`turn` in a form that autograd and a compiler can follow."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, T, H, K) turned by angles (T, 1, K/2); pairs are an element of the first half and one of the second."""
    (first, second), y = x.chunk(2, dim=-1), torch.empty_like(x, memory_format=torch.contiguous_format)
    one, other = y.chunk(2, dim=-1)
    torch.mul(first, cos, out=one).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=other).addcmul_(first, sin)
    return y


class NormRotary(Function):
    """QK-norm and rotary embedding of the queries and keys in a joint projection (B, T, (H + 2G) K).

    Backward writes the three gradients into one joint tensor, which is what the projection's backward takes.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, kv_heads: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, T, H, K), keys and values (B, T, G, K)."""
        heads = torch.unflatten(qkv, -1, (-1, q_weight.size(0)))
        q, k, v = torch.split(heads, [heads.size(2) - 2 * kv_heads, kv_heads, kv_heads], dim=2)
        q_scale, k_scale = inverse_rms(q, eps), inverse_rms(k, eps)
        q_unit, k_unit = (q * q_scale).to(q.dtype), (k * k_scale).to(k.dtype)
        ctx.save_for_backward(q_unit, k_unit, q_scale, k_scale, q_weight, k_weight, cos, sin)
        return turn(q_unit * q_weight, cos, sin), turn(k_unit * k_weight, cos, sin), v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the joint projection and of the two norms' weights."""
        q_unit, k_unit, q_scale, k_scale, q_weight, k_weight, cos, sin = ctx.saved_tensors
        dq, dk, dv = grads
        joint = dq.new_empty(*dq.shape[:2], dq.size(2) + 2 * dk.size(2), dq.size(3))
        into_q, into_k, into_v = torch.split(joint, [dq.size(2), dk.size(2), dk.size(2)], dim=2)
        dw = []
        whole = ((dq, q_unit, q_scale, q_weight, into_q), (dk, k_unit, k_scale, k_weight, into_k))
        for dy, unit, scale, weight, into in whole:
            back = turn(dy, cos, -sin)
            product = back * unit
            dw.append(product.flatten(0, -2).sum(0))
            back.mul_(weight).addcmul_(unit, (product @ weight).unsqueeze(-1), value=-1 / unit.size(-1))
            torch.mul(back, scale, out=into)
        into_v.copy_(dv)
        return joint.flatten(2), dw[0], dw[1], None, None, None, None


def norm_rotary(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, rope: tuple[Tensor, Tensor], kv_heads: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, T, H, K), keys and values (B, T, G, K) of qkv (B, T, (H + 2G) K), normalised a head and rotated."""
    if fused(qkv):
        turned: tuple[Tensor, Tensor, Tensor] = kernels.NormRotary.apply(qkv, q_weight, k_weight, *rope, kv_heads, eps)
        return turned
    if torch.compiler.is_compiling() or few(qkv):
        heads = torch.unflatten(qkv, -1, (-1, q_weight.size(0)))
        q, k, v = torch.split(heads, [heads.size(2) - 2 * kv_heads, kv_heads, kv_heads], dim=2)
        return rotate(rms_norm(q, q_weight, eps), *rope), rotate(rms_norm(k, k_weight, eps), *rope), v
    weights = (q_weight.to(qkv.dtype), k_weight.to(qkv.dtype))
    parts: tuple[Tensor, Tensor, Tensor] = NormRotary.apply(qkv, *weights, *rope, kv_heads, eps)
    return parts


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of queries (B, H, T, K) over keys and values (B, G, T, K); a single query sees all of them."""
    grouped = q.size(1) != k.size(1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=q.size(2) > 1, enable_gqa=grouped)


class SwiGLU(Function):
    """SiLU(gate) x up (Shazeer 2020) of a joint projection (..., 2F), whose gradient comes back joint."""

    @staticmethod
    def forward(ctx: Any, joint: Tensor) -> Tensor:
        """(..., F)."""
        ctx.save_for_backward(joint)
        gate, up = joint.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """The gradient (..., 2F): silu' is s + silu (1 - s) with s the sigmoid."""
        (joint,) = ctx.saved_tensors
        gate, up = joint.chunk(2, dim=-1)
        slope = torch.empty_like(joint)
        into_gate, into_up = slope.chunk(2, dim=-1)
        torch.mul(grads[0], F.silu(gate), out=into_up)
        torch.ops.aten.silu_backward.grad_input(grads[0] * up, gate, grad_input=into_gate)
        return slope


def swiglu(joint: Tensor) -> Tensor:
    """SiLU(gate) x up of a joint projection (..., 2F): the gate, then up."""
    if fused(joint):
        gated: Tensor = kernels.SwiGLU.apply(joint)
        return gated
    if torch.compiler.is_compiling():
        gate, up = joint.chunk(2, dim=-1)
        return F.silu(gate) * up
    y: Tensor = SwiGLU.apply(joint)
    return y


class LinearCrossEntropy(Function):
    """Mean cross-entropy of softmax(x W^T), a chunk of tokens at a time, gradients made on the way forward.

    The full logits (N, V) never exist, and nothing is computed twice: what backward needs are dx (N, D) and dW (V, D),
    which each chunk adds while its logits are still in cache. They are the gradients of the loss and of `z` times the
    mean square of the log of softmax's sum (Chowdhery et al. 2022, section 5). Of a vocabulary that is spread over a
    group, each rank holds the rows of W from `first` on, and its dx is its part of a sum (Shoeybi et al. 2019,
    section 3).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        first: int,
        vocabulary: int,
        group: Group,
        z: float,
    ) -> Tensor:
        """x (N, D), weight (V, D) in x's dtype, targets (N): the mean loss, a scalar of at least fp32."""
        wide = torch.promote_types(x.dtype, torch.float32)
        dx = torch.empty_like(x) if any(ctx.needs_input_grad) else None
        dw: Tensor | None = None
        total = x.new_zeros((), dtype=wide)
        for start in range(0, x.size(0), chunk):
            part, wanted = x[start : start + chunk], targets[start : start + chunk]
            losses, slope = cross_entropy(product(part, weight), wanted, first, vocabulary, group, z)
            total += losses.sum()
            if dx is None:
                continue
            slope = slope.to(x.dtype)
            dx[start : start + chunk] = product(slope, weight.T)
            outer = outer_product(slope, part)
            dw = outer.to(wide) if dw is None else dw.add_(outer)
            del losses, slope  # or they would stand beside the next chunk's
        ctx.save_for_backward(dx, dw)
        ctx.weight_dtype = weight.dtype
        return (total if group.size == 1 else all_reduce(total, "sum", group)) / x.size(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The stored gradients, times the loss's own."""
        dx, dw = ctx.saved_tensors
        scale = grads[0] / dx.size(0)
        if torch.compiler.is_compiling():  # which cannot follow what is written into a tensor that lies transposed
            dw = (dw * scale).to(ctx.weight_dtype)
        else:
            dw = torch.mul(dw, scale, out=torch.empty_like(dw, dtype=ctx.weight_dtype))
        return dx * scale.to(dx.dtype), dw, None, None, None, None, None, None


def cross_entropy(
    logits: Tensor, targets: Tensor, first: int, vocabulary: int, group: Group, z: float
) -> tuple[Tensor, Tensor]:
    """Losses (N) of logits (N, V), whose memory it takes, for targets (N), and the gradients (N, V) of their sum.

    The first column is token `first`; the group's other ranks hold the columns beside these, and other losses.
    """
    if fused(logits) and group.size == 1:
        return kernels.cross_entropy_(logits, targets, vocabulary, z), logits
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scores, log_sum, wanted, here = log_softmax(wide, targets.unsqueeze(1), first, vocabulary, group)
    losses = -(scores.gather(1, wanted) * here)
    slope = scores.exp_() if z == 0 else scores.exp_().mul_(1 + 2 * z * log_sum)
    return losses, slope.scatter_add_(1, wanted, -here.expand_as(wanted))


def log_softmax(
    logits: Tensor, wanted: Tensor, first: int, vocabulary: int, group: Group
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-softmax of the logits (N, V) of tokens `first` on, beside which the group's other ranks hold theirs.

    Returned with the log of the sum of all exponentials (N, 1), the columns (N, 1) of the tokens `wanted` (N, 1), and
    whether they are here, as 1 or 0.
    """
    if group.size == 1:
        scores = F.log_softmax(logits, dim=1)
        return scores, logits[:, :1] - scores[:, :1], wanted, logits.new_ones(1, 1)
    logits[:, max(0, vocabulary - first) :] = -torch.inf
    largest = all_reduce(logits.amax(1, keepdim=True), "max", group)
    logits = logits - largest
    log_sum = all_reduce(logits.exp().sum(1, keepdim=True), "sum", group).log()
    column = wanted - first
    here = (column >= 0) & (column < logits.size(1))
    return logits - log_sum, largest + log_sum, column.where(here, 0), here.to(logits.dtype)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, vocabulary: int, group: Group = ALONE, z: float = 0.0
) -> Tensor:
    """Mean cross-entropy of the tokens x (B, T, D) under the first `vocabulary` rows of the output weight (V, D).

    Targets are (B, T). Each rank of a `group` holds as many rows, in its order. `z` weighs the z-loss, which is in the
    gradients alone: what is returned compares with a run that has none.
    """
    mine = local(weight)
    mine = mine[:vocabulary] if group.size == 1 and not fused(x) else mine  # a GPU multiplies whole tiles faster
    tokens, first = x.flatten(0, -2), group.rank * mine.size(0)
    held = GPU_LOGITS_CHUNK if x.is_cuda else LOGITS_CHUNK
    chunk = max(16, math.ceil(tokens.size(0) / math.ceil(tokens.size(0) * mine.size(0) / held)))
    loss: Tensor = LinearCrossEntropy.apply(
        tokens, mine.to(x.dtype), targets.flatten(), chunk, first, vocabulary, group, z
    )
    return loss
