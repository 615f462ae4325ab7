"""Each kernel beside its plain twin, run by Triton's interpreter: how far each result is from its twin's, as JSON.

`TRITON_INTERPRET=1 python -m tests.teragpt.kernel_cases`
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from teragpt.compute import kernels, ops
from teragpt.compute.ops import rotary, rotate
from teragpt.config import resolve
from teragpt.fp8 import E4M3
from teragpt.launcher.environment import World
from teragpt.model import Block
from teragpt.optimizers import optim, rounding
from teragpt.parallel import connect
from teragpt.parallelism.mesh import build_mesh


def off(one: Tensor, other: Tensor) -> float:
    """The largest difference, against the largest number."""
    return float((one.double() - other.double()).abs().max() / other.double().abs().max())


def cross_entropy(width: int, vocabulary: int, z: float) -> Iterator[float]:
    logits, targets = torch.randn(6, width), torch.randint(0, vocabulary, (6,))
    plain = logits[:, :vocabulary].clone().requires_grad_()
    losses = F.cross_entropy(plain, targets, reduction="none")
    yield off(kernels.cross_entropy_(logits, targets, vocabulary, z), losses)
    (slope,) = torch.autograd.grad((losses + z * plain.logsumexp(1).square()).sum(), plain)
    yield off(logits[:, :vocabulary], slope)
    yield float(logits[:, vocabulary:].abs().sum())


def norm_rotary(heads: int, kv_heads: int, head_dim: int) -> Iterator[float]:
    tokens = 37
    qkv = torch.randn(2, tokens, (heads + 2 * kv_heads) * head_dim, requires_grad=True)
    weights = [torch.randn(head_dim, requires_grad=True) for _ in range(2)]
    rope = rotary(torch.arange(tokens), head_dim, 1e4, torch.float32)
    q, k, v = qkv.unflatten(-1, (-1, head_dim)).split([heads, kv_heads, kv_heads], dim=2)
    plain = [rotate(F.rms_norm(x, (head_dim,), w, 1e-6), *rope) for x, w in zip((q, k), weights, strict=True)]
    ours = kernels.NormRotary.apply(qkv, *weights, *rope, kv_heads, 1e-6)
    yield from (off(one, other) for one, other in zip(ours, [*plain, v], strict=True))
    slopes = torch.randn(2, heads, tokens, head_dim).transpose(1, 2), torch.randn_like(k), torch.randn_like(v)
    inputs = [qkv, *weights]
    found, wanted = (torch.autograd.grad(results, inputs, slopes) for results in (ours, [*plain, v]))
    yield from (off(one, other) for one, other in zip(found, wanted, strict=True))


def cast_both() -> Iterator[float]:
    # what fp8 holds to the bit, since the interpreter's own rounding is wrong where a mantissa overflows
    x = torch.randn(130, 70).clamp(-7, 7).to(E4M3).float()
    x[3, 5] = 30.0  # saturates
    cast, turned = kernels.cast_both(x, torch.tensor(64.0), E4M3)
    yield off(cast, (x * 64).clamp(-448, 448))
    yield off(turned, cast.float().t())


def adamw() -> Iterator[float]:
    master = torch.randn(5000)
    copy, mean, square = torch.zeros(5000), torch.zeros(5000), torch.zeros(5000)
    plain = torch.nn.Parameter(master.clone())
    reference = torch.optim.AdamW([plain], lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    for step in (1, 2, 3):
        grad = torch.randn(5000)
        plain.grad = grad * 0.5
        reference.step()
        rates = torch.tensor([1e-2, 1 - 0.9**step, (1 - 0.95**step) ** 0.5])
        kernels.adamw_(master, copy, mean, square, grad, torch.tensor(0.5), rates, 0.1, (0.9, 0.95), 1e-8)
    yield off(master, plain)
    yield off(copy, master)


def rounded_adamw() -> Iterator[float]:
    # the first moment stays in fp32, since the interpreter does not round to the nearest bf16
    kernel, plain = ([torch.ones(5000).bfloat16(), torch.zeros(5000), torch.zeros(5000).bfloat16()] for _ in range(2))
    for step in (1, 2, 3):
        grad, rates = torch.randn(5000), torch.tensor([1e-2, 1 - 0.9**step, (1 - 0.95**step) ** 0.5, step])
        for (weight, mean, square), update in ((kernel, kernels.rounded_adamw_), (plain, rounding.adamw_)):
            clip, seed = torch.tensor(0.5), 3_000_000_000
            update(weight, mean, square, grad, clip, rates, seed, 0.1, (0.9, 0.95), 1e-8)
    yield from (off(one, other) for one, other in zip(kernel, plain, strict=True))


def block() -> Iterator[float]:
    """A block as a GPU would run it, eager and compiled to one graph."""
    found: dict[str, list[Tensor]] = {}
    x, rope = torch.randn(2, 16, 64), rotary(torch.arange(16), 16, 1e4, torch.float32)
    for name in ("plain", "eager", "aot_eager"):
        torch.manual_seed(0)
        torch.compiler.reset()
        ops.fused = lambda _, name=name: name != "plain"  # type: ignore[misc]
        layer: Any = Block(64, 4, 2, 16, 96, 1e-6)
        run = torch.compile(layer, backend=name, fullgraph=True) if name == "aot_eager" else layer
        run(x, rope).square().sum().backward()
        found[name] = [parameter.grad for parameter in layer.parameters()]
    for name in ("eager", "aot_eager"):
        yield from (off(one, other) for one, other in zip(found[name], found["plain"], strict=True))


def swiglu() -> Iterator[float]:
    joint = torch.randn(3, 5, 2 * 1500, requires_grad=True)
    slope = torch.randn(3, 5, 1500)
    ours, plain = kernels.SwiGLU.apply(joint), ops.SwiGLU.apply(joint)
    yield off(ours, plain)
    yield off(*(torch.autograd.grad(result, joint, slope)[0] for result in (ours, plain)))


def joined() -> Iterator[float]:
    """Three steps of an optimizer that keeps copies of the weights, joined where they are projected as one."""
    found: list[dict[str, Tensor]] = []
    summary = torch.zeros(3)
    config = resolve({"size": "tiny", "dim": 64, "heads": 4, "kv_heads": 2, "global_batch_tokens": 2048})
    mesh = build_mesh(config, torch.device("cpu"))
    x, rope = torch.randn(2, 16, 64, dtype=torch.float64), rotary(torch.arange(16), 16, 1e4, torch.float64)
    for copied in (False, True):
        torch.manual_seed(0)
        for module in (ops, optim):
            setattr(module, "fused", lambda _, here=copied: here)  # noqa: B010 - as if on a GPU
        layer = Block(64, 4, 2, 16, 96, 1e-6)
        optimizer = optim.Optimizer(layer, mesh, config, torch.float64)
        for step in range(3):
            optimizer.schedule(step)
            layer(x, rope).square().sum().backward()
            summary = optimizer.reduce(torch.zeros(()), torch.zeros((), dtype=torch.float64))
            optimizer.step(summary[1])
        assert bool(optimizer.joints) == copied
        found.append({**optimizer.state(), "norm": summary[1]})
    yield from (off(found[1][name], wanted) for name, wanted in found[0].items())


CASES = {
    "cross_entropy": lambda: cross_entropy(5000, 4990, 0.0),
    "cross_entropy of few": lambda: cross_entropy(300, 300, 0.1),
    "norm_rotary": lambda: norm_rotary(4, 2, 48),
    "cast_both": cast_both,
    "adamw": adamw,
    "rounded_adamw": rounded_adamw,
    "block": block,
    "swiglu": swiglu,
    "joined": joined,
}


def main() -> None:
    torch.manual_seed(0)
    connect(World())
    for module in (ops, optim):
        setattr(module, "kernels", kernels)  # noqa: B010 - which neither has without a GPU
    for name in ("norm_rotary", "norm_rotary_backward", "cast_both", "swiglu_backward"):
        kernels.LIBRARY.impl(name, getattr(kernels, name), "CPU")
    print(json.dumps({name: max(case()) for name, case in CASES.items()}))


if __name__ == "__main__":
    main()
