"""What a step on one GPU waits for its batch, from a warm page cache and from a cold one.

`python -m benchmarks.gpu.waiting DATASET [--size 1.3b] [--micro-batch 8] [--steps 40]`. A step waits where taking its
batch takes time, or where the device is idle before the next batch is ready; the second is told by an event behind each
step. Cold: the system is told to forget the dataset's files before each batch is read.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from teragpt.data import open_dataset
from teragpt.launcher.environment import World
from teragpt.profiling import WARM, Steps

LIMIT = 0.001  # of a step


def main() -> None:
    """Measure both, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--size", default="1.3b")
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=40)
    asked = parser.parse_args()
    settings = {
        "size": asked.size, "optimizer": "adamw",
        "context": asked.context, "data": str(asked.dataset), "micro_batch": asked.micro_batch,
        "global_batch_tokens": asked.micro_batch * asked.context,
    }  # fmt: skip
    steps = Steps(settings, World())
    for _ in range(WARM):
        steps.step()
    for cold in (False, True):
        print(json.dumps({"cold": cold, **waits(steps, asked, cold=cold), "limit": LIMIT}), flush=True)


def waits(steps: Steps, asked: argparse.Namespace, *, cold: bool) -> dict[str, Any]:
    """Seconds of steps, of reading batches, and of waiting for them."""
    gpu = steps.device.type == "cuda"
    took, read, waited, idle = [], [], [], 0
    for _ in range(asked.steps):
        begun = time.perf_counter()
        ids, targets = steps.batches.take(steps.done)
        taken = time.perf_counter() - begun
        tell = steps.advance(steps.done, ids, targets, 0.0)
        behind = torch.cuda.Event() if gpu else None
        if behind:
            behind.record()
        steps.done += 1
        if cold:
            steps.dataset = open_dataset(str(asked.dataset))  # the old one's pages are mapped, and would stay
            forget(asked.dataset)
        reading = time.perf_counter()
        steps.batches.prepare(steps.done)
        read.append(time.perf_counter() - reading)
        late = bool(behind and behind.query())  # the device had nothing to do, for some part of the reading
        idle += late
        waited.append(taken + (read[-1] if late else 0.0))
        tell()
        took.append(time.perf_counter() - begun)
    return {
        "step_ms": round(statistics.median(took) * 1000, 2), "read_ms": round(statistics.median(read) * 1000, 2),
        "longest_read_ms": round(max(read) * 1000, 2), "late_batches": idle,
        "waited": round(sum(waited) / sum(took), 6),
    }  # fmt: skip


def forget(folder: Path) -> None:
    """Have the system drop what it holds of the files; their pages are read from the disk again."""
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


if __name__ == "__main__":
    main()
