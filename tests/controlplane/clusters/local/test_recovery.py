"""The control plane dies at any instant; its pods do not, and none of them runs twice."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.clusters.local import Machine, shim
from controlplane.render import render
from tests.controlplane.clusters.local.conftest import DEADLINE_S, Bench, until

HOST = Path(__file__).with_name("host.py")
REPOSITORY = Path(__file__).parents[4]
ONCE = """
import glob, os, time
open("ran", "a").write("x")
while os.environ["RANK"] == "0" and not glob.glob("../../*-worker-0/exit.json"):
    time.sleep(0.01)
"""  # the master's end would stop a worker that has not ended


class Host:
    """A control plane in a process of its own."""

    def __init__(self, root: Path) -> None:
        environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        self.process = subprocess.Popen(
            [sys.executable, str(HOST), str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ,
        )
        self.answer()

    def answer(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()

    def say(self, order: dict[str, Any]) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=DEADLINE_S)


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Bench]:
    """A bench whose cluster is closed: another process is to follow its folder."""
    bench = Bench(tmp_path / "cluster", machine=Machine(cpus=8, memory=8 << 30))
    bench.cluster.close()
    yield bench
    bench.finish()


def take_over(bench: Bench) -> None:
    """Follow the folder from this process."""
    bench.cluster = type(bench.cluster)(bench.root, **bench.settings)


def ran(bench: Bench, name: str, pod: str = "master-0") -> str:
    path = bench.folder(name, pod) / shim.WORK / "ran"
    return path.read_text() if path.exists() else ""


def test_after_kill_9_the_same_processes_go_on_and_their_ends_are_known(closed: Bench) -> None:
    host = Host(closed.root)
    attempt = closed.attempt("pair", "import time\nwhile True: print('.', flush=True); time.sleep(0.01)", nodes=2)
    host.say(render(attempt))
    host.answer()
    before = [closed.process("pair", pod) for pod in ("master-0", "worker-0")]
    host.kill()
    size = (closed.folder("pair") / "log").stat().st_size
    until(
        lambda: (closed.folder("pair") / "log").stat().st_size > size,
        lambda: "the pod did not go on without its control plane",
    )
    take_over(closed)
    closed.in_phase("pair", "Running")
    assert [closed.process("pair", pod) for pod in ("master-0", "worker-0")] == before
    closed.cluster.delete("pair")
    closed.gone("pair")
    assert not set(before) & shim.processes().keys()


def test_what_ended_while_no_one_looked_is_known_afterwards(closed: Bench) -> None:
    host = Host(closed.root)
    host.say(render(closed.attempt("short", "import time; time.sleep(0.3); print('end'); exit(3)")))
    host.answer()
    closed.process("short")
    host.kill()
    until((closed.folder("short") / "exit.json").exists)
    take_over(closed)
    pod = closed.pod("short", "Failed")
    assert (pod.exit_code, pod.message) == (3, "end")
    assert closed.cluster.logs("short", "short-master-0") == b"end\n"


def test_a_deletion_that_was_begun_is_carried_on(closed: Bench) -> None:
    host = Host(closed.root)
    host.say(
        render(
            closed.attempt(
                "going", "import signal, time; signal.signal(15, signal.SIG_IGN); print(); time.sleep(99)", grace_s=1
            )
        )
    )
    host.answer()
    until(lambda: (closed.folder("going") / "log").exists() and (closed.folder("going") / "log").read_bytes())
    host.say({"delete": "going"})
    host.answer()
    host.kill()
    take_over(closed)
    closed.gone("going")


def test_a_pod_that_was_lost_while_no_one_looked_is_lost(closed: Bench) -> None:
    host = Host(closed.root)
    host.say(render(closed.attempt("lost", "import time; time.sleep(99)")))
    host.answer()
    closed.process("lost")
    host.kill()
    record = json.loads((closed.folder("lost") / "pod.json").read_text())
    for pid in (shim.processes()[record["pid"]].parent, record["pid"]):
        os.kill(pid, 9)
    take_over(closed)
    assert closed.pod("lost", "Failed").reason == "Lost"


def test_after_a_restart_of_the_machine_what_ran_is_lost(closed: Bench) -> None:
    take_over(closed)
    closed.create("gone", "pass")
    closed.pod("gone", "Succeeded")
    closed.cluster.close()
    (closed.folder("gone") / "exit.json").unlink()
    record = json.loads((closed.folder("gone") / "pod.json").read_text())
    (closed.folder("gone") / "pod.json").write_text(
        json.dumps({**record, "pid": os.getpid(), "boot": "an earlier one"})
    )
    take_over(closed)
    pod = closed.pod("gone", "Failed")
    assert (pod.reason, pod.message) == ("Lost", "the machine was restarted")


def test_a_kill_between_the_end_of_a_secret_and_that_of_its_object_is_outlived(closed: Bench) -> None:
    take_over(closed)
    closed.create("going", "pass")
    closed.pod("going", "Succeeded")
    closed.cluster.close()
    (closed.folder("going").parent / "secret.json").unlink()
    (closed.folder("going").parent / "deleting").write_text('{"at": 1.0}')
    take_over(closed)
    closed.gone("going")


@pytest.mark.unmeasured
@pytest.mark.parametrize("seed", range(5))
def test_a_kill_at_a_random_instant_starts_nothing_twice_and_loses_nothing(closed: Bench, seed: int) -> None:
    instants = random.Random(seed)
    names = [f"o{number}" for number in range(3)]
    accepted: set[str] = set()
    for name in names:
        host = Host(closed.root)
        host.say(render(closed.attempt(name, ONCE, nodes=2)))
        time.sleep(instants.uniform(0, 0.15))  # the instant is the test's input, not a wait for something
        host.kill()
        if closed.folder(name).exists():
            accepted.add(name)
    take_over(closed)
    for name in names:
        closed.create(name, ONCE, nodes=2)
    for name in names:
        closed.in_phase(name, "Succeeded")
        assert [ran(closed, name, pod) for pod in ("master-0", "worker-0")] == ["x", "x"]
    assert accepted <= set(names)


@pytest.mark.parametrize("file", ["pod.json", "exit.json", "deleting"])
def test_a_shim_that_comes_late_starts_nothing(tmp_path: Path, file: str) -> None:
    folder = tmp_path / "object/pod"
    folder.mkdir(parents=True)
    (folder / file if file.endswith(".json") else folder.parent / file).touch()
    done = subprocess.run([sys.executable, shim.__file__, str(folder)], input=b"", capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert sorted(path.name for path in folder.iterdir() if path.name != file) == ["lock"]


def test_of_two_shims_for_one_pod_one_leaves(tmp_path: Path) -> None:
    lock = shim.try_lock(str(tmp_path / "lock"))
    assert lock is not None
    done = subprocess.run([sys.executable, shim.__file__, str(tmp_path)], input=b"", capture_output=True, check=True)
    assert done.stdout == b""
    os.close(lock)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_what_a_kill_left_half_made_is_cleared(closed: Bench) -> None:
    (closed.root / "objects/.half-made").mkdir()
    (closed.root / "ended/.half-removed").mkdir()
    take_over(closed)
    assert not list(closed.root.glob("*/.*"))
