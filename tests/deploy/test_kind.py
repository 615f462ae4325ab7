"""The script for kind, as far as no cluster is needed: tests/cluster/test_helm.py runs its steps on a real one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tools.blocks import ROOT

SCRIPT = ROOT / "deploy/kind/cluster.sh"


def run(*steps: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", str(SCRIPT), *steps], env={"PATH": path}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("steps", [["chrat"], ["chart", "chek"], ["--help"]])
def test_a_step_that_is_none_is_refused_before_anything_is_done(steps: list[str]) -> None:
    done = run(*steps)
    assert done.returncode == 2
    assert f"got step {steps[-1]}; allowed: cluster, images, operator, chart, check, down" in done.stderr
    assert not done.stdout


def test_a_program_that_is_missing_is_named(tmp_path: Path) -> None:
    for program in ("dirname", "awk"):
        (tmp_path / program).symlink_to(f"/usr/bin/{program}")
    done = run("chart", path=str(tmp_path))
    assert done.returncode == 1
    assert "helm is not on PATH; install it" in done.stderr


def test_the_cluster_has_two_workers_and_a_way_in_from_this_machine_alone() -> None:
    nodes = yaml.safe_load((ROOT / "deploy/kind/cluster.yaml").read_text("utf-8"))["nodes"]
    assert [node["role"] for node in nodes] == ["control-plane", "worker", "worker"]
    assert {port["listenAddress"] for port in nodes[0]["extraPortMappings"]} == {"127.0.0.1"}
