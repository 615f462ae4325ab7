"""A step's memory on one rank as its operations make and drop it, which needs no GPU: tensors are fake."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from teragpt.activations import activation_bytes
from teragpt.config import Config, resolve
from teragpt.layout import Layout
from teragpt.model import TeraGPT
from teragpt.plan.memory import Cut, Ledger, joined_copies
from teragpt.recompute import recompute

SHAPES = {
    "wide": {"dim": 1024, "heads": 16, "kv_heads": 16, "ffn": 2688, "context": 1024, "micro_batch": 8},
    "grouped": {"dim": 4096, "heads": 32, "kv_heads": 8, "ffn": 15_872, "context": 4096, "micro_batch": 1},
    "long": {"dim": 512, "heads": 8, "kv_heads": 4, "ffn": 1536, "context": 16_384, "micro_batch": 1, "tied": True},
}


class Live(TorchDispatchMode):
    """Counts the bytes of storages that operations have made and somebody still holds."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: dict[int, int] = {}
        self.now: int = 0
        self.peak: int = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = op(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (key := address(storage := tensor.untyped_storage())) not in self.seen:
                self.seen[key] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self.gone, key)
        self.peak = max(self.peak, self.now)
        return out

    def gone(self, key: int) -> None:
        """A storage that nobody holds any more."""
        self.now -= self.seen.pop(key, 0)


def address(storage: torch.UntypedStorage) -> int:
    """What tells fake storages apart."""
    return int(storage._cdata)  # pyright: ignore[reportPrivateUsage]


def live_bytes(config: Config, count: int) -> int:
    """The most at once of what so many micro-batches of a step make, without parameters and moments."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = built(config)
        for parameter in model.parameters():
            parameter.grad_dtype = torch.float32  # as a GPU's working copies add up
        recompute(model.layers, config)
        ids = torch.zeros(config.micro_batch, config.context, dtype=torch.long)
        with Live() as live:
            for _ in range(count):
                model(ids, targets=ids).backward()
    return int(live.peak)


def built(config: Config) -> TeraGPT:
    """The model, in bf16."""
    heads = {"kv_heads": config.kv_heads, "ffn": config.ffn}
    more = {"tied": config.tied, "dtype": torch.bfloat16}
    torch.set_default_dtype(torch.bfloat16)
    try:
        return TeraGPT(config.dim, config.depth, config.heads, config.num_tokens, **heads, **more)  # type: ignore[arg-type]
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("shape", "mode"), [("long", "none"), ("wide", "selective"), ("grouped", "full")])
def test_the_second_micro_batch_of_a_step_holds_what_is_planned(shape: str, mode: str) -> None:
    config = resolve({**SHAPES[shape], "size": "1.3b", "depth": 2, "num_tokens": 512, "recompute": mode})
    cut = Cut(Layout(1, 1, 1, 1, 1), config.micro_batch, 2, mode)
    found = Ledger(config, 80 * 10**9).memory(cut)
    planned = found.peak - sum(found.kinds[kind] for kind in ("parameters", "optimizer", "weights in bf16"))
    each = [activation_bytes(config.shape, "none", fused=fused) for fused in (False, True)]  # no GPU's kernels here
    layers = config.depth if mode == "none" else 1
    planned += int(each[0] - each[1]) * config.micro_batch * config.context * layers
    planned += joined_copies(config, cut, config.depth)  # nor do weights lie joined
    live = live_bytes(config, 2)
    assert 0.98 * live <= planned <= live + max(0.05 * live, 150e6)
