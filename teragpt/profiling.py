"""A run's steps without the run: how fast they are, what memory they take, and in which kernels a step goes.

`python -m teragpt.profiling --size 1.3b [--trace FILE] [--set key=value ...]`, also under the launcher, takes the steps
of a trainer with these settings over random tokens, or over the dataset where one is named. It writes no run folder.
What a step does is step.Step's; here stands only what measures it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from teragpt.config import ConfigError, parse, resolve
from teragpt.data import share
from teragpt.datasets.batches import Batch, Batches
from teragpt.datasets.packing import confine
from teragpt.launcher.environment import World, read_world
from teragpt.optimizers.optim import Optimizer
from teragpt.parallel import build_model, compute_dtype, connect, load_attribute, load_dataset, materialize, parallelize
from teragpt.parallelism.mesh import build_mesh
from teragpt.reporting.metrics import memory_bytes, mfu_per_rate
from teragpt.step import Step

COMMUNICATION = "communication"
KINDS = (
    (COMMUNICATION, r"nccl|gloo"),
    ("attention", r"attention|flash|fmha|sdpa|cudnn_generated"),
    ("products", r"gemm|nvjet|cutlass|cublas|xmma|_mm|linear|matmul"),
    ("optimizer", r"adam|multi_tensor|foreach"),
    ("loss", r"cross_entropy"),
    ("copies", r"memcpy|memset|copy_kernel"),
)  # the first pattern that a kernel's name holds; all else is passes over memory
PASSES = "passes over memory"
WARM = 5  # steps before the clock runs: compilation, and the allocator's first pieces
PROFILED = 3


@dataclasses.dataclass(frozen=True)
class Speed:
    """What steps reach: `tokens_per_s` over all ranks, model FLOPs utilisation where the card is known, peak bytes."""

    tokens_per_s: float
    step_s: float
    mfu: float | None
    memory_bytes: int


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What all calls of one kernel take of a step, in ms, and how many they are."""

    kind: str
    name: str
    ms: float
    calls: float


@dataclasses.dataclass(frozen=True)
class Profile:
    """Where a step goes: its kernels, the longest first, and of a GPU, in ms, when it is busy and when it communicates.

    `exposed` is what of the communication passes while nothing else runs.
    """

    kernels: Sequence[Kernel]
    busy: float = 0.0
    communication: float = 0.0
    exposed: float = 0.0


class Steps:
    """The optimizer steps of a run with these settings, on this rank. Raises ConfigError."""

    def __init__(self, settings: Mapping[str, object], world: World) -> None:
        config = resolve(settings)
        self.dataset: Any = None
        if config.data:
            self.dataset = load_dataset(config.loader, config.data, config.tokenizer)
            config = resolve(settings, self.dataset.vocabulary)
        self.config, self.world, self.done = config, world, 0
        self.device = connect(world)
        self.mesh = build_mesh(config, self.device)
        dtype = compute_dtype(config, self.device)
        self.model = build_model(load_attribute(config.model, "model"), config, dtype)
        parallelize(self.model, self.mesh, config, dtype)
        confine(self.model, self.mesh, config, getattr(self.dataset, "end", None))
        materialize(self.model, config, self.device)
        self.optimizer = Optimizer(self.model, self.mesh, config, dtype)
        self.advance = Step(self.model, self.mesh, config, self.optimizer, self.device)
        self.batches = Batches(self.batch, self.device)

    def batch(self, number: int) -> Batch:
        """This rank's ids and targets of a step."""
        config, ranks, rank = self.config, self.mesh.data_ranks, self.mesh.data_rank
        if self.dataset is not None:
            found: Batch = self.dataset.batch(number, config.sequences, config.context, config.seed, rank, ranks)
            return found
        count = len(share(config.sequences, rank, ranks))
        ids = torch.randint(config.num_tokens, (count, config.context + 1))
        return ids[:, :-1], ids[:, 1:]

    def step(self) -> tuple[float, float]:
        """One step, as the trainer takes it: its loss and gradient norm."""
        ids, targets = self.batches.take(self.done)
        return self.take(ids, targets, self.done + 1)

    def take(self, ids: Tensor, targets: Tensor, upcoming: int | None = None) -> tuple[float, float]:
        """One step over a batch on the device; the host prepares the batch that is `upcoming` meanwhile."""
        read = self.advance(self.done, ids, targets, 0.0)
        self.done += 1
        if upcoming is not None:
            self.batches.prepare(upcoming)
        loss, norm, _ = read()
        return loss, norm

    def speed(self, steps: int) -> Speed:
        """The median of so many steps, after those that compile."""
        for _ in range(WARM if self.done < WARM else 0):
            self.step()
        seconds = statistics.median(timed(self.step) for _ in range(steps))
        rate = self.config.global_batch_tokens / seconds
        each = mfu_per_rate(self.config, self.world.world_size)
        return Speed(rate, seconds, each and each * rate, memory_bytes())

    def profile(self, trace: Path | None = None) -> Profile:
        """Where a step goes; a `trace` of it for Perfetto is written too."""
        gpu = self.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
        with profile(activities=activities) as found:
            for _ in range(PROFILED):
                self.step()
        if trace is not None:
            found.export_chrome_trace(str(trace))
        listed = []
        for one in found.key_averages():
            spent = one.self_device_time_total if gpu else one.self_cpu_time_total
            if spent and not one.is_user_annotation and not (gpu and one.device_type.name == "CPU"):
                listed.append(Kernel(kind(one.key), one.key, spent / 1000 / PROFILED, one.count / PROFILED))
        listed.sort(key=lambda kernel: -kernel.ms)
        ran = [
            (kind(one.name), one.time_range.start, one.time_range.end)
            for one in found.events() or ()
            if one.device_type.name != "CPU" and not one.is_user_annotation
        ]
        return Profile(listed, *(spent / 1000 / PROFILED for spent in overlap(ran)))


def overlap(ran: Iterable[tuple[str, float, float]]) -> tuple[float, float, float]:
    """How long kernels, given as (kind, start, end), run, how long they communicate, and how long they do only that."""
    every = list(ran)
    busy = covered((start, end) for _, start, end in every)
    working = covered((start, end) for what, start, end in every if what != COMMUNICATION)
    return busy, covered((start, end) for what, start, end in every if what == COMMUNICATION), busy - working


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of what spans cover together."""
    length, reached = 0.0, -math.inf
    for start, end in sorted(spans):
        length += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return length


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work`, which waits for its device, takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def kind(name: str) -> str:
    """What a kernel of this name does."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, name, re.IGNORECASE)), PASSES)


def table(speed: Speed, found: Profile, rows: int) -> Iterator[str]:
    """The report's lines: the speed, each kind's part of a step, what a mesh costs, and the longest kernels."""
    mfu = f"{speed.mfu:.1%}" if speed.mfu else "-"
    yield (
        f"{speed.tokens_per_s:,.0f} tokens/s | step {speed.step_s * 1000:.1f} ms | mfu {mfu} | "
        f"mem {speed.memory_bytes / 1e9:.2f} GB"
    )
    kinds: dict[str, float] = {}
    for kernel in found.kernels:
        kinds[kernel.kind] = kinds.get(kernel.kind, 0.0) + kernel.ms
    yield " | ".join(f"{kind} {ms:.1f} ms" for kind, ms in sorted(kinds.items(), key=lambda item: -item[1]))
    if found.communication:
        part = found.exposed / 1000 / speed.step_s
        yield (
            f"busy {found.busy:.1f} ms | communication {found.communication:.1f} ms, {found.exposed:.1f} ms of it "
            f"alone: {part:.1%} of a step"
        )
    yield from (f"{one.ms:9.3f} ms {one.calls:7.1f} x {one.kind:18} {one.name[:80]}" for one in found.kernels[:rows])


def main(arguments: Iterable[str] | None = None) -> int:
    """Measure, and print on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--timed-steps", type=int, default=20, help="steps that are timed")
    parser.add_argument("--rows", type=int, default=25, help="kernels that are listed")
    parser.add_argument("--trace", type=Path, help="file for a trace that Perfetto opens")
    parser.add_argument("--json", action="store_true", help="one object with all of it in place of lines")
    asked, rest = parser.parse_known_args(None if arguments is None else list(arguments))
    try:
        world = read_world(os.environ, torch.cuda.device_count())
        steps = Steps(parse(rest), world)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    try:
        speed = steps.speed(asked.timed_steps)
        found = steps.profile(asked.trace if world.rank == 0 else None)
        if world.rank == 0 and asked.json:
            print(json.dumps({**dataclasses.asdict(speed), **dataclasses.asdict(found)}), flush=True)
        elif world.rank == 0:
            print("\n".join(table(speed, found, asked.rows)), flush=True)
    finally:
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
