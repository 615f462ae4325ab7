"""Documents packed into sequences, attention within each, beside the same tokens unpacked, on one GPU.

`python -m benchmarks.gpu.packed [--size 1.3b] [--context 4096] [--micro-batch 4] [--rounds 3]` alternates the two, each
in a process of its own, over documents of random tokens of 500 on average, and prints the ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys

import torch
from torch import Tensor

VOCABULARY, END, LIMIT = 32_000, 0, 0.9


class Documents:
    """A loader of random documents whose mean length its path names."""

    def __init__(self, path: str, **_: object) -> None:
        self.mean, self.vocabulary, self.end = int(path), VOCABULARY, END
        self.fingerprint, self.tokenizer = "random", ""

    def batch(self, step: int, sequences: int, context: int, *_: object) -> tuple[Tensor, Tensor]:
        """Ids and targets (B, T)."""
        draw = torch.Generator().manual_seed(step)
        ids = torch.randint(1, VOCABULARY, (sequences, context + 1), generator=draw)
        ids[torch.rand(ids.shape, generator=draw) < 1 / self.mean] = END
        return ids[:, :-1], ids[:, 1:]


def main() -> None:
    """Alternate the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="1.3b")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    rates: dict[str, list[int]] = {"plain": [], "documents": []}
    for _ in range(asked.rounds):
        for packing, found in rates.items():
            found.append(rate(asked, packing))
            print(packing, found[-1], file=sys.stderr, flush=True)
    ratio = statistics.median(rates["documents"]) / statistics.median(rates["plain"])
    print(json.dumps({"size": asked.size, "context": asked.context, **rates, "ratio": round(ratio, 3), "limit": LIMIT}))


def rate(asked: argparse.Namespace, packing: str) -> int:
    """Tokens a second."""
    settings = {
        "size": asked.size, "optimizer": "adamw",
        "context": asked.context, "micro_batch": asked.micro_batch, "num_tokens": VOCABULARY,
        "global_batch_tokens": asked.micro_batch * asked.context, "loader": "benchmarks.gpu.packed:Documents",
        "data": 500, "packing": packing,
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "teragpt.profiling", "--rows", "0", *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = re.search(r"^([\d,]+) tokens/s", done.stdout, re.MULTILINE)
    assert found is not None, done.stdout
    return int(found[1].replace(",", ""))


if __name__ == "__main__":
    main()
