"""AdamW on weights and moments that are kept in bf16: each is computed in fp32 and rounded on its way back.

Rounding to the nearest would lose a step that is smaller than half of what bf16 can tell apart, and nearly all are. So
weights and second moments are rounded up or down at random, with odds that make their expectation exact (Gupta et al.
2015). The dice are a hash of a number's place, its parameter and the step: replicas of a shard stay equal, and a run
that is resumed goes on as it would have. It knows tensors, no model; kernels.py does the same on a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD, HALF = (1 << 32) - 1, (1 << 16) - 1
ROUNDS = ((16, 0x21F0AAAD), (15, 0x735A2D97), (15, 1))  # shifts and factors of a hash by Wellons (hash-prospector)


def dice(count: int, seed: Tensor) -> Tensor:
    """Evenly spread numbers of 32 bits, as int64 (count): a hash of each place and a seed, an integer scalar."""
    word = (torch.arange(count, device=seed.device) + seed * 0x9E3779B9) & WORD
    for shift, factor in ROUNDS:
        word = ((word ^ (word >> shift)) * factor) & WORD
    return word


def round_(target: Tensor, value: Tensor, bits: Tensor) -> None:
    """Write fp32 `value` to bf16 `target`: up where its low 16 bits and as many of `bits` add up to a carry."""
    target.copy_(((value.view(torch.int32) + bits.int()) & ~HALF).view(torch.float32))


def adamw_(
    weight: Tensor, mean: Tensor, square: Tensor, grad: Tensor, clip: Tensor, rates: Tensor, seed: int, decay: float,
    betas: tuple[float, float], eps: float,
) -> None:  # fmt: skip
    """AdamW's step of a bf16 weight and its bf16 moments.

    The gradient, in any dtype, is scaled by `clip`, a scalar. `rates` are the learning rate, 1 - beta1^t, the root of
    1 - beta2^t, and t. `seed` tells parameters apart. The first moment moves far enough to be rounded to the nearest.
    """
    rate, first_correction, second_correction, step = rates
    slope = grad.float() * clip.float()
    first = mean.float() * betas[0] + slope * (1 - betas[0])
    second = square.float() * betas[1] + slope * slope * (1 - betas[1])
    value = weight.float() * (1 - rate * decay)
    value = value - rate / first_correction * first / (second.sqrt() / second_correction + eps)
    thrown = dice(weight.numel(), (step.long() + seed) & WORD).view_as(value)
    mean.copy_(first)
    round_(square, second, thrown >> 16)
    round_(weight, value, thrown & HALF)
