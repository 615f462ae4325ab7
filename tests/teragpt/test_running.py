"""docs/running.md: the recipe for several nodes, each node a launcher of its own on loopback."""

from __future__ import annotations

import re
import shlex
import socket
from pathlib import Path

import pytest

from tests.teragpt import ranks


@pytest.mark.deep  # test_launch.py has two nodes too, with less to train
def test_two_launchers_started_by_hand_are_one_job(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    recipe = re.search(
        r'ssh "node\$node" "cd ~/work && python (.*?)" &', (ranks.ROOT / "docs/running.md").read_text(), re.DOTALL
    )
    assert recipe
    line = recipe[1].replace("\\\n", " ").replace("node0", "127.0.0.1").replace("29500", port)
    line = line.replace("--nproc-per-node gpu", "--nproc-per-node 1").replace("--size 1.3b", "")
    line = line.replace("/shared/runs/one", str(tmp_path / "run"))
    settings = ranks.arguments({**ranks.SMALL, "steps": 3})
    nodes = [ranks.start([*shlex.split(line.replace("$node", str(node))), *settings]) for node in (0, 1)]
    said = [node.communicate(timeout=ranks.PATIENCE_S)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert "2 ranks |" in said[0]
    assert list(ranks.curve(said[0])) == [1, 2, 3]
    assert ranks.curve(said[1]) == {}
