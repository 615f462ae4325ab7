"""What `multi` measures on all ranks of one launch: steps of ours or of torchtitan's trainer, or what saving costs.

`python -m teragpt.launch --nproc-per-node N -m benchmarks.gpu.multi_worker JOB`: JOB is JSON with the `kind`, the
trainer's `settings`, `steps`, and, for torchtitan, the folder of `titan`. Rank 0 prints a line of JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.gpu.peers import titan
from teragpt.checkpoint import Checkpoints
from teragpt.compute.ops import local
from teragpt.config import resolve
from teragpt.launcher.environment import World, read_world
from teragpt.parallel import connect
from teragpt.profiling import WARM, Steps, timed
from teragpt.reporting.metrics import memory_bytes, mfu_per_rate

Row = dict[str, Any]


def ours(job: Row, world: World) -> Row:
    """The trainer's steps, with the time that its communication takes, and a trace where a file is named."""
    steps = Steps(job["settings"], world)
    speed = steps.speed(job["steps"])
    trace = Path(job["trace"]) if job.get("trace") and world.rank == 0 else None
    found = steps.profile(trace)
    part = round(found.exposed / 1000 / speed.step_s, 4)
    told = {"communication_ms": round(found.communication, 2), "exposed_ms": round(found.exposed, 2), "exposed": part}
    return {**numbers(speed.step_s, job), **(told if found.communication else {})}


def theirs(job: Row, world: World) -> Row:
    """torchtitan's steps over the same shapes: FSDP2 over all ranks, state and recompute as ours."""
    device = connect(world)
    config = resolve(job["settings"])
    small, fp8 = config.state_dtype == "bf16", config.precision == "fp8"
    step = titan(
        Path(job["titan"]), config.shape, config.num_tokens, fp8=fp8, small=small, ranks=world.world_size,
        again=config.recompute != "none",
    )  # fmt: skip
    ids = torch.randint(0, config.num_tokens, (config.micro_batch, config.context + 1), device=device)
    return numbers(median(lambda: step(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()), job["steps"]), job)


def median(step: Callable[[], object], count: int) -> float:
    """Seconds of the median of so many steps, after those that compile; each ends when the device has."""

    def whole() -> None:
        step()
        torch.cuda.synchronize()

    for _ in range(WARM):
        whole()
    return statistics.median(timed(whole) for _ in range(count))


def numbers(seconds: float, job: Row) -> Row:
    """Tokens a second over all ranks, MFU, and the most that any rank held."""
    config, ranks = resolve(job["settings"]), dist.get_world_size()
    held = torch.tensor(float(memory_bytes()))
    dist.all_reduce(held, dist.ReduceOp.MAX)
    rate = config.global_batch_tokens / seconds
    each = mfu_per_rate(config, ranks)
    told = {"tokens_per_s": round(rate), "step_ms": round(seconds * 1000, 2), "gb": round(held.item() / 1e9, 2)}
    return {**told, "mfu": each and round(each * rate, 3)}


def saving(job: Row, world: World) -> Row:
    """Seconds that training loses to each of two checkpoints of the whole state, from the call to its publication."""
    steps = Steps(job["settings"], world)
    usual = statistics.median(timed(steps.step) for _ in range(WARM + job["steps"]))
    state = {**dict(steps.model.state_dict()), **steps.optimizer.state()}
    with tempfile.TemporaryDirectory() as mine:
        shared = [mine]
        dist.broadcast_object_list(shared, 0)
        checkpoints = Checkpoints(replace(steps.config, out=shared[0], keep_last=1), "random", 1)
        if steps.device.type == "cuda":
            checkpoints.prepare(state)
            while everywhere(checkpoints.mirror is not None and not checkpoints.mirror.room.done()):
                steps.step()
        lost = [stall(checkpoints, number, state, steps, usual) for number in (1, 2)]
        checkpoints.finish()
        dist.barrier()
    size = torch.tensor(float(sum(local(one).nbytes for one in state.values())))
    dist.all_reduce(size)
    return {"gb": round(size.item() / 1e9, 1), "step_s": round(usual, 3), "stalls_s": [round(one, 3) for one in lost]}


def stall(checkpoints: Checkpoints, number: int, state: dict[str, Tensor], steps: Steps, usual: float) -> float:
    """Seconds lost to one checkpoint."""
    published: list[int] = []
    start = time.perf_counter()
    checkpoints.save(number, state, {}, published.append)
    lost = time.perf_counter() - start
    while everywhere(not published and steps.world.rank == 0):  # rank 0 publishes
        lost += timed(steps.step) - usual
    return lost


def everywhere(still: object) -> bool:
    """Whether any rank is still at it, which all ranks then take alike."""
    flag = torch.tensor(int(bool(still)))
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag.item())


KINDS: dict[str, Callable[[Row, World], Row]] = {"ours": ours, "titan": theirs, "save": saving}


def main() -> None:
    """Measure the job on this launch's ranks."""
    job = json.loads(sys.argv[1])
    world = read_world(os.environ, torch.cuda.device_count())
    found = KINDS[job["kind"]](job, world)
    if world.rank == 0:
        print(json.dumps(found), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
