"""fp8: products with the blocks' weights in eight bits, forward and both of backward; all else stays as it was.

Values are scaled by a power of two, so that the largest of them comes near fp8's largest: the scale itself rounds
nothing, and ranks whose scales differ still round alike. `tensorwise` has a scale for each operand, and gradients in
e5m2, which reaches further (Micikevicius et al. 2022, section 3). `rowwise` has one for each row of each operand,
within which values differ less, and all in e4m3 (as DeepSeek-AI 2024, section 3.3.2). A scale comes from the values
themselves; that of a tensorwise weight from the largest that any rank holds of it, which `measure` finds once a step.

It is applied from outside, and the model must not know it: a layer of a class that stands here brings its own
`product` (ops.project). Masters stay fp32; embedding, head, norms and attention are not touched.

N tokens, D a product's input width, O its output width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function

from teragpt.compute.compatibility import refuse_rowwise
from teragpt.compute.ops import JOINED, foreach_norm, fused, local
from teragpt.config import Config, ConfigError, Problem
from teragpt.parallelism.mesh import Mesh

scaled_mm: Any = torch.ops.aten._scaled_mm  # noqa: SLF001 - the one name of it from torch 2.11 on
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
SMALLEST = 1e-12  # the least that a largest value is taken for, so that zeros have a scale too
EXPONENT = 0x7F800000  # the bits of an fp32 number's exponent
CAPABLE = (8, 9)  # the first compute capability whose tensor cores take fp8


def fp8(blocks: Iterable[nn.Module], config: Config, device: str) -> None:
    """Have the products of blocks run in fp8, if that is the precision. Raises ConfigError where it cannot be."""
    if config.precision != "fp8":
        return
    refuse_rowwise(config, device)
    if device == "cuda":
        refuse(torch.cuda.get_device_name(), torch.cuda.get_device_capability())
    for block in blocks:
        layers = {name.rpartition(".")[2]: layer for name, layer in block.named_modules()}
        for names in JOINED:
            first, *others = (layers[name] for name in names)
            first.__class__ = {"tensorwise": Tensorwise, "rowwise": Rowwise}[config.fp8_recipe]
            cast("Scaled", first).others = tuple(others)
            first.register_buffer("amax", torch.ones((), device="meta", dtype=torch.float32), persistent=False)


def refuse(name: str, capability: tuple[int, int]) -> None:
    """Raise ConfigError for a GPU that has no fp8 products."""
    if capability < CAPABLE:
        needed, here = (".".join(map(str, numbers)) for numbers in (CAPABLE, capability))
        allowed = f"on a GPU of compute capability {needed} or more, which {name} ({here}) is not"
        raise ConfigError([Problem("precision", "fp8", allowed)])


def measure(model: nn.Module, mesh: Mesh) -> None:
    """Find the largest value of each tensorwise weight over the ranks that hold parts of it: once a step."""
    layers = [layer for layer in model.modules() if isinstance(layer, Tensorwise)]
    if not layers:
        return
    with torch.no_grad():
        weights = [held(local(each.weight)) for layer in layers for each in layer.joined]
        peaks = iter(torch.stack(foreach_norm(weights, torch.inf)).float())
        largest = torch.stack([torch.stack([next(peaks) for _ in layer.joined]).max() for layer in layers])
        for dimension in ("fsdp", "tp"):
            if mesh.size(dimension) > 1:
                dist.all_reduce(largest, dist.ReduceOp.MAX, group=mesh.process_group(dimension))
        for layer, amax in zip(layers, largest, strict=True):
            layer.amax.copy_(amax)


def held(part: Tensor) -> Tensor:
    """A weight's part, or a zero for nothing, which a rank may hold of a small weight."""
    return part if part.numel() else part.new_zeros(1)


def peak(x: Tensor) -> Tensor:
    """The largest absolute value, a scalar in fp32."""
    return x.abs().amax().float()


def scale_for(amax: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest powers of two, in fp32, that keep values up to `amax` in fp8's range."""
    return ((torch.finfo(dtype).max / amax.float().clamp(min=SMALLEST)).view(torch.int32) & EXPONENT).view(
        torch.float32
    )


def quantize(x: Tensor, amax: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x in fp8 by the scale for `amax` (broadcast), and the scale's inverse in fp32.

    What is larger saturates, which a conversion on a GPU does not.
    """
    scale, limit = scale_for(amax, dtype), torch.finfo(dtype).max
    return (x * scale.to(x.dtype)).clamp(-limit, limit).to(dtype), scale.reciprocal()


def quantize_both(x: Tensor, amax: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """`quantize` of x (M, N) and `amax`, a scalar, with the transpose of the result between: on a GPU in one pass."""
    if not fused(x):
        narrow, inverse = quantize(x, amax, dtype)
        return narrow, turned(narrow), inverse
    scale = scale_for(amax, dtype)
    return *torch.ops.teragpt.cast_both(x, scale, dtype), scale.reciprocal()


def rows_by_rows(a: Tensor, b: Tensor, a_inverse: Tensor, b_inverse: Tensor, dtype: torch.dtype) -> Tensor:
    """Products (M, N) of each row of a (M, K) with each of b (N, K), both fp8 and contiguous: what tensor cores take.

    Inverse scales are scalars, or stand beside rows: (M, 1) and (N, 1). Sums are the tensor cores' own (fast
    accumulation), backward too.
    """
    scales = {"scale_a": a_inverse, "scale_b": b_inverse.t()}
    product: Tensor = scaled_mm(a, b.t(), **scales, out_dtype=dtype, use_fast_accum=True)
    return product


def turned(x: Tensor) -> Tensor:
    """The transpose, its rows contiguous."""
    return x.t().contiguous()


class TensorwiseProduct(Function):
    """x W^T with a scale for each of x, W and the gradient; the transposes of x and W are kept for backward in fp8."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, amax: Tensor) -> Tensor:
        """x (N, D), weight (O, D) of values up to `amax`: (N, O)."""
        x8, x8_turned, x_inverse = quantize_both(x, peak(x), E4M3)
        w8, w8_turned, w_inverse = quantize_both(weight, amax, E4M3)
        ctx.save_for_backward(x8_turned, w8_turned, x_inverse, w_inverse)
        return rows_by_rows(x8, w8, x_inverse, w_inverse, x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of x and weight."""
        x8_turned, w8_turned, x_inverse, w_inverse = ctx.saved_tensors
        (grad,) = grads
        g8, g8_turned, inverse = quantize_both(grad, peak(grad), E5M2)
        dx = rows_by_rows(g8, w8_turned, inverse, w_inverse, grad.dtype)
        return dx, rows_by_rows(g8_turned, x8_turned, inverse, x_inverse, grad.dtype), None


class RowwiseProduct(Function):
    """x W^T with a scale for each row of each operand, in each of the three products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """x (N, D), weight (O, D): (N, O)."""
        ctx.save_for_backward(x, weight)
        return rowwise(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of x and weight."""
        x, weight = ctx.saved_tensors
        (grad,) = grads
        return rowwise(grad, turned(weight)), rowwise(turned(grad), turned(x))


def rowwise(a: Tensor, b: Tensor) -> Tensor:
    """Products (M, N) of each row of a (M, K) with each of b (N, K), in fp8 with each row's own scale."""
    (a8, a_inverse), (b8, b_inverse) = (quantize(x, x.abs().amax(1, keepdim=True), E4M3) for x in (a, b))
    return rows_by_rows(a8, b8, a_inverse, b_inverse, a.dtype)


class Scaled(nn.Linear):
    """The first of the layers that the model multiplies as one, whose weights come joined; `others` are the rest."""

    others: tuple[nn.Module, ...]
    amax: Tensor

    @property
    def joined(self) -> tuple[nn.Linear, ...]:
        """All of them."""
        return self, *cast("tuple[nn.Linear, ...]", self.others)


class Tensorwise(Scaled):
    """With one scale for a tensor."""

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """x (..., D) W^T, weight (O, D): (..., O)."""
        y: Tensor = TensorwiseProduct.apply(x.flatten(0, -2), weight, self.amax)
        return y.view(*x.shape[:-1], -1)


class Rowwise(Scaled):
    """With a scale for each row."""

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """x (..., D) W^T, weight (O, D): (..., O)."""
        y: Tensor = RowwiseProduct.apply(x.flatten(0, -2), weight)
        return y.view(*x.shape[:-1], -1)
