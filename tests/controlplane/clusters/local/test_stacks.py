"""Where the processes of a pod that hangs stand, read by the real py-spy."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from controlplane.clusters.base import Stacks
from controlplane.clusters.local import shim, stacks
from tests.controlplane.clusters.local.conftest import Bench, until

RANKS = """
import os, subprocess, sys, time
if "LOCAL_RANK" not in os.environ:
    for rank in ("1", "0"):
        subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env={**os.environ, "RANK": rank, "LOCAL_RANK": rank})
    subprocess.Popen(["sleep", "998"])
    time.sleep(999)

def waits_for_the_others():
    print("up", flush=True)
    time.sleep(999)

waits_for_the_others()
"""


def test_every_rank_tells_where_it_stands_also_a_stopped_one_and_goes_on(bench: Bench) -> None:
    bench.create("one", RANKS)
    pod = bench.pod("one", "Running")
    until(lambda: bench.cluster.logs("one", pod.name).count(b"up") == 2, lambda: bench.told("one"))
    alive = bench.processes("one")
    os.kill(alive[-2], signal.SIGSTOP)
    seen = bench.cluster.stacks("one")
    assert (seen.processes, seen.problem) == (3, "")
    heads = [line for line in seen.text.splitlines() if line.startswith("==")]
    assert [head.partition(",")[0] for head in heads[1:]] == ["== rank 0", "== rank 1"]
    assert heads[0].startswith("== process ")
    assert seen.text.count("    waits_for_the_others (") == 2
    assert bench.processes("one") == alive
    assert bench.pod("one", "Running").uid == pod.uid


def test_what_is_not_there_is_named(bench: Bench) -> None:
    assert bench.cluster.stacks("nobody").problem == "none of its Python processes is alive"


def spy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Stacks:
    """What comes of one process of ours, with another program in py-spy's place."""
    program = tmp_path / "py-spy"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(shim, "members", lambda _: iter([os.getpid()]))
    return stacks.stacks_of(["a"])


def test_a_kernel_that_lets_nobody_look_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scope").write_text("1\n")
    monkeypatch.setattr(stacks, "YAMA", tmp_path / "scope")
    seen = spy(tmp_path, monkeypatch, "echo 'Error: Permission Denied: Try again' >&2; exit 1")
    assert seen.text == ""
    assert seen.problem.startswith(
        f"process {os.getpid()}: Permission Denied: Try again (kernel.yama.ptrace_scope is 1"
    )


def test_a_process_that_cannot_be_read_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "PATIENCE_S", 0.2)
    monkeypatch.setattr(stacks, "YAMA", tmp_path / "none")
    seen = spy(tmp_path, monkeypatch, "exec sleep 99")
    assert seen.problem == f"process {os.getpid()}: py-spy did not answer within 0.2 s"


def test_without_py_spy_the_mend_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "pip install '.[stacks]'" in stacks.stacks_of([]).problem
