"""CPU time of plans that nobody has asked for before, `--explain` and the next best five with them.

`python benchmarks/plan/cold.py [GPU ...]`: every named size on 8 to 4,096 of each kind, of all unless some are named;
imports are not counted. The least of three times, since what else a machine does beside lengthens CPU time too.
"""

from __future__ import annotations

import sys
import time

from teragpt.config import ConfigError
from teragpt.plan import cluster_of, plan
from teragpt.plan.explain import explain
from teragpt.plan.hardware import DEVICES
from teragpt.plan.planner import planned
from teragpt.sizes import SIZES

NUMBERS = (8, 16, 64, 100, 256, 512, 1000, 1024, 2048, 4096)
LIMIT = 100  # milliseconds
TIMES = 3


def milliseconds(size: str, gpu: str, gpus: int) -> float:
    """Of this process, for one plan or for why there is none: the least of `TIMES`."""
    return min(once(size, gpu, gpus) for _ in range(TIMES))


def once(size: str, gpu: str, gpus: int) -> float:
    """As `milliseconds`, one time."""
    planned.cache_clear()
    begun = time.process_time()
    try:
        found = plan({"size": size}, cluster_of(gpu, gpus), price=2.0)
        found.to_json()
        list(explain(found))
    except ConfigError as refused:
        str(refused)
    return (time.process_time() - begun) * 1000


def main(kinds: list[str]) -> int:
    """Print the slowest; 1 where one takes longer than the limit."""
    milliseconds("tiny", "h100", 8)
    took = sorted(
        (milliseconds(size, gpu, gpus), size, gpu, gpus) for gpu in kinds for size in SIZES for gpus in NUMBERS
    )
    for each, size, gpu, gpus in took[-5:]:
        print(f"{each:6.1f} ms  {size} on {gpus:,} {gpu}")
    print(f"{took[len(took) // 2][0]:6.1f} ms  the median of {len(took)}")
    return int(took[-1][0] > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(DEVICES)))
