"""Random specs whose plans for one GPU are trained for a step without it: bytes beside the plan's, and none too many.

`python -m benchmarks.plan.traced [N]`, 200 of them: shapes, lengths, modes, optimizers and cards differ; the planner
chooses micro-batch and recompute. Tensors are fake, and an allocator like CUDA's serves them (tests.teragpt.traced).
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from teragpt.config import ConfigError
from teragpt.plan import Plan, cluster_of, plan
from tests.teragpt.traced import Allocator, OutOfMemory, step

CONTEXT = 10**9  # bytes for CUDA's context and libraries: an assumption
SHARE, LEAST = 0.05, 150e6  # of the traced bytes; bytes: the larger is what a plan may be off by
WIDTHS = ((768, 12, 12), (1024, 16, 8), (2048, 16, 16), (2560, 20, 4), (4096, 32, 8))  # dim, heads, kv_heads


class Traced(NamedTuple):
    """A spec's bytes: as planned, as allocated and as reserved at the most; `why` it did not fit, where it did not."""

    settings: dict[str, Any]
    planned: int
    allocated: int
    reserved: int
    memory: int
    why: str

    @property
    def off(self) -> float:
        """What the plan says beyond what was allocated, as a part of that."""
        return self.planned / self.allocated - 1

    @property
    def close(self) -> bool:
        """Whether the plan is as near as it is to be."""
        return abs(self.planned - self.allocated) <= max(SHARE * self.allocated, LEAST)


def specs(count: int, seed: int = 7) -> Iterator[tuple[dict[str, Any], Plan]]:
    """So many random settings and their plans, the same every time."""
    chance = random.Random(seed)
    while count:
        dim, heads, kv_heads = chance.choice(WIDTHS)
        context = chance.choice([512, 1024, 2048, 4096, 8192, 16_384])
        shape = {"size": "1.3b", "dim": dim, "heads": heads, "kv_heads": kv_heads, "context": context}
        shape |= {"ffn": dim * chance.choice([2, 3, 4]), "depth": chance.randint(2, 6), "tied": chance.random() < 0.3}
        sequences = chance.choice([1, 2, 8, 32, 64])
        batch = {"num_tokens": chance.choice([32_000, 50_304]), "global_batch_tokens": context * sequences}
        how = {"optimizer": chance.choice(["adamw", "muon"]), "state_dtype": chance.choice(["fp32", "fp32", "bf16"])}
        pinned = chance.choice([{}, {}, {"recompute": chance.choice(["none", "selective", "full"])}])
        settings = {**shape, **batch, **how, **pinned, "precision": "bf16", "eval_sequences": 64}
        try:
            yield settings, plan(settings, cluster_of("h100", 1, gpu_memory=chance.choice([16, 24, 40, 80])))
        except ConfigError:
            continue
        count -= 1


def traced(settings: dict[str, Any], found: Plan) -> Traced:
    """A plan beside a step of it, of two micro-batches where there are more: the second is the fullest."""
    memory, kinds = found.best.memory, found.best.memory.kinds
    state = kinds["parameters"] + kinds["optimizer"]
    copied = kinds["weights in bf16"] > 0
    allocator, why = Allocator(found.cluster.device.memory - CONTEXT), ""
    try:  # where nothing is copied, what is computed with are the parameters themselves
        step(found.config, min(2, found.best.cut.count), allocator, state if copied else kinds["optimizer"])
    except OutOfMemory as error:
        why = str(error)
    most = allocator.most_allocated, allocator.most_reserved, found.cluster.device.memory
    return Traced(settings, memory.peak, *most, why)


def main(count: int) -> int:
    """Print the specs that stray or fail, and what all of them come to; 1 where one does not fit."""
    every = []
    for settings, found in specs(count):
        one = traced(settings, found)
        every.append(one)
        if one.why or not one.close:
            told = f"{one.planned / 1e9:.2f} GB planned, {one.allocated / 1e9:.2f} allocated ({one.off:+.1%}) {one.why}"
            print(found.best.cut, {**settings}, told, flush=True)
    offs = sorted(one.off for one in every)
    kept = sorted(one.reserved / one.allocated for one in every)
    print(f"{len(every)} specs: {sum(bool(one.why) for one in every)} out of memory, {sum(one.close for one in every)}")
    print(
        f"within max(5%, 150 MB); planned over allocated {offs[0]:+.1%} to {offs[-1]:+.1%}, {offs[len(offs) // 2]:+.1%}"
    )
    print(f"at the median; reserved {kept[len(kept) // 2]:.3f} of allocated at the median, {kept[-1]:.3f} at the most")
    return int(any(one.why for one in every))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
