"""A step's memory on one rank as its operations make and drop it, which needs no GPU: tensors are fake."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.plan.traced import specs, traced
from teragpt.activations import activation_bytes
from teragpt.config import Config, resolve
from teragpt.layout import Layout
from teragpt.plan.memory import Cut, Ledger, joined_copies
from teragpt.recompute import recompute
from tests.teragpt.traced import MIB, Allocator, Live, OutOfMemory, built

SHAPES = {
    "wide": {"dim": 1024, "heads": 16, "kv_heads": 16, "ffn": 2688, "context": 1024, "micro_batch": 8},
    "grouped": {"dim": 4096, "heads": 32, "kv_heads": 8, "ffn": 15_872, "context": 4096, "micro_batch": 1},
    "own": {"dim": 1024, "heads": 16, "kv_heads": 8, "head_dim": 128, "ffn": 3072, "context": 2048, "micro_batch": 2},
    "long": {"dim": 512, "heads": 8, "kv_heads": 4, "ffn": 1536, "context": 16_384, "micro_batch": 1, "tied": True},
}


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


@pytest.mark.parametrize(
    ("shape", "mode"),
    [("long", "none"), ("wide", "selective"), ("own", "none"), ("own", "selective"), ("grouped", "full")],
)
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


def test_random_plans_for_one_gpu_are_trained_within_its_memory_and_what_they_say() -> None:
    every = [traced(settings, found) for settings, found in specs(5)]  # of 200: python -m benchmarks.plan.traced
    assert [one.why for one in every] == [""] * 5
    assert all(0.95 * one.allocated <= one.planned <= max(1.1 * one.allocated, one.allocated + 150e6) for one in every)


def test_the_allocator_splits_merges_gives_back_and_runs_out() -> None:
    allocator = Allocator(64 * MIB)
    small = [allocator.ask(700) for _ in range(2)]
    assert (allocator.allocated, allocator.reserved, small[1] - small[0]) == (2048, 2 * MIB, 1024)
    first, second, third = (allocator.ask(size * MIB) for size in (8, 8, 11))
    assert allocator.reserved == (2 + 20 + 12) * MIB
    for one in (first, second):
        allocator.release(one)
    assert allocator.ask(16 * MIB) == first
    allocator.release(first)
    allocator.release(third)
    assert allocator.ask(62 * MIB) > third  # once the segments of both are given back
    assert (allocator.reserved, allocator.most_reserved) == (64 * MIB, 64 * MIB)
    with pytest.raises(OutOfMemory, match="more are asked for"):
        allocator.ask(3 * MIB)
