"""Where a training step of the tiny size spends its time on one core, ours and the plain loop's, both compiled.

`python -m benchmarks.trainer.profile_step [ROWS]` prints each one's time in matrix products, attention and the rest,
in ms a step, and its ROWS longest operations.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._inductor import config as inductor
from torch.profiler import ProfilerActivity, profile

from benchmarks.trainer.plain_gpt import PlainGPT
from teragpt.config import resolve
from teragpt.launcher.environment import World
from teragpt.model import TeraGPT
from teragpt.parallel import build_model, compute_dtype, connect, materialize, parallelize
from teragpt.parallelism.mesh import build_mesh

BATCH, CONTEXT, VOCABULARY, STEPS = 16, 256, 2048, 5
GROUPS = {"products": ("mm", "linear", "gemm"), "attention": ("attention",)}


def ours() -> Callable[[Tensor, Tensor], Tensor]:
    """The tiny size's model as the trainer compiles it."""
    device = connect(World())
    config = resolve({"compile": "on"})
    dtype = compute_dtype(config, device)
    model: nn.Module = build_model(TeraGPT, config, dtype)
    parallelize(model, build_mesh(config, device), config, dtype)
    materialize(model, config, device)
    return lambda ids, targets: cast("Tensor", model(ids, targets=targets))


def plain() -> Callable[[Tensor, Tensor], Tensor]:
    """The baseline's, compiled."""
    model = PlainGPT(128, 3, 2, VOCABULARY, CONTEXT)
    model.compile()
    return lambda ids, targets: cast("Tensor", model(ids, targets))


def main(rows: int) -> None:
    """Profile both."""
    torch.set_num_threads(1)
    inductor.cpp.enable_kernel_profile = True
    ids = torch.randint(0, VOCABULARY, (BATCH, CONTEXT))
    for name, loss in (("plain", plain()), ("ours", ours())):
        for _ in range(3):
            loss(ids, ids).backward()
        with profile(activities=[ProfilerActivity.CPU]) as found:
            for _ in range(STEPS):
                loss(ids, ids).backward()
        averages = found.key_averages()
        spent = dict.fromkeys([*GROUPS, "rest"], 0.0)
        for one in averages:
            group = next((group for group, words in GROUPS.items() if any(word in one.key for word in words)), "rest")
            spent[group] += one.self_cpu_time_total / 1000 / STEPS
        print(name, {group: round(ms, 1) for group, ms in spent.items()})
        print(averages.table("self_cpu_time_total", row_limit=rows, max_name_column_width=90))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
