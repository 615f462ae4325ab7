from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from teragpt.agreement import differences
from tests.teragpt import ranks

OTHER_TORCH = """
import sys, torch
torch.__version__ = "2.11.0+other"
from teragpt.train import main
sys.exit(main(sys.argv[1:]))
"""


def test_what_differs_is_named_with_the_ranks_and_what_rank_0_has() -> None:
    facts = [{"torch": "2.15.0", "data": "a"}, {"torch": "2.15.0", "data": "b"}, {"torch": "2.15.0", "data": "b"}]
    assert [str(one) for one in differences(facts)] == [
        "data: got 'b'; allowed: 'a', as on rank 0; it differs on rank 1, 2"
    ]
    assert str(next(differences([{"seed": 1}] + [{"seed": 2}] * 9))).endswith("rank 1, 2, 3, 4, 5, 6, 7, 8, …")


def pair(first: list[str], second: list[str], path: Path) -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
    """Two ranks started by hand, as on two nodes; the second one's imports come from `path` first."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    one = ranks.start(first, 1, {**world, "RANK": "0"})
    theirs = {"PYTHONPATH": os.pathsep.join([str(path), str(ranks.ROOT)]), "PYTHONSAFEPATH": "1"}
    return one, ranks.start(second, 1, {**world, "RANK": "1", **theirs})


@pytest.mark.parametrize(
    "what", [*(pytest.param(one, marks=pytest.mark.unmeasured) for one in ("torch", "teragpt")), "seed"]
)
def test_ranks_that_differ_end_before_anything_is_written(tmp_path: Path, what: str) -> None:
    words = ranks.arguments({**ranks.SMALL, "out": tmp_path / "run"})
    plain, other = ["-m", "teragpt.train", *words], ["-m", "teragpt.train", *words]
    if what == "torch":
        other = ["-c", OTHER_TORCH, *words]
    if what == "teragpt":
        shutil.copytree(ranks.ROOT / "teragpt", tmp_path / "teragpt", ignore=shutil.ignore_patterns("__pycache__"))
        ours = tmp_path / "teragpt" / "ops.py"
        ours.write_text(ours.read_text() + "# another version\n")
    if what == "seed":
        other += ["--seed", "1"]
    first, second = pair(plain, other, tmp_path)
    said, silent = (process.communicate(timeout=ranks.PATIENCE_S)[0] for process in (first, second))
    assert (first.returncode, second.returncode) == (2, 2), said + silent
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {what}: got ")
    assert errors[0].endswith("as on rank 0; it differs on rank 1")
    assert "error" not in silent
    assert not (tmp_path / "run").exists()
