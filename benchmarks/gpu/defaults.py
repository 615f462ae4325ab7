"""A size's defaults of learning beside a sweep around them: is the default's held-out loss within 1% of the best?

`python -m benchmarks.gpu.defaults DATASET [--sizes 124m 350m] [--tokens 1e7] [--at-once 3] [--out FILE]`: short runs of
a size's own recipe for so many tokens, then with half and twice its learning rate, batch and weight decay, and with
other warm-ups; the tokens stay. DATASET is made as for `learning`. Losses alone are told, so that several runs share a
card.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from teragpt.config import Config, resolve
from teragpt.data import open_dataset
from teragpt.datasets.batches import to_device

LIMIT = 1.01  # of the sweep's least loss
MICRO_BATCH = 16_384  # tokens
Row = dict[str, Any]


def arms(config: Config) -> Iterator[tuple[str, Row]]:
    """What each run changes of the defaults, which come first."""
    yield "default", {}
    for part in (0.5, 2.0):
        for name in ("learning_rate", "weight_decay"):
            yield f"{name} x {part}", {name: getattr(config, name) * part}
        batch = int(config.global_batch_tokens * part)
        yield f"batch x {part}", {"global_batch_tokens": batch}
    for share in (0.01, 0.2):
        yield f"warm-up {share}", {"warmup_steps": round(share * config.steps)}


def job(settings: Row) -> Row:
    """Train in this process; the loss over the held-out sequences at the end."""
    from teragpt.launcher.environment import World
    from teragpt.parallel import evaluate
    from teragpt.profiling import Steps

    steps = Steps(settings, World())
    config = steps.config
    for _ in range(config.steps):
        steps.step()
    held_out = steps.dataset.validation(config.eval_sequences, config.context, 0, 1)
    ids, targets = (to_device(one, steps.device) for one in held_out)
    loss = evaluate(steps.model, ids, targets, steps.mesh, config)
    told = {name: getattr(config, name) for name in ("optimizer", "learning_rate", "warmup_steps", "weight_decay")}
    return {**told, "batch": config.global_batch_tokens, "steps": config.steps, "loss": round(float(loss), 4)}


def apart(settings: Row) -> Row:
    """`job` in a process of its own. Raises RuntimeError with the end of what it says where it fails."""
    command = [sys.executable, "-m", "benchmarks.gpu.defaults", "-", "--job", json.dumps(settings)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


def sweep(size: str, asked: argparse.Namespace) -> Iterator[Row]:
    """A row for each run of a size as it ends, then what they come to."""
    base = {"size": size, "data": asked.dataset, "tokens": int(asked.tokens), "eval_sequences": asked.held_out}
    vocabulary = open_dataset(asked.dataset).vocabulary
    config = resolve(base, vocabulary)
    base |= {"micro_batch": max(1, MICRO_BATCH // config.context), "global_batch_tokens": config.global_batch_tokens}
    base |= {"learning_rate": config.learning_rate}  # the recipe's; tokens and batch are what they were derived from
    every = list(arms(config))
    losses = dict[str, float]()
    with ThreadPoolExecutor(asked.at_once) as pool:
        found = pool.map(lambda one: apart({**base, **one[1]}), every)
        for (name, _), row in zip(every, found, strict=True):
            losses[name] = row["loss"]
            yield {"size": size, "arm": name, **row}
    best = min(losses, key=lambda name: losses[name])
    ratio = losses["default"] / losses[best]
    yield {"size": size, "best": best, "default_to_best": round(ratio, 4), "limit": LIMIT, "holds": ratio <= LIMIT}


def main() -> int:
    """Print every row; 1 where a default does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--sizes", nargs="*", default=["124m", "350m"])
    parser.add_argument("--tokens", type=float, default=1e7, help="of each run")
    parser.add_argument("--held-out", type=int, default=256, help="sequences of the evaluation")
    parser.add_argument("--at-once", type=int, default=3, help="runs that share the card")
    parser.add_argument("--out", type=Path, default=Path("defaults.jsonl"))
    parser.add_argument("--job", type=json.loads, help="one run, in this process")
    asked = parser.parse_args()
    if asked.job is not None:
        print(json.dumps(job(asked.job)))
        return 0
    holds = True
    with asked.out.open("a") as record:
        for size in asked.sizes:
            for row in sweep(size, asked):
                record.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
                holds &= row.get("holds", True)
    return int(not holds)


if __name__ == "__main__":
    sys.exit(main())
