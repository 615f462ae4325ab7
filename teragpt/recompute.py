"""Recompute: what a block keeps of its forward pass for backward, and what backward computes again.

`none` keeps all that backward reads. `full` keeps a block's input alone (Chen et al. 2016). `selective` keeps what is
dear to compute, which is the products with weights and attention, and computes norms, rotations, gates and gathers
again (Korthikanti et al. 2022, section 5). activations.activation_bytes says what each costs. What the last blocks keep
is gone before backward has made most gradients, so that they may keep everything in the room of those.

It is applied from outside to a block's `forward`, inside what tensor parallel hooks to the block's halves and before
anything is compiled, and must not know the model: products are told apart by their order in a block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from teragpt.compute.ops import PRODUCT
from teragpt.config import Config

aten: Any = torch.ops.aten
PRODUCTS = (aten.mm.default, PRODUCT, aten._scaled_mm.default)  # noqa: SLF001 - fp8's, not public in torch 2.11
ATTENTION = tuple(
    getattr(aten, name).default
    for name in (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_flash_attention_forward",  # packing.py's
    )
)
SCATTER = torch.ops._c10d_functional.reduce_scatter_tensor.default  # noqa: SLF001 - as in collectives.py
KINDS = dict.fromkeys(PRODUCTS, "product") | dict.fromkeys(ATTENTION, "attention") | {SCATTER: "scattered"}
QKV, OUT, GATE_UP, DOWN = range(4)  # a block's products, in their order; nothing reads again what the last one makes
KEPT = {"product": frozenset({QKV, OUT, GATE_UP})}
KEPT_SPREAD = {"product": frozenset({QKV, GATE_UP}), "scattered": frozenset({0})}  # a rank's tokens of OUT, not all


def recompute(blocks: Iterable[nn.Module], config: Config) -> None:
    """Have each block, or the first `recompute_layers` of a stage's, keep what the setting `recompute` says."""
    if config.recompute == "none":
        return
    kept = KEPT_SPREAD if config.tp > 1 else KEPT
    made: Callable[[], Any] = nothing if config.recompute == "full" else partial(contexts, kept)
    for block in islice(blocks, config.recompute_layers or None):
        block.forward = again(block.forward, made)


def again(forward: Callable[..., Tensor], made: Callable[[], Any]) -> Callable[..., Tensor]:
    """`forward`, computed again in backward but for what the contexts that are `made` keep.

    It is a function of its own, since compilers pass over a `partial`.
    """

    def run(*args: object) -> Tensor:
        # nothing random happens in a block, so there is no state to restore
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, context_fn=made)

    return run


def contexts(kept: Mapping[str, frozenset[int]]) -> Any:
    """The two contexts, of forward and of recomputation, in which a `Kept` decides for one pass through a block."""
    return create_selective_checkpoint_contexts(Kept(kept))


def nothing() -> Any:
    """The two contexts in which all is computed again.

    Without them, torch 2.11 keeps what each autograd.Function of a compiled block returns.
    """
    return create_selective_checkpoint_contexts(lambda *_, **__: CheckpointPolicy.PREFER_RECOMPUTE)


class Kept:
    """Says of each operation of one pass through a block whether its result is kept: by kind, the places of those."""

    def __init__(self, kept: Mapping[str, frozenset[int]]) -> None:
        self.kept = kept
        self.seen: Counter[tuple[str, bool]] = Counter()

    def __call__(self, context: Any, op: object, *_: object, **__: object) -> CheckpointPolicy:
        """The decision about an operation."""
        kind = KINDS.get(op, "")
        place = self.seen[kind, context.is_recompute]
        self.seen[kind, context.is_recompute] += 1
        keep = kind == "attention" or place in self.kept.get(kind, ())
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
