"""What training loses to an asynchronous checkpoint of a size's whole state, ours beside torch's own way.

`python -m benchmarks.gpu.checkpoints FOLDER [--size 1.3b] [--saves 3] [--ways Ours Plain]` trains with random tokens on
one GPU, and saves a few times into FOLDER: through `teragpt.checkpoint.Checkpoints`, and through `dcp.async_save` with
the defaults that torchtitan's asynchronous mode takes. A save's stall is what the call and the steps until its
publication take beyond the median of the steps before it. FOLDER decides how long a publication takes: a slow disk
takes minutes for what 1.3b holds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict_saver import async_save

from teragpt.checkpoint import Checkpoints
from teragpt.launcher.environment import World
from teragpt.profiling import Steps, timed

START = time.perf_counter()
STEPS = 10  # before a save, for the median
LIMIT = 1.0  # seconds


class Ours:
    """The trainer's way."""

    def __init__(self, steps: Steps, state: dict[str, Tensor], folder: Path) -> None:
        config = replace(steps.config, out=str(folder), keep_last=1)
        self.checkpoints = Checkpoints(config, "random", 1)
        self.checkpoints.prepare(state)

    def save(self, number: int, state: dict[str, Tensor]) -> Callable[[], bool]:
        """Begin; what is returned tells whether it is published."""
        self.checkpoints.save(number, state, {}, lambda _: None)
        saving = self.checkpoints.saving
        assert saving is not None
        return saving.done


class Plain:
    """torch's asynchronous save as it comes."""

    def __init__(self, _: Steps, __: dict[str, Tensor], folder: Path) -> None:
        self.folder, self.group = folder, cast("dist.ProcessGroup", dist.new_group(backend="gloo"))

    def save(self, number: int, state: dict[str, Tensor]) -> Callable[[], bool]:
        """As above."""
        shutil.rmtree(self.folder, ignore_errors=True)
        saving: Any = async_save(state, checkpoint_id=self.folder / str(number), process_group=self.group)
        future: Future[None] = getattr(saving, "upload_completion", saving)
        return future.done


def main() -> None:
    """Measure both, and print a line for each save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="1.3b")
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--ways", nargs="*", choices=["Ours", "Plain"], default=["Ours", "Plain"])
    asked = parser.parse_args()
    say("imported")
    tokens = 8 * 2048 if asked.size == "1.3b" else 4096
    steps = Steps(
        {"size": asked.size, "optimizer": "adamw", "num_tokens": 32_000, "global_batch_tokens": tokens}, World()
    )
    say("model built")
    steps.speed(STEPS)
    say("compiled")
    state = {**dict(steps.model.state_dict()), **steps.optimizer.state()}
    size = sum(tensor.nbytes for tensor in state.values())
    for way in (way for way in (Ours, Plain) if way.__name__ in asked.ways):
        saver = way(steps, state, asked.folder / way.__name__)
        if isinstance(saver, Ours):
            pinned(saver, steps)
        for number in range(1, asked.saves + 1):
            usual = statistics.median(timed(steps.step) for _ in range(STEPS))
            found = stall(partial(saver.save, number, state), steps, usual)
            row = {"way": way.__name__, "gb": round(size / 1e9, 1), "save": number, "step_s": round(usual, 3), **found}
            print(json.dumps({**row, **({"limit": LIMIT} if way is Ours else {})}), flush=True)
    dist.destroy_process_group()


def pinned(saver: Ours, steps: Steps) -> None:
    """Step until the thread that pins memory is done, as it would be long before a run's first save."""
    mirror, start = saver.checkpoints.mirror, time.perf_counter()
    assert mirror is not None
    while not mirror.room.done():
        steps.step()
    say(f"pinned in {time.perf_counter() - start:.1f} s beside training")


def say(what: str) -> None:
    """How far it is."""
    print(f"{time.perf_counter() - START:6.1f} s: {what}", file=sys.stderr, flush=True)


def stall(save: Callable[[], Callable[[], bool]], steps: Steps, usual: float) -> dict[str, float]:
    """Seconds lost to a save, the call's own among them, and until it is published."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    done = save()
    call = lost = time.perf_counter() - start
    while not done():
        lost += timed(steps.step) - usual
    return {"call_s": round(call, 3), "stall_s": round(lost, 3), "published_s": round(time.perf_counter() - start, 2)}


if __name__ == "__main__":
    main()
