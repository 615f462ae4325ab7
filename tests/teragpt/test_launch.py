from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import teragpt
from teragpt.config import ConfigError
from teragpt.launcher import agent
from tests.teragpt.launchers import Parent

ROOT = Path(teragpt.__file__).parents[1]
OURS = re.compile(r"PET_|TERAGPT_|MASTER_|RANK$|WORLD_SIZE$|LOCAL_|OMP_")
PROGRAM = ("-m", "teragpt.launch")
PATIENCE_S = 60


class Launcher:
    """A launcher in a process of its own, with the folder that it and its ranks work in."""

    def __init__(self, parent: Parent, folder: Path, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self.folder = folder
        self.log = folder / "termination"
        base = {name: value for name, value in os.environ.items() if not OURS.match(name)}
        ours = {"PYTHONPATH": str(ROOT), "TERAGPT_TERMINATION_LOG": str(self.log)}
        self.process = parent.start(command, folder, {**base, **ours, **environ})

    def end(self) -> tuple[int, str, str]:
        """Exit code, stdout and stderr, once it has ended."""
        return self.process.end(PATIENCE_S)

    @property
    def message(self) -> dict[str, Any]:
        """The termination message."""
        assert self.log.stat().st_size <= 4096
        return dict(json.loads(self.log.read_text()))


class Pods:
    """Starts launchers and leaves none running."""

    def __init__(self, parent: Parent, folder: Path) -> None:
        self.parent, self.folder = parent, folder
        self.launchers: list[Launcher] = []

    def launch(self, script: str, *options: str, environ: Mapping[str, str] | None = None) -> Launcher:
        """Run a Python script in every rank."""
        (self.folder / "rank.py").write_text(script)
        return self.start(*PROGRAM, *options, "rank.py", environ=environ)

    def start(self, *command: str, environ: Mapping[str, str] | None = None) -> Launcher:
        """Run a launcher, or what stands for one."""
        self.launchers.append(Launcher(self.parent, self.folder, command, environ or {}))
        return self.launchers[-1]


@pytest.fixture(scope="module")
def parent() -> Iterator[Parent]:
    made = Parent(ROOT)
    yield made
    made.close()


@pytest.fixture
def pods(parent: Parent, tmp_path: Path) -> Iterator[Pods]:
    started = Pods(parent, tmp_path)
    yield started
    for launcher in started.launchers:
        launcher.process.send_signal(signal.SIGKILL)
        launcher.end()


def appeared(path: Path) -> str:
    """The text of a file that somebody is about to write."""
    deadline = time.monotonic() + PATIENCE_S
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)
    return path.read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


FAILS = """
import os, sys, time
rank = int(os.environ["RANK"])
print("step 120/200 | loss 3.1" if rank == 0 else "why", flush=True)
if rank == 1:
    while not os.path.exists("seen"): time.sleep(0.01)
    {end}
open("seen", "w").close()
time.sleep(60)
"""


@pytest.mark.unmeasured
@pytest.mark.parametrize(
    ("end", "code", "name", "reason"),
    [
        ("sys.exit(2)", 2, None, "ConfigError"),
        ("sys.exit(3)", 3, None, "Diverged"),
        ("sys.exit(143)", 143, None, "Stopped"),
        ("raise OSError(28, 'No space left on device')", 1, None, "DiskFull"),
        ("os.kill(os.getpid(), 9)", 137, "SIGKILL", "Killed"),
        ("os.kill(os.getpid(), 11)", 139, "SIGSEGV", "Crash"),
    ],
)
def test_the_launcher_ends_as_its_first_failing_rank(
    pods: Pods, end: str, code: int, name: str | None, reason: str
) -> None:
    launcher = pods.launch(FAILS.format(end=end), "--nproc-per-node=2")
    ended, out, err = launcher.end()
    assert ended == code
    assert "step 120/200 | loss 3.1\n" in out
    assert "[rank 1] why\n" in out
    how = f"{name} (code {code})" if name else f"exit code {code}"
    assert err == f"[launch] rank 1 ended first: {reason}, {how} at step 120\n"
    message = launcher.message
    assert (message["rank"], message["code"], message["signal"], message["reason"]) == (1, code, name, reason)
    assert message["step"] == 120
    assert message["last_lines"][0] == "why"
    assert abs(message["time"] - time.time()) < PATIENCE_S


ALL_REDUCE = """
import os, torch, torch.distributed as dist
from teragpt.launcher.environment import read_world
world = read_world(os.environ)
dist.init_process_group("gloo", rank=world.rank, world_size=world.world_size)
total = torch.tensor([float(world.rank + 1)])
dist.all_reduce(total)
print("total", total.item(), flush=True)
dist.destroy_process_group()
"""


@pytest.mark.unmeasured
def test_ranks_meet_and_finish(pods: Pods) -> None:
    launcher = pods.launch(ALL_REDUCE, "--nproc-per-node=2")
    code, out, err = launcher.end()
    assert (code, err) == (0, "")
    assert sorted(out.splitlines()) == ["[rank 1] total 3.0", "total 3.0"]
    assert not launcher.log.exists()


SHOW = """
import os
from teragpt.launcher.environment import read_world
print(os.environ["PET_NODE_RANK"], read_world(os.environ), os.environ["OMP_NUM_THREADS"], *os.sys.argv[1:], flush=True)
"""


def kubeflow(node: int, nodes: int, processes: int, port: int) -> dict[str, str]:
    """Kubeflow's v1 operator's variables (its envvar.go), but for the address."""
    master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(node)}
    elastic = {f"PET_{name}": value for name, value in master.items() if name != "RANK"}
    counts = {"PET_NODE_RANK": str(node), "PET_NPROC_PER_NODE": str(processes), "PET_NNODES": str(nodes)}
    return {"PYTHONUNBUFFERED": "1", "WORLD_SIZE": str(nodes * processes), **master, **elastic, **counts}


@pytest.mark.unmeasured
def test_two_pods_of_kubeflows_operator_make_one_world(pods: Pods) -> None:
    port = free_port()
    nodes = [pods.launch(SHOW, environ=kubeflow(node, 2, 2, port)) for node in range(2)]
    threads = max(1, agent.cores() // 2)
    for node, launcher in enumerate(nodes):
        code, out, err = launcher.end()
        assert (code, err) == (0, "")
        assert set(out.splitlines()) == {
            f"{f'[rank {rank}] ' if rank else ''}{node} World(rank={rank}, local_rank={rank % 2}, world_size=4, "
            f"local_world_size=2, master_addr='127.0.0.1', master_port={port}) {threads}"
            for rank in (2 * node, 2 * node + 1)
        }


SLOW = """
import os, time
from torch.distributed.elastic.utils import store
from teragpt.launch import main
joined = store._barrier_nonblocking
def slowly(**options):
    key = joined(**options)
    time.sleep(1)
    return key
if os.environ["PET_NODE_RANK"] == "1":
    store._barrier_nonblocking = slowly
main(os.sys.argv[1:])
"""


@pytest.mark.unmeasured
def test_the_node_that_others_wait_on_leaves_last(pods: Pods) -> None:
    port = free_port()
    (pods.folder / "slow.py").write_text(SLOW)
    (pods.folder / "rank.py").write_text(SHOW)
    for node in range(2):
        pods.start("slow.py", "rank.py", environ=kubeflow(node, 2, 1, port))
    for launcher in pods.launchers:
        code, _, err = launcher.end()
        assert (code, err) == (0, "")


def test_one_pod_of_kubeflows_operator_meets_itself(pods: Pods) -> None:
    port = free_port()
    code, out, _ = pods.launch(SHOW, environ=kubeflow(0, 1, 1, port)).end()
    assert code == 0
    assert (
        f"World(rank=0, local_rank=0, world_size=1, local_world_size=1, master_addr='127.0.0.1', master_port={port})"
        in out
    )


SAVES = """
import os, signal, sys, time
def save(*_):
    print("checkpoint written", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, save if sys.argv[1:] != ["deaf"] or os.environ["RANK"] == "0" else signal.SIG_IGN)
open("ready" + os.environ["RANK"], "w").write(str(os.getpid()))
time.sleep(60)
"""


def test_told_to_stop_the_ranks_write_a_checkpoint(pods: Pods) -> None:
    launcher = pods.launch(SAVES, "--nproc-per-node=2")
    for rank in range(2):
        appeared(pods.folder / f"ready{rank}")
    launcher.process.send_signal(signal.SIGTERM)
    code, out, _ = launcher.end()
    assert code == 143
    assert sorted(out.splitlines()) == ["[rank 1] checkpoint written", "checkpoint written"]
    assert launcher.message["reason"] == "Stopped"


HANGS = """
import os, signal, threading, time
from teragpt.health import evidence
evidence.prepare()
signal.signal(signal.SIGTERM, lambda *_: None)  # noted, and looked at by nobody
done = threading.Lock()
def waits_for_a_peer():
    done.acquire()
    open("ready" + os.environ["RANK"], "w").write("1")
    done.acquire()
waits_for_a_peer()
"""


@pytest.mark.unmeasured
def test_ranks_that_hang_print_where_they_stand_when_asked_and_before_they_are_killed(pods: Pods) -> None:
    launcher = pods.launch(HANGS, "--nproc-per-node=2", environ={"TERAGPT_GRACE_S": "15"})
    for rank in range(2):
        appeared(pods.folder / f"ready{rank}")
    launcher.process.send_signal(signal.SIGUSR2)
    launcher.process.send_signal(signal.SIGTERM)
    code, out, _ = launcher.end()
    assert code == 137
    for prefix in ("  File", "[rank 1]   File"):
        told = [line for line in out.splitlines() if line.startswith(prefix) and "in waits_for_a_peer" in line]
        assert len(told) == 2, out
    assert any("in waits_for_a_peer" in line for line in launcher.message["last_lines"])


def test_told_to_stop_before_any_rank_runs_it_does_not_wait_for_other_nodes(pods: Pods) -> None:
    port = free_port()
    launcher = pods.launch(SHOW, environ=kubeflow(1, 2, 1, port))
    with socket.create_server(("127.0.0.1", port)) as master:
        master.settimeout(PATIENCE_S)
        connection, _ = master.accept()  # it now waits for the master's word
        launcher.process.send_signal(signal.SIGTERM)
        code, out, _ = launcher.end()
        connection.close()
    assert (code, out) == (143, "")
    assert (launcher.message["rank"], launcher.message["reason"]) == (None, "Stopped")


@pytest.mark.unmeasured
def test_ranks_end_with_a_launcher_that_is_killed(pods: Pods) -> None:
    launcher = pods.launch(SAVES, "--nproc-per-node=2")
    pids = [int(appeared(pods.folder / f"ready{rank}")) for rank in range(2)]
    launcher.process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while any(running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def running(pid: int) -> bool:
    """Whether the process lives; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_port_in_use_is_said(pods: Pods) -> None:
    with socket.create_server(("", 0), dualstack_ipv6=False) as taken:
        launcher = pods.launch(SHOW, environ=kubeflow(0, 2, 1, taken.getsockname()[1]))
        code, _, err = launcher.end()
    assert code == 1
    assert err.startswith("error: ")
    assert "in use" in err
    assert (launcher.message["rank"], launcher.message["reason"]) == (None, "PortInUse")


REPLACED = """
import os
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from teragpt.launch import main
StaticTCPRendezvous.num_nodes_waiting = lambda self: int(os.path.exists("ready0"))
main(os.sys.argv[1:])
"""


def test_a_node_that_is_replaced_does_not_restart_the_ranks(pods: Pods) -> None:
    (pods.folder / "replaced.py").write_text(REPLACED)
    (pods.folder / "rank.py").write_text(SAVES)
    code, out, err = pods.start("replaced.py", f"--master-port={free_port()}", "rank.py").end()
    assert (code, out) == (1, "checkpoint written\n")
    assert err == (
        "error: RuntimeError: another node came after the ranks had started: restarts belong to the control plane\n"
    )


def test_a_program_that_cannot_run_is_bad_input(pods: Pods) -> None:
    code, out, _ = pods.start(*PROGRAM, "--no-python", "no-such-program").end()
    assert code == 2
    assert "error: program: got 'no-such-program'" in out


def test_a_bad_grace_period_is_refused_before_torch_is_imported(pods: Pods) -> None:
    launcher = pods.launch(SHOW, environ={"TERAGPT_GRACE_S": "soon"})
    code, out, err = launcher.end()
    assert (code, out) == (2, "")
    assert err == "error: TERAGPT_GRACE_S: got 'soon'; allowed: seconds from 0 to 86400\n"
    assert (launcher.message["reason"], launcher.message["code"]) == ("ConfigError", 2)


def test_a_termination_message_that_cannot_be_written_is_no_other_failure(pods: Pods) -> None:
    nowhere = {"TERAGPT_GRACE_S": "-1", "TERAGPT_TERMINATION_LOG": "no/such/folder"}
    code, _, err = pods.launch(SHOW, environ=nowhere).end()
    assert code == 2
    assert "[launch] no termination message: no/such/folder: No such file or directory\n" in err


@pytest.mark.unmeasured
@pytest.mark.parametrize("code", [0, 3])
def test_on_a_full_disk_the_code_and_the_message_are_the_ranks_all_the_same(tmp_path: Path, code: int) -> None:
    """Not as a fork: what is at stake is how Python itself ends."""
    (tmp_path / "rank.py").write_text(f"print('step 7/9', flush=True); print('why'); raise SystemExit({code})")
    log = tmp_path / "termination"
    log.write_bytes(bytes(4096))  # as the local cluster sets it aside
    base = {name: value for name, value in os.environ.items() if not OURS.match(name)}
    environ = {**base, "PYTHONPATH": str(ROOT), "TERAGPT_TERMINATION_LOG": str(log)}
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, *PROGRAM, "rank.py"]
        done = subprocess.run(command, cwd=tmp_path, env=environ, stdout=full, stderr=full, check=False)
    assert done.returncode == code
    message = json.loads(log.read_bytes()) if code else {}
    assert message.get("last_lines", []) == (["step 7/9", "why"] if code else [])


def test_the_launcher_itself_starts_without_torch() -> None:
    heavy = {"torch", "numpy"}
    code = f"import sys; import teragpt.launch; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if OURS.match(name)]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PET_NNODES", "x"),
        ("PET_NNODES", "0"),
        ("PET_NNODES", "1:4"),
        ("PET_NNODES", "1:2:3"),
        ("PET_NODE_RANK", "1"),
        ("PET_NODE_RANK", "-1"),
        ("PET_NPROC_PER_NODE", "0"),
        ("PET_NPROC_PER_NODE", "-2"),
        ("PET_NPROC_PER_NODE", "eight"),
        ("PET_MASTER_PORT", "70000"),
        ("PET_MAX_RESTARTS", "3"),
        ("PET_RDZV_CONF", "x"),
        ("PET_LOG_DIR", "rank.py"),
    ],
)
def test_bad_options_are_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rank.py").touch()
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(ConfigError, match=re.escape(value)):
        agent.read_options(["rank.py"])


def test_options_that_torchrun_does_not_read_are_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="options: got ''; allowed: the following arguments are required"):
        agent.read_options([])
    monkeypatch.setenv("PET_NODE_RANK", "x")
    with pytest.raises(ConfigError, match=r"options: got 'rank.py'; allowed: .*node_rank: invalid int value: 'x'"):
        agent.read_options(["rank.py"])


def test_options_mean_what_they_mean_to_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    config, program, rest = agent.read_options(["--nproc-per-node=2", "-m", "teragpt.train", "--size", "tiny"])
    assert (config.nproc_per_node, config.min_nodes, config.max_nodes, config.max_restarts) == (2, 1, 1, 0)
    assert (config.rdzv_backend, config.rdzv_endpoint) == ("c10d", "localhost:0")
    assert [program, *rest] == [sys.executable, "-u", "-m", "teragpt.train", "--size", "tiny"]
    assert os.environ["OMP_NUM_THREADS"] == "3"
    config, _, _ = agent.read_options(["--nnodes=2", "--node-rank=1", "--master-addr=n0", "rank.py"])
    assert (config.rdzv_backend, config.rdzv_endpoint) == ("static", "n0:29500")


def test_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = len(os.sched_getaffinity(0))
    limit = tmp_path / "cpu.max"
    assert agent.cores(str(limit)) == here
    for quota, count in {"max 100000": here, "100000 100000": 1, "1000 100000": 1, "9900000 100000": here}.items():
        limit.write_text(quota + "\n")
        assert agent.cores(str(limit)) == count
    monkeypatch.setattr(agent, "cores", lambda: 9)
    assert [agent.threads(count) for count in ("1", "2", "4", "100")] == [9, 4, 2, 1]


def test_ranks_print_to_files_where_the_options_say_so(pods: Pods) -> None:
    launcher = pods.launch("print('kept')", "--nproc-per-node=2", "--redirects=1:3", "--log-dir=logs")
    code, out, _ = launcher.end()
    assert (code, out) == (0, "kept\n")
    assert [path.read_text() for path in (pods.folder / "logs").rglob("1/stdout.log")] == ["kept\n"]


@pytest.mark.unmeasured
def test_help_is_no_failure(pods: Pods) -> None:
    code, out, _ = pods.start(*PROGRAM, "--help").end()
    assert code == 0
    assert "python -m teragpt.launch" in out


LEAVES = """
import atexit, os, signal, sys
from teragpt.launch import main
atexit.register(lambda: [os.kill(os.getpid(), number) for number in (signal.SIGTERM, signal.SIGINT)])
main(["rank.py", *sys.argv[1:]])
"""


@pytest.mark.parametrize("code", [0, 2])
def test_told_to_stop_as_it_leaves_the_launcher_says_how_its_ranks_ended(pods: Pods, code: int) -> None:
    (pods.folder / "rank.py").write_text("import sys; sys.exit(int(sys.argv[1]))", "utf-8")
    (pods.folder / "leaves.py").write_text(LEAVES, "utf-8")
    assert pods.start("leaves.py", str(code)).end()[0] == code


def test_signals_reach_the_launcher_as_its_own(pods: Pods) -> None:
    launcher = pods.launch(SAVES)
    appeared(pods.folder / "ready0")
    launcher.process.send_signal(signal.SIGINT)
    assert launcher.end()[0] == 143
