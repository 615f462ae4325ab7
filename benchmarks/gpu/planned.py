"""The planner's memory and step times beside those of one GPU, over sizes, lengths, batches, modes and optimizers.

`python -m benchmarks.gpu.planned [--gpu h200] [--at-once 10] [--alone] [--out FILE] [--calibration FILE]` trains each
point for a few steps over random tokens in a process of its own. Several run side by side, as many as the plan says fit
the card: what one allocates is its own. With --alone, one after another, and what is compared is the time of a step.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from teragpt.plan import Plan, cluster_of, plan

Row = dict[str, Any]
VOCABULARY = 50_304
SHARE, LEAST = 0.05, 150e6  # of the measured bytes; bytes: the larger is what a plan may be off by
BESIDE = 3e9  # bytes of a process beyond its plan: CUDA's context, the allocator's slack
WARM, TIMED = 5, 6


def points() -> Iterator[Row]:
    """Settings of each: size, tokens, micro-batch, and what differs from the defaults."""
    for size, context, batch in (
        ("124m", 512, 32), ("124m", 1024, 1), ("124m", 1024, 16), ("124m", 2048, 8), ("124m", 4096, 2),
        ("124m", 16384, 1), ("350m", 512, 8), ("350m", 1024, 16), ("350m", 4096, 4), ("760m", 1024, 8),
        ("760m", 8192, 1), ("1.3b", 2048, 1), ("1.3b", 2048, 8), ("1.3b", 512, 32), ("1.3b", 8192, 2),
        ("2.7b", 2048, 2),
    ):  # fmt: skip
        yield {"size": size, "context": context, "micro_batch": batch}
    for mode in ("selective", "full"):
        for size, context, batch in (
            ("124m", 1024, 32), ("350m", 16384, 1), ("760m", 2048, 8), ("1.3b", 2048, 16), ("2.7b", 4096, 2),
        ):  # fmt: skip
            yield {"size": size, "context": context, "micro_batch": batch, "recompute": mode}
    for size, context, batch in (("124m", 1024, 16), ("760m", 2048, 4), ("1.3b", 2048, 8), ("2.7b", 2048, 2)):
        yield {"size": size, "context": context, "micro_batch": batch, "precision": "fp8"}
    yield {"size": "1.3b", "context": 2048, "micro_batch": 8, "precision": "fp8", "recompute": "selective"}
    for size, context, batch in (("124m", 1024, 32), ("760m", 1024, 8), ("1.3b", 2048, 4)):
        yield {"size": size, "context": context, "micro_batch": batch, "optimizer": "muon"}
    bf16 = {"state_dtype": "bf16"}
    for size, context, batch, more in (
        ("124m", 1024, 16, {}), ("1.3b", 2048, 8, {}), ("2.7b", 2048, 4, {"recompute": "full"}),
        ("6.7b", 2048, 2, {"recompute": "selective"}), ("8b", 4096, 1, {"recompute": "full"}),
        ("8b", 8192, 1, {"recompute": "full"}), ("8b", 2048, 1, {"precision": "fp8"}),
    ):  # fmt: skip
        yield {"size": size, "context": context, "micro_batch": batch, **bf16, **more}
    for size, context, batch in (("124m", 1024, 8), ("1.3b", 2048, 4)):  # two micro-batches a step
        yield {"size": size, "context": context, "micro_batch": batch, "count": 2}


def alone() -> Iterator[Row]:
    """Those whose steps are timed."""
    for size, context, batch, more in (
        ("124m", 1024, 16, {}), ("124m", 1024, 64, {}), ("350m", 1024, 16, {}), ("760m", 1024, 16, {}),
        ("1.3b", 2048, 8, {}), ("1.3b", 2048, 16, {"recompute": "selective"}), ("2.7b", 2048, 4, {}),
        ("124m", 1024, 64, {"precision": "fp8"}), ("1.3b", 2048, 8, {"precision": "fp8"}),
        ("1.3b", 8192, 2, {}), ("350m", 4096, 4, {"recompute": "full"}),
    ):  # fmt: skip
        yield {"size": size, "context": context, "micro_batch": batch, **more}


def settings_of(point: Row) -> Row:
    """As the trainer takes them."""
    given = {"optimizer": "adamw", **{name: value for name, value in point.items() if name != "count"}}
    tokens = point["micro_batch"] * point["context"] * point.get("count", 1)
    return {"num_tokens": VOCABULARY, "recompute": "none", **given, "global_batch_tokens": tokens}


def planned(point: Row, asked: argparse.Namespace) -> Plan | None:
    """The plan of a point, None where it would not fit."""
    try:
        return plan(settings_of(point), cluster_of(asked.gpu, 1), calibration=asked.calibration)
    except ValueError as error:
        print(json.dumps({**point, "error": str(error)}), flush=True)
        return None


def measure(point: Row, count: int) -> Row:
    """Bytes, and seconds of so many steps, of a point, once a line is read."""
    for slow in ("torch._inductor.compile_fx", "teragpt.profiling"):
        importlib.import_module(slow)
    from teragpt.launcher.environment import World
    from teragpt.profiling import Steps, timed

    sys.stdin.readline()
    steps = Steps(settings_of(point), World())
    losses = [steps.step()[0] for _ in range(WARM)]
    seconds = statistics.median(timed(steps.step) for _ in range(count))
    gpu = torch.cuda.is_available()
    held = torch.cuda.max_memory_allocated() if gpu else 0
    kept = torch.cuda.max_memory_reserved() if gpu else 0
    return {"bytes": held, "reserved": kept, "seconds": seconds, "loss": losses[-1]}


def begin(point: Row, more: Iterable[str]) -> subprocess.Popen[str]:
    """The process of a point, which imports, and waits to be told."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "benchmarks.gpu.planned", "--point", json.dumps(point), *more]
    return subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe)


def end(process: subprocess.Popen[str], point: Row) -> Row:
    """What it found, or how it failed."""
    out, err = process.communicate("now\n")
    if process.returncode:
        return {**point, "error": err.strip().splitlines()[-1][:300] if err.strip() else f"code {process.returncode}"}
    return {**point, **json.loads(out.splitlines()[-1])}


def compare(point: Row, wanted: Plan, found: Row, *, time: bool) -> Row:
    """A point's row: what was planned and what was found, in GB or ms."""
    if "error" in found:
        return found
    peak, held = wanted.best.memory.peak, found["bytes"]
    limit = max(SHARE * held, LEAST)
    row = {**point, "planned_gb": round(peak / 1e9, 3), "gb": round(held / 1e9, 3)}
    row |= {"off": round(peak / held - 1, 4) if held else None, "holds": abs(peak - held) <= limit}
    row |= {"reserved_gb": round(found["reserved"] / 1e9, 3), "loss": round(found["loss"], 3)}
    if time:
        seconds = found["seconds"]
        row |= {"planned_ms": round(wanted.best.seconds * 1000, 1), "ms": round(seconds * 1000, 1)}
        row |= {"time_off": round(wanted.best.seconds / seconds - 1, 4)}
    return row


class Card:
    """Room on the card, for those who take some of it and give it back."""

    def __init__(self, size: float) -> None:
        self.free, self.changed = size, threading.Condition()

    def hold(self, size: float, work: Callable[[], Row]) -> Row:
        """Do work once there is room."""
        with self.changed:
            self.changed.wait_for(lambda: self.free >= size)
            self.free -= size
        try:
            return work()
        finally:
            with self.changed:
                self.free += size
                self.changed.notify_all()


def main() -> None:
    """Run all points, or one in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", default="h200")
    parser.add_argument("--at-once", type=int, default=10)
    parser.add_argument("--share", type=float, default=0.95, help="of the card, for all at once")
    parser.add_argument("--alone", action="store_true", help="time steps, one point after another")
    parser.add_argument("--only", help="points of this size")
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--out", type=Path, default=Path("planned.jsonl"))
    parser.add_argument("--point", type=json.loads, help="one point, in this process, once a line is read")
    asked = parser.parse_args()
    if asked.point:
        print(json.dumps(measure(asked.point, TIMED if asked.alone else 1)))
        return
    chosen = [one for one in (alone() if asked.alone else points()) if asked.only in {None, one["size"]}]
    plans = [(one, found) for one in chosen if (found := planned(one, asked))]
    if not asked.alone:  # the largest first, since small ones fit beside what is left
        plans.sort(key=lambda pair: -pair[1].best.memory.peak)
    card, turn, told = Card(asked.share * cluster_of(asked.gpu, 1).device.memory), threading.Lock(), threading.Lock()
    places = threading.Semaphore(asked.at_once)

    def one(point: Row, wanted: Plan) -> None:
        with places:
            process = begin(point, ["--alone"] * asked.alone)
            if asked.alone:
                with turn:
                    found = end(process, point)
            else:
                found = card.hold(wanted.best.memory.peak + BESIDE, lambda: end(process, point))
        row = compare(point, wanted, found, time=asked.alone)
        with told, asked.out.open("a") as record:
            record.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)

    threads = [threading.Thread(target=one, args=pair) for pair in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
