"""Tensor parallel with sequence parallel: the ranks of `tp` hold parts of each matrix and of the tokens between them.

Matrices that widen (q, k, v, gate, up) are cut by rows, those that narrow again (o, down) by columns, embedding and
head by vocabulary (Shoeybi et al. 2019). Between the layers' halves each rank holds T / tp of the tokens (Korthikanti
et al. 2022): a half gathers them before its first product and scatters its sums after the last. Norms stay whole on
every rank, and each sees a part of the tokens or heads, so their gradients are parts of a sum (optim.py adds them up).

All of it is done from outside, by hooks; the model's operations take this rank's part of a weight (ops.local).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import functional as F

from teragpt.compute.collectives import Group, gather, scatter
from teragpt.compute.ops import linear_cross_entropy, local
from teragpt.config import ConfigError, Problem
from teragpt.parallelism.mesh import Mesh

ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "embed_tokens", "lm_head")
HALVES = ("self_attn", "mlp")
COLUMNS = ("o_proj", "down_proj")
NAMED = 4  # of what an error lists
TOKENS = 1  # the dimension that activations (B, T, D) are scattered along


def tensor_parallel(model: nn.Module, mesh: Mesh) -> None:
    """Cut a model on the meta device over `tp`. Its modules have the names of Qwen3's; ConfigError if they have not."""
    if mesh.size("tp") == 1:
        return
    if wrong := ", ".join(itertools.islice(uncut(model), NAMED)):
        allowed = f"1 for {type(model).__name__}, which tp would train wrongly: {wrong}"
        raise ConfigError([Problem("tp", mesh.size("tp"), allowed)])
    group = mesh.group("tp")
    for name, module in model.named_modules():
        kind = name.rpartition(".")[2]
        if kind in HALVES:
            module.register_forward_pre_hook(partial(gather_first, group))
            module.register_forward_hook(partial(scatter_output, group))
        elif kind == "norm":
            module.register_forward_hook(partial(gather_output, group))
        elif kind in ROWS or kind in COLUMNS:
            cut(module, 0 if kind in ROWS else 1, mesh)
        if isinstance(module, nn.Embedding):
            module.forward = partial(embed, module, group)  # type: ignore[method-assign]
    cast("Any", model).loss = partial(linear_cross_entropy, group=group)


def uncut(model: nn.Module) -> Iterator[str]:
    """What keeps a model from being cut: parts that are missing, parameters that are not known."""
    needed: list[tuple[str, nn.Module, tuple[str, ...]]] = [("the model", model, ("embed_tokens", "norm", "loss"))]
    blocks = getattr(model, "layers", nn.ModuleList()).named_children()
    needed += [(f"layers.{name}", block, HALVES) for name, block in blocks]
    for where, holder, parts in needed:
        yield from (f"{where} has no {part}" for part in parts if not hasattr(holder, part))
    for name, parameter in model.named_parameters():
        module, _, kind = name.rpartition(".")
        known = module.rpartition(".")[2] in {*ROWS, *COLUMNS} if parameter.ndim > 1 else module.endswith("norm")
        if kind != "weight" or not known:
            yield f"nothing says how to cut {name}"


def cut(module: nn.Module, dim: int, mesh: Mesh) -> None:
    """Make a module's weight this rank's part of it."""
    weight = cast("Tensor", module.weight)
    module.weight = nn.Parameter(distribute_tensor(weight, mesh.devices["tp"], [Shard(dim)], src_data_rank=None))


def gather_first(group: Group, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Give a module all tokens of its first argument."""
    return gather(args[0], TOKENS, group), *args[1:]


def gather_output(group: Group, _: nn.Module, __: object, output: Tensor) -> Tensor:
    """All tokens of a module's output."""
    return gather(output, TOKENS, group)


def scatter_output(group: Group, _: nn.Module, __: object, output: Tensor) -> Tensor:
    """This rank's tokens of the sum of all ranks' outputs."""
    return scatter(output, TOKENS, group)


def embed(module: nn.Embedding, group: Group, ids: Tensor) -> Tensor:
    """This rank's tokens (B, T / tp, D) of ids (B, T), of which each rank knows those in its rows."""
    rows = local(module.weight)
    mine = ids - group.rank * rows.size(0)
    known = (mine >= 0) & (mine < rows.size(0))
    found = F.embedding(mine.where(known, 0), rows)
    return scatter(found * known.unsqueeze(-1).to(found.dtype), TOKENS, group)
