"""What a pod's processes see, and how they end."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from controlplane.clusters.local import LocalCluster, Machine, shim
from controlplane.render import render
from tests.controlplane.clusters.local.conftest import MACHINE, Bench, until

POLITE = """
import signal, time
signal.signal(15, lambda *_: (print("bye"), exit(143)))
print("up", flush=True)
time.sleep(999)
"""
CHILD = "import subprocess, time; subprocess.Popen(['sleep', '999'], env={}, start_new_session=True); time.sleep(999)"


def environ(pid: int) -> dict[str, str]:
    """The environment that a running process was started with."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().rstrip(b"\0").split(b"\0")
    return dict(entry.decode().split("=", 1) for entry in entries)


def sleepers() -> set[int]:
    found = set()
    for pid in shim.processes():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may have ended since
            if Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x00999\x00":
                found.add(pid)
    return found


@pytest.mark.parametrize(("nodes", "processes"), tuple(itertools.product((1, 2), (1, 2))))
def test_each_nodes_environment_is_the_operators_but_for_the_address(bench: Bench, nodes: int, processes: int) -> None:
    attempt = bench.attempt(
        "env", "import time; time.sleep(999)", nodes=nodes, processes_per_node=processes, env={"MINE": "1"}
    )
    bench.cluster.create(render(attempt))
    bench.in_phase("env", "Running")
    port = json.loads((bench.root / "objects/env/admitted.json").read_text())["port"]
    for rank, pod in enumerate(["master-0", "worker-0"][:nodes]):
        assert environ(bench.process("env", pod)) == {
            "PATH": os.environ["PATH"],
            "OMP_NUM_THREADS": "1",
            "MINE": "1",
            "TERAGPT_RUN_ID": "run_env",
            "TERAGPT_ATTEMPT": "1",
            "TERAGPT_SPEC": "{}",
            "TERAGPT_RUN_URL": "http://127.0.0.1:1/v1/runs/x",
            "TERAGPT_GRACE_S": "10",
            "PYTHONUNBUFFERED": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(nodes * processes),
            "RANK": str(rank),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
            "PET_NODE_RANK": str(rank),
            "PET_NPROC_PER_NODE": str(processes),
            "PET_NNODES": str(nodes),
            "TERAGPT_TERMINATION_LOG": str(bench.folder("env", pod) / "termination"),
        }


def test_the_token_reaches_the_process_and_no_file_that_outlives_the_object(bench: Bench) -> None:
    attempt = bench.attempt("token", "import time; time.sleep(999)", run_token="s3cret")
    bench.cluster.create(render(attempt), {"token": "s3cret"})
    bench.pod("token", "Running")
    assert environ(bench.process("token"))["TERAGPT_RUN_TOKEN"] == "s3cret"
    holders = [path for path in bench.root.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]
    assert [(path.name, path.stat().st_mode & 0o777) for path in holders] == [("secret.json", 0o600)]
    bench.cluster.delete("token")
    bench.gone("token")
    assert not [path for path in bench.root.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]


def test_a_pod_runs_its_command_with_its_arguments_in_its_own_folder(bench: Bench) -> None:
    manifest = render(
        bench.attempt(
            "args", "", command=("python", "-c", "import os, sys; print(sys.executable, sys.argv, os.getcwd())")
        )
    )
    manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]["args"] = ["a", "b c"]
    bench.cluster.create(manifest)
    bench.pod("args", "Succeeded")
    folder = bench.folder("args") / "work"
    assert bench.cluster.logs("args", "args-master-0").decode() == f"{sys.executable} ['-c', 'a', 'b c'] {folder}\n"


def test_output_and_errors_share_one_log_that_is_read_by_offset_also_after_deletion(bench: Bench) -> None:
    bench.create("logs", "import sys; print('out', flush=True); print('err', file=sys.stderr)")
    bench.pod("logs", "Succeeded")
    assert bench.cluster.logs("logs", "logs-master-0") == b"out\nerr\n"
    assert bench.cluster.logs("logs", "logs-master-0", 4, 2) == b"er"
    assert bench.cluster.logs("logs", "logs-master-0", 100) == b""
    bench.cluster.delete("logs")
    bench.gone("logs")
    assert bench.cluster.logs("logs", "logs-master-0", 4) == b"err\n"
    bench.cluster.forget("logs")
    assert bench.cluster.logs("logs", "logs-master-0") == b""


@pytest.mark.parametrize(("name", "pod"), [("absent", "absent-master-0"), ("../x", "y"), ("logs", "../../lock")])
def test_logs_of_what_does_not_exist_are_empty(bench: Bench, name: str, pod: str) -> None:
    assert bench.cluster.logs(name, pod) == b""


@pytest.mark.parametrize("code", [0, 2, 3, 143])
def test_exit_codes_come_out_as_they_are(bench: Bench, code: int) -> None:
    bench.create("code", f"print('the end'); raise SystemExit({code})")
    pod = bench.pod("code", "Failed" if code else "Succeeded")
    assert (pod.exit_code, pod.signal, pod.reason) == (code, None, "Error" if code else None)
    assert pod.message == ("the end" if code else None)
    assert pod.started_at
    assert pod.finished_at
    assert pod.started_at <= pod.finished_at


def test_a_signal_comes_out_as_128_and_its_number_with_its_name(bench: Bench) -> None:
    bench.create("shot", "import os; os.kill(os.getpid(), 9)")
    pod = bench.pod("shot", "Failed")
    assert (pod.exit_code, pod.signal) == (137, "SIGKILL")


def test_a_termination_message_in_json_is_parsed(bench: Bench) -> None:
    said = {"rank": 1, "code": 3, "signal": None, "reason": "Diverged", "step": 7, "last_lines": ["ö"]}
    bench.create(
        "said", f"import os; open(os.environ['TERAGPT_TERMINATION_LOG'], 'w').write({json.dumps(said)!r}); exit(3)"
    )
    pod = bench.pod("said", "Failed")
    assert (pod.termination, pod.message) == (said, None)


@pytest.mark.parametrize("text", ["plain words", "[1, 2]"])
def test_any_other_termination_message_is_shown_as_it_is(bench: Bench, text: str) -> None:
    bench.create("words", f"import os; open(os.environ['TERAGPT_TERMINATION_LOG'], 'w').write({text!r})")
    pod = bench.pod("words", "Succeeded")
    assert (pod.termination, pod.message) == (None, text)


@pytest.mark.parametrize("program", ["/nowhere/program", "/etc/passwd"])
def test_a_program_that_cannot_start_says_which(bench: Bench, program: str) -> None:
    bench.create("absent", command=(program,))
    pod = bench.pod("absent", "Failed")
    assert (pod.exit_code, pod.reason) == (127, "StartError")
    assert program in (pod.message or "")


def test_deletion_gives_the_grace_period(bench: Bench) -> None:
    bench.create("polite", POLITE)
    until(lambda: bench.cluster.logs("polite", "polite-master-0") == b"up\n")
    bench.cluster.delete("polite")
    assert (bench.job("polite") is None) or bench.job("polite").deleting  # type: ignore[union-attr]
    bench.gone("polite")
    assert bench.cluster.logs("polite", "polite-master-0") == b"up\nbye\n"
    end = json.loads((bench.root / "ended/polite/polite-master-0/exit.json").read_text())
    assert (end["code"], end["signal"]) == (143, None)


def test_what_ignores_the_grace_period_is_killed_with_all_its_descendants(bench: Bench) -> None:
    before = sleepers()
    code = CHILD.replace(
        "import subprocess", "import signal, subprocess; signal.signal(15, signal.SIG_IGN)\nimport subprocess"
    )
    bench.create("deaf", code, grace_s=1)
    bench.pod("deaf", "Running")
    until(lambda: sleepers() - before)
    bench.cluster.delete("deaf")
    bench.gone("deaf")
    end = json.loads((bench.root / "ended/deaf/deaf-master-0/exit.json").read_text())
    assert end["signal"] == "SIGKILL"
    assert end["finished"] - end["started"] >= 1
    assert not sleepers() - before


def test_nothing_outlives_the_first_process(bench: Bench) -> None:
    before = sleepers()
    bench.create("orphan", CHILD.replace("time.sleep(999)", "time.sleep(0.1)"))
    bench.pod("orphan", "Succeeded")
    assert not sleepers() - before


@pytest.mark.parametrize("victims", ["shim", "shim and guard"])
def test_a_pod_whose_shim_is_killed_is_lost_and_nothing_of_it_lives(bench: Bench, victims: str) -> None:
    before = sleepers()
    bench.create("lost", CHILD.replace("env={}, ", ""))
    bench.pod("lost", "Running")
    until(lambda: sleepers() - before)
    pid = json.loads((bench.folder("lost") / "pod.json").read_text())["pid"]
    guard = shim.processes()[pid].parent
    for victim in [guard, pid] if victims == "shim and guard" else [pid]:
        os.kill(victim, signal.SIGKILL)
    pod = bench.pod("lost", "Failed")
    assert (pod.reason, pod.exit_code, pod.message) == ("Lost", None, "its processes were killed from outside")
    assert not sleepers() - before
    assert not bench.processes("lost")


def test_a_pod_whose_guard_is_killed_goes_on(bench: Bench) -> None:
    bench.create("on", "import time\nwhile True: time.sleep(0.01)")
    bench.pod("on", "Running")
    pid = json.loads((bench.folder("on") / "pod.json").read_text())["pid"]
    os.kill(shim.processes()[pid].parent, signal.SIGKILL)
    os.kill(bench.process("on"), signal.SIGTERM)
    assert bench.pod("on", "Failed").signal == "SIGTERM"


def test_the_end_of_one_node_ends_the_others(bench: Bench) -> None:
    code = "import os, sys, time\nif os.environ['RANK'] == '1': sys.exit(3)\ntime.sleep(999)"
    bench.create("pair", code, nodes=2)
    master, worker = bench.in_phase("pair", "Failed")
    assert (worker.exit_code, master.signal) == (3, "SIGTERM")
    assert worker.finished_at
    assert master.finished_at
    assert worker.finished_at <= master.finished_at


def test_workers_end_with_the_master(bench: Bench) -> None:
    bench.create("pair", "import os, time\nif os.environ['RANK'] == '1': time.sleep(999)", nodes=2)
    until(lambda: len(bench.pods("pair")) == 2 and all(pod.finished_at for pod in bench.pods("pair")))
    master, worker = bench.pods("pair")
    assert (master.phase, worker.signal) == ("Succeeded", "SIGTERM")


def test_gpus_are_given_out_by_name_and_none_to_who_asked_for_none(tmp_path: Path) -> None:
    machine = Machine(cpus=4, memory=8 << 30, gpus=("0", "1", "2"), gpu_type="NVIDIA X")
    bench = Bench(tmp_path / "cluster", machine=machine)
    for name, gpus in (("two", 2), ("none", 0), ("one", 1)):
        bench.create(name, gpus_per_node=gpus)
        bench.pod(name, "Running")
    seen = {name: environ(bench.process(name))["CUDA_VISIBLE_DEVICES"] for name in ("two", "none", "one")}
    assert seen == {"two": "0,1", "none": "", "one": "2"}
    assert (bench.cluster.capacity().gpus, bench.cluster.capacity().free_gpus) == (3, 0)
    bench.create("more", gpus_per_node=1)
    until(lambda: bench.pods("more")[0].message == "needs 1 gpus, 0 free")
    bench.reopen()
    bench.cluster.delete("one")
    assert environ(bench.process("more"))["CUDA_VISIBLE_DEVICES"] == "2"
    bench.finish()


def test_a_pod_beyond_its_memory_is_told_with_its_peak(bench: Bench) -> None:
    greedy = "import time; held = bytearray(b'x') * (300 << 20); time.sleep(99)"
    bench.create("greedy", greedy, memory_per_node=200 << 20)
    bench.create("estimated", greedy, memory_per_node=200 << 20, memory_limited=False)
    pod = bench.pod("greedy", "Failed")
    assert (pod.reason, pod.exit_code, pod.signal) == ("OOMKilled", 137, "SIGKILL")
    assert re.fullmatch(r"held [23]\d\d MiB of memory at its peak; allowed: 200 MiB", pod.message or "")
    assert bench.pods("estimated")[0].phase == "Running"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="it takes two cores to tell them apart")
def test_whole_cpus_are_cores_of_its_own_also_after_a_restart(tmp_path: Path) -> None:
    here = sorted(os.sched_getaffinity(0))[:2]
    bench = Bench(tmp_path / "cluster", machine=Machine(cpus=2, memory=8 << 30, cores=tuple(here)))
    seen: dict[str, set[int]] = {}
    for name, cpus in (("first", 1), ("part", 0.5), ("second", 1)):
        bench.create(name, cpus_per_node=cpus)
        if name == "second":  # it waits until the other has gone, which has no core to itself
            bench.reopen()
            bench.cluster.delete("part")
        bench.pod(name, "Running")
        seen[name] = os.sched_getaffinity(bench.process(name))
    assert seen == {"first": {here[0]}, "part": os.sched_getaffinity(0), "second": {here[1]}}
    bench.finish()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["/bin/sh", "-c", "echo -n 'error: No space left on device'"], "No space left on device"),
        (["/nowhere/python"], "[Errno 2] No such file or directory: '/nowhere/python'"),
        (["/bin/true"], "its process ended 3 times before it could start"),
    ],
)
def test_a_pod_whose_shim_cannot_start_fails_and_says_why(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, command: list[str], message: str
) -> None:
    monkeypatch.setattr("controlplane.clusters.local.pod.SHIM", command)
    bench.create("full")
    pod = bench.pod("full", "Failed")
    assert (pod.reason, pod.message) == ("StartError", message)


def test_the_default_environment_is_the_hosts_paths_and_caches_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", "/somewhere")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    cluster = LocalCluster(tmp_path, machine=MACHINE)
    assert cluster._environment["HF_HOME"] == "/somewhere"
    assert cluster._environment["PATH"].startswith(str(Path(sys.executable).parent))
    assert "AWS_SECRET_ACCESS_KEY" not in cluster._environment
    cluster.close()
