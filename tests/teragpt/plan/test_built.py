"""Every layout that a plan shows is built by the trainer's own code, on ranks that are not there."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from teragpt.config import ConfigError, resolve
from teragpt.layout import State, state
from teragpt.plan import Plan, cluster_of, plan
from teragpt.plan.choice import Option
from teragpt.plan.hardware import DEVICES
from tests.teragpt import fake

SPECS = 4
VOCABULARY = 2048
CHOICES: dict[str, list[Any]] = {
    "dim": [256, 512, 1024],
    "depth": [4, 6, 8],
    "ffn": [768, 1536],
    "head_dim": [64, 128],
    "context": [1024, 4096],
    "tied": [True, False],
    "optimizer": ["adamw", "muon"],
    "state_dtype": ["fp32", "bf16"],
    "precision": ["bf16", "fp8"],
    "global_batch_tokens": [1 << 18, 1 << 19],
}


def specs(count: int) -> Iterator[tuple[dict[str, Any], Plan]]:
    """So many random settings and their plans on clusters too small to be easy, the same every time."""
    chance = random.Random(20)
    while count:
        settings = {name: chance.choice(values) for name, values in CHOICES.items()}
        heads = settings["dim"] // 64
        shape = {"size": "124m", "heads": heads, "kv_heads": chance.choice([heads, heads // 2])}
        shape["eval_sequences"] = 64
        settings |= {**shape, "num_tokens": VOCABULARY}
        pinned = chance.choice([{}, {"tp": 2}, {"pp": 2}, {"cp": 2}, {"dp_replicate": 2}, {"tp": 2, "pp": 2}])
        gpus, card = chance.choice([4, 8, 12, 64]), chance.choice(sorted(DEVICES))
        try:
            found = plan({**settings, **pinned}, cluster_of(card, gpus, gpu_memory=chance.choice([1, 2, 4])))
        except ConfigError:
            continue
        count -= 1
        yield settings, found


def test_every_layout_that_a_plan_shows_is_built_and_holds_what_it_says_to_the_byte() -> None:
    seen = set[str]()
    for settings, found in specs(SPECS):
        for option in (found.best, *(other for other, _ in found.others)):
            stages = option.cut.stages
            seen |= {name for name in ("tp", "cp", "pp", "dp_replicate", "dp_shard") if getattr(stages, name) > 1}
            assert built(settings, option) == promised(option)
    assert seen == {"tp", "cp", "pp", "dp_replicate", "dp_shard"}


def promised(option: Option) -> tuple[int, int]:
    """Bytes of parameters and optimizer of the rank that holds most at its peak."""
    return option.memory.kinds["parameters"], option.memory.kinds["optimizer"]


def built(settings: dict[str, Any], option: Option) -> tuple[int, int]:
    """The same of the first rank, or of the first of the last stage where that is fuller."""
    ranks = option.cut.stages.ranks
    config = resolve({**settings, **option.settings})
    held: list[State] = []
    for rank in sorted({0, ranks - ranks // option.cut.stages.pp}):
        there = fake.on_meta(config, ranks, rank)
        assert there == state(config, ranks, rank)
        held.append(there)
    pairs = [(one.parameters, one.optimizer) for one in held]
    return promised(option) if promised(option) in pairs else pairs[0]
