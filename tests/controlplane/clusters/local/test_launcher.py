"""The real launcher in real pods: two nodes of two ranks that find one another at the reserved port."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from controlplane.clusters.local import Machine
from tests.controlplane.clusters.local.conftest import Bench

COLD_S = 240.0  # launchers import torch on two busy cores, from a disk that has not been read yet
REPOSITORY = Path(__file__).parents[4]
RANKS = """
import os, socket, sys, time
from pathlib import Path
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))).close()  # where they would meet
seen = [Path(__file__).with_name(f"rank{other}") for other in range(size)]
seen[rank].touch()
while not all(path.exists() for path in seen):
    time.sleep(0.01)
print("rank", rank, "of", size, "local", os.environ["LOCAL_RANK"], flush=True)
if rank == size - 1 and len(sys.argv) > 1:
    sys.exit(int(sys.argv[1]))
if len(sys.argv) > 1:
    time.sleep(99)
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "HOME": str(tmp_path)}
    (tmp_path / "ranks.py").write_text(RANKS)
    bench = Bench(tmp_path / "cluster", machine=Machine(cpus=4, memory=8 << 30), environment=environment)
    bench.deadline_s = COLD_S
    return bench


def test_the_launcher_brings_the_ranks_of_all_nodes_together(bench: Bench, tmp_path: Path) -> None:
    command = ("python", "-m", "teragpt.launch", str(tmp_path / "ranks.py"))
    bench.create("ranks", "", nodes=2, processes_per_node=2, command=command, cpus_per_node=2)
    try:
        bench.in_phase("ranks", "Succeeded")
    finally:
        logs = [bench.cluster.logs("ranks", f"ranks-{pod}").decode() for pod in ("master-0", "worker-0")]
        bench.finish()
    for log, ranks in zip(logs, ((0, 1), (2, 3)), strict=True):
        for local, rank in enumerate(ranks):
            assert f"rank {rank} of 4 local {local}" in log


def test_the_first_failing_ranks_code_and_message_come_out(bench: Bench, tmp_path: Path) -> None:
    command = ("python", "-m", "teragpt.launch", str(tmp_path / "ranks.py"), "3")
    bench.create("ranks", "", processes_per_node=2, command=command, cpus_per_node=2)
    try:
        pod = bench.pod("ranks", "Failed")
    finally:
        bench.finish()
    assert pod.exit_code == 3
    assert pod.termination
    assert (pod.termination["rank"], pod.termination["code"]) == (1, 3)
