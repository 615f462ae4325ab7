"""Context parallel: the ranks of `cp` hold pieces of each sequence, and gather the keys and values of all of it.

Of 2 x cp pieces a rank takes one from each end (zig-zag), since a late token attends to more than an early one. Only
attention looks beyond a token, so only attention communicates: two all-gathers a layer, whose gradients are scattered
back (Dubey et al. 2024, section 3.3.2).
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teragpt.compute.collectives import Group, gather
from teragpt.config import ConfigError, Problem
from teragpt.parallelism.mesh import Mesh

NAMED = 4  # of what an error lists


def context_parallel(model: nn.Module, mesh: Mesh) -> None:
    """Have a model that is given this rank's pieces of sequences attend over all of them.

    Raises ConfigError for a model that takes no positions, or with a block whose attention is not its `attend`.
    """
    if mesh.cp == 1:
        return
    blocks = getattr(model, "layers", nn.ModuleList()).named_children()
    wrong = [f"layers.{name} has no attend" for name, block in blocks if not attends(block)]
    wrong += [] if attends(model) else ["the model has no attend"]
    wrong += [] if "positions" in inspect.signature(model.forward).parameters else ["forward takes no positions"]
    if wrong:
        allowed = f"1 for {type(model).__name__}, which cp would train wrongly: {', '.join(wrong[:NAMED])}"
        raise ConfigError([Problem("cp", mesh.cp, allowed)])
    for module in model.modules():
        if hasattr(module, "attend"):
            cast("Any", module).attend = partial(attention, mesh.context)


def attends(module: nn.Module) -> bool:
    """Whether attention anywhere in a module is an `attend`, which can be given another meaning."""
    return any(hasattr(part, "attend") for part in module.modules())


def take_pieces(group: Group, ids: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """This rank's pieces of ids (B, T) and, by name, of targets (B, T), with their positions (T)."""
    if group.size == 1:
        return ids, {"targets": targets}
    positions = pieces(torch.arange(ids.size(1), device=ids.device), 0, group)
    return pieces(ids, 1, group), {"positions": positions, "targets": pieces(targets, 1, group)}


def pieces(x: Tensor, dim: int, group: Group) -> Tensor:
    """This rank's two pieces of x along a dimension, or all of x where it is alone."""
    if group.size == 1:
        return x
    cut = x.chunk(2 * group.size, dim)
    return torch.cat([cut[group.rank], cut[-1 - group.rank]], dim)


def gather_pieces(k: Tensor, v: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """All keys and values (B, G, T, K), of which each rank has (B, G, T / cp, K), in the order of the sequence."""
    joint = gather(torch.stack([k, v]), 3, group)  # (2, B, G, T, K), rank by rank
    cut = joint.chunk(2 * group.size, 3)
    k, v = torch.cat([*cut[::2], *cut[::-2]], 3).unbind(0)
    return k, v


def attention(group: Group, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of this rank's queries (B, H, T / cp, K) over all keys and values, here (B, G, T / cp, K)."""
    k, v = gather_pieces(k, v, group)
    early, late = q.chunk(2, 2)
    ends = group.rank + 1, 2 * group.size - group.rank  # pieces seen by each
    seen = [(part, end * part.size(2)) for part, end in zip((early, late), ends, strict=True)]
    return torch.cat([attend_last(part, k[:, :, :end], v[:, :, :end]) for part, end in seen], 2)


def attend_last(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of queries that belong to the last keys; GPUs have a kernel for it that needs no mask."""
    if q.is_cuda:
        from torch.nn.attention.bias import causal_lower_right  # it loads all of torch's compiler

        mask: Tensor = causal_lower_right(q.size(2), k.size(2))
    else:
        here = torch.arange(k.size(2))
        mask = here <= here[k.size(2) - q.size(2) :].unsqueeze(1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.size(1) != k.size(1))
