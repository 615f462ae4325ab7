"""From a fresh process to step 1 on one GPU, with what the run's first attempt compiled and without.

`python -m benchmarks.gpu.start FOLDER --data DATASET [--size 1.3b]`: the first attempt, whose caches are empty, ends
after step 1 and leaves in its run folder what it compiled. That file alone is given to a second run, whose caches are
empty too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from teragpt.compiled import NAME

LIMIT = 25.0  # seconds


def main() -> None:
    """Start both, and print their seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", default="1.3b")
    parser.add_argument("--num-tokens", type=int, default=32_000, help="vocabulary, the dataset's at least")
    asked = parser.parse_args()
    cold, warm = asked.folder / "cold", asked.folder / "warm"
    seconds = {"cold": to_step_1(asked, cold)}
    warm.mkdir(parents=True)
    shutil.copy(cold / NAME, warm / NAME)
    shutil.rmtree(cold)
    seconds["warm"] = to_step_1(asked, warm)
    told = {name: round(value, 1) for name, value in seconds.items()}
    print(json.dumps({"size": asked.size, **told, "limit": LIMIT, "kept_mb": (warm / NAME).stat().st_size / 1e6}))


def to_step_1(asked: argparse.Namespace, out: Path) -> float:
    """Seconds to the line of step 1 of a run, which is then waited for."""
    settings = {
        "size": asked.size,
        "optimizer": "adamw",
        "out": out,
        "data": asked.data,
        "num_tokens": asked.num_tokens,
        "steps": 1,
    }
    settings |= {"global_batch_tokens": 16_384, "warmup_steps": 0, "eval_sequences": 8}
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    with tempfile.TemporaryDirectory() as empty:
        environ = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": f"{empty}/inductor", "TRITON_CACHE_DIR": f"{empty}/triton"}
        command = [sys.executable, "-m", "teragpt.train", *words]
        start, took = time.perf_counter(), 0.0
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(f"{time.perf_counter() - start:6.1f} {line}", end="", file=sys.stderr)
                if line.startswith("step 1/"):
                    took = time.perf_counter() - start
        if process.returncode or not took:
            raise SystemExit(f"the run ended with {process.returncode} before step 1")
    return took


if __name__ == "__main__":
    main()
