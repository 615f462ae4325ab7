"""Layouts that the planner chooses for random specs, on cards: is each the quickest, and none out of memory?

`python -m benchmarks.gpu.plan_choices [N] [--seconds 500] [--out FILE]`: of N specs (30) whose GPUs have 16 to 120 GB,
the plan for one such GPU is run beside the next best one and the best of half, twice and four times its micro-batch.
Each layout has a process of its own, which may allocate what the spec's GPU has and no more. Those of a spec compile
side by side, and are timed one after another. Every card takes specs until the seconds are over.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from teragpt.config import ConfigError
from teragpt.plan import Plan, cluster_of, plan

Row = dict[str, Any]
LIMIT = 1.05  # of the quickest layout's seconds
CONTEXT = 1e9  # bytes that CUDA's context and libraries take of a GPU beside what is allocated
BESIDE = 2e9, 0.12  # a process beyond its plan, where several share a card: bytes, and a part of it
WARM, TIMED = 5, 6
LONGEST = 2.0  # seconds of a planned step
SHAPES: tuple[tuple[str, Row], ...] = (  # size, what differs from it
    ("124m", {}), ("350m", {}), ("760m", {}), ("1.3b", {}), ("1.3b", {"depth": 8}), ("2.7b", {"depth": 10}),
    ("6.7b", {"depth": 4}), ("8b", {"depth": 4}), ("1.3b", {"kv_heads": 4, "ffn": 8192, "depth": 12}),
)  # fmt: skip


def specs(count: int, gpu: str, optimizer: str = "", seed: int = 11) -> Iterator[tuple[Row, Plan]]:
    """So many random settings and their plans, the same every time; of an optimizer where one is named."""
    chance = random.Random(seed)
    while count:
        size, more = chance.choice(SHAPES)
        context = chance.choice([512, 1024, 2048, 4096, 8192])
        batch = context * chance.choice([1, 2, 4, 8, 16, 32, 64])
        how = {
            "optimizer": chance.choice(["adamw", "adamw", "muon"]),
            "precision": chance.choice(["bf16", "bf16", "fp8"]),
        }
        state = chance.choice(["fp32", "fp32", "bf16"])
        settings = {"size": size, **more, "context": context, "global_batch_tokens": batch, **how, "state_dtype": state}
        settings |= {"num_tokens": chance.choice([32_000, 50_304]), "eval_sequences": 64}
        memory = chance.choice([16, 24, 40, 48, 80, 120])
        try:
            found = plan(settings, cluster_of(gpu, 1, gpu_memory=memory))
        except ConfigError:
            continue
        if found.best.seconds <= LONGEST and optimizer in {"", settings["optimizer"]}:
            yield settings, found
            count -= 1


def layouts(settings: Row, found: Plan) -> list[Row]:
    """The planned one first, then those beside it: how each is cut, and what it is planned to take."""
    every, batch = [found.best], found.best.cut.micro_batch
    for micro_batch in (batch // 2, 2 * batch, 4 * batch):
        try:
            every.append(plan({**settings, "micro_batch": micro_batch}, found.cluster).best)
        except ConfigError:
            continue
    every += [option for option, _ in found.others][:1]
    rows: dict[str, Row] = {}
    for one in every:
        cut = f"{one.cut.count} x {one.cut.micro_batch}, recompute {one.cut.recomputed}"
        rows.setdefault(cut, {"cut": cut, "peak": one.memory.peak, "planned": one.seconds, "settings": one.settings})
    return list(rows.values())


def measure(settings: Row, memory: float) -> None:
    """In a process of its own: a line once a step has been compiled, and one with its seconds after a line is read."""
    for slow in ("torch._inductor.compile_fx", "teragpt.profiling"):
        import_module(slow)
    from teragpt.launcher.environment import World
    from teragpt.profiling import Steps, timed

    sys.stdin.readline()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, memory / total))
    steps = Steps(settings, World())
    for _ in range(WARM):
        steps.step()
    print(json.dumps({"bytes": torch.cuda.max_memory_allocated()}), flush=True)
    sys.stdin.readline()
    seconds = statistics.median(timed(steps.step) for _ in range(TIMED))
    reserved = torch.cuda.max_memory_reserved()
    print(
        json.dumps({"seconds": seconds, "bytes": torch.cuda.max_memory_allocated(), "reserved": reserved}), flush=True
    )


class Job:
    """A layout's process, which imports at once and waits."""

    def __init__(self, settings: Row, memory: float, card: int) -> None:
        command = [sys.executable, "-m", "benchmarks.gpu.plan_choices", "--job", json.dumps([settings, memory])]
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        environ = {**os.environ, "CUDA_VISIBLE_DEVICES": seen.split(",")[card] if seen else str(card)}
        pipe = subprocess.PIPE
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - the process writes into it for as long as it lives
        self.process = subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=self.said, env=environ)

    def tell(self) -> None:
        """Let it go on."""
        assert self.process.stdin is not None
        if self.process.poll() is None:
            self.process.stdin.write("now\n")
            self.process.stdin.flush()

    def hear(self) -> Row:
        """Its next line, or how it ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            found: Row = json.loads(line)
            return found
        self.process.wait()
        self.said.seek(0)
        said = self.said.read().strip().splitlines()
        memory = any("OutOfMemoryError" in one for one in said)
        return {"error": "out of memory" if memory else said[-1][:300] if said else str(self.process.returncode)}


def one(settings: Row, found: Plan, card: int) -> Row:
    """A spec's layouts on a card."""
    memory = found.cluster.device.memory
    every = layouts(settings, found)
    jobs = [Job({**settings, **row["settings"]}, memory - CONTEXT, card) for row in every]
    room = torch.cuda.get_device_properties(0).total_memory
    try:
        waiting = list(zip(every, jobs, strict=True))
        while waiting:  # as many as the card holds at once
            taken, group = 0.0, list[tuple[Row, Job]]()
            while waiting and (not group or taken + beside(waiting[0][0]) <= room):
                taken += beside(waiting[0][0])
                group.append(waiting.pop(0))
            for _, job in group:
                job.tell()
            for row, job in group:
                row.update(job.hear())
            for row, job in group:
                if "error" not in row:
                    job.tell()
                    row.update(job.hear())
                job.process.kill()
    finally:
        for job in jobs:
            job.process.kill()
            job.process.communicate()
    return judged(settings, found, every)


def beside(row: Row) -> float:
    """Bytes of the card that a layout takes at the most."""
    more, part = BESIDE
    return more + (1 + part) * float(row["peak"])


def judged(settings: Row, found: Plan, every: list[Row]) -> Row:
    """What a spec's layouts come to."""
    timed = [row["seconds"] for row in every if "seconds" in row]
    told: Row = {"spec": settings, "memory_gb": found.cluster.device.memory / 1e9, "layouts": []}
    for row in every:
        shown = {
            "cut": row["cut"],
            "planned_ms": round(row["planned"] * 1000, 1),
            "planned_gb": round(row["peak"] / 1e9, 2),
        }
        if "seconds" in row:
            shown |= {"ms": round(row["seconds"] * 1000, 1), "off": round(row["planned"] / row["seconds"] - 1, 4)}
        if "bytes" in row:
            shown["gb"] = round(row["bytes"] / 1e9, 2)
        if "reserved" in row:
            shown["reserved_gb"] = round(row["reserved"] / 1e9, 2)
        told["layouts"].append({**shown, **({"error": row["error"]} if "error" in row else {})})
    chosen = every[0].get("seconds")
    to_best = chosen / min(timed) if chosen else None
    return {**told, "to_best": to_best and round(to_best, 4), "holds": to_best is not None and to_best <= LIMIT}


def main() -> int:
    """Print a row for each spec and what they come to; 1 where one does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=30)
    parser.add_argument("--gpu", default="h200")
    parser.add_argument("--optimizer", default="", help="specs with this one alone")
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--out", type=Path, default=Path("chosen.jsonl"))
    parser.add_argument("--job", type=json.loads, help="one layout, in this process")
    asked = parser.parse_args()
    if asked.job:
        measure(*asked.job)
        return 0
    end, every = time.monotonic() + asked.seconds, queue.SimpleQueue[tuple[Row, Plan]]()
    for pair in specs(asked.count, asked.gpu, asked.optimizer):
        every.put(pair)
    rows, lock = list[Row](), threading.Lock()

    def work(card: int) -> None:
        while time.monotonic() < end:
            try:
                settings, found = every.get_nowait()
            except queue.Empty:
                return
            row = one(settings, found, card)
            with lock, asked.out.open("a") as record:
                rows.append(row)
                record.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)

    threads = [threading.Thread(target=work, args=(card,)) for card in range(torch.cuda.device_count())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bad = [row for row in rows if not row["holds"]]
    short = sum(row["layouts"][0].get("error") == "out of memory" for row in rows)
    print(json.dumps({"specs": len(rows), "of": asked.count, "out_of_memory": short, "slower": len(bad) - short}))
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
