from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from teragpt.config import ConfigError, Problem
from teragpt.launcher import supervise
from teragpt.launcher.supervise import STOP_SIGNALS, Exit, Rank, Supervisor, fate, likely_cause
from teragpt.launcher.termination import Ending

DEAF = "trap '' TERM"  # a shell that does not end when told


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A supervisor leaves stop signals ignored, for its process ends with it; this one goes on."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def begin(supervisor: Supervisor, scripts: Sequence[str], first: int = 0) -> list[subprocess.Popen[bytes]]:
    """Run shell scripts as the ranks from `first` on, in sessions of their own as torchrun's agent does."""
    processes: list[subprocess.Popen[bytes]] = []
    for script, pipe in zip(scripts, supervisor.pipes(range(first, first + len(scripts))), strict=True):
        with Path(pipe).open("wb") as output:
            command = ["sh", "-c", script]
            processes.append(subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True))
    supervisor.started([process.pid for process in processes])
    while not (supervisor.stopping or all(rank.pid for rank in supervisor.ranks)):
        time.sleep(0.001)  # the main thread takes note of them
    return processes


def pod(*scripts: str, first: int = 0) -> tuple[Callable[[], None], Supervisor, io.BytesIO]:
    out = io.BytesIO()
    supervisor = Supervisor(30, out)
    started = Path.cwd() / "started"

    def agent() -> None:
        processes = begin(supervisor, scripts, first)
        started.touch()
        supervisor.over.wait()
        for process in processes:
            process.wait()

    return agent, supervisor, out


def run(*scripts: str, first: int = 0) -> tuple[Ending, str]:
    agent, supervisor, out = pod(*scripts, first=first)
    return supervisor.run(agent), out.getvalue().decode("utf-8", "replace")


def test_rank_0_is_passed_on_as_it_is_and_others_with_their_number() -> None:
    _, printed = run("echo one; echo two >&2", "sleep 0.1; echo three; printf four")
    assert printed == "one\ntwo\n[rank 1] three\n[rank 1] four\n"
    _, printed = run("echo five", first=8)
    assert printed == "[rank 8] five\n"


def test_a_line_of_any_length_and_bytes_of_any_kind_pass() -> None:
    _, printed = run("head -c 200000 /dev/zero | tr '\\0' x; printf '\\nend'")
    assert printed.replace("\n", "") == "x" * 200_000 + "end"
    agent, supervisor, out = pod("printf '\\377\\n'", first=1)
    supervisor.run(agent)
    assert out.getvalue() == b"[rank 1] \xff\n"


def test_lines_are_passed_on_while_ranks_run() -> None:
    agent, supervisor, out = pod("echo now; read _ < fifo", "until grep -q go gate; do sleep 0.02; done")
    gate, fifo = Path("gate"), Path("fifo")
    os.mkfifo(fifo)
    gate.touch()

    def open_when_seen() -> None:
        while b"now" not in out.getvalue():
            time.sleep(0.01)
        gate.write_text("go")
        fifo.write_text("go\n")

    threading.Thread(target=open_when_seen, daemon=True).start()
    assert supervisor.run(agent) == Ending(0)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("code", [1, 2, 3, 143])
def test_the_first_failing_rank_is_named_and_not_those_that_were_stopped_for_it(code: int) -> None:
    waiting = "trap 'exit 1' TERM; touch ready; sleep 30 & wait"
    ending, printed = run(waiting, f"until test -e ready; do sleep 0.01; done; echo step 41/99; echo why; exit {code}")
    assert (ending.rank, ending.code, ending.signal, ending.step) == (1, code, None, 41)
    assert ending.lines == ("step 41/99", "why")
    assert "[rank 1] why" in printed


@pytest.mark.parametrize("name", ["SEGV", "KILL", "TERM", "ABRT"])
def test_a_signal_comes_out_as_128_more(name: str) -> None:
    number = signal.Signals[f"SIG{name}"]
    ending, _ = run("sleep 30", f"kill -{name} $$", first=2)
    assert (ending.rank, ending.code, ending.signal) == (3, 128 + number, number)


def test_a_peer_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "FAILURE_GRACE_S", 0.2)
    ending, _ = run(f"{DEAF}; touch ready; sleep 30", "until test -e ready; do sleep 0.01; done; exit 3")
    assert (ending.rank, ending.code) == (1, 3)


def test_what_a_rank_leaves_running_ends_with_it() -> None:
    run("sleep 30 & echo $! > left")
    stat = Path("/proc", Path("left").read_text().strip(), "stat")
    deadline = time.monotonic() + 60
    while stat.exists() and stat.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline


TOLD = f"until test -e ready; do sleep 0.01; done; kill -TERM {os.getpid()}; "


@pytest.mark.parametrize(
    ("first", "second", "rank", "code"),
    [
        ("exit 143", "exit 143", None, 143),
        ("exit 0", "exit 0", None, 0),
        ("exit 143", "sleep 0.2; exit 1", 1, 1),
        ("exit 1", "exit 143", 0, 1),
        ("exit 0", "exit 143", 1, 143),
    ],
)
def test_told_to_stop_the_ranks_say_how_it_went(first: str, second: str, rank: int | None, code: int) -> None:
    ending, _ = run(
        f"trap '{first}' TERM; {TOLD} sleep 30 & wait", f"trap '{second}' TERM; touch ready; sleep 30 & wait"
    )
    assert ending.code == code
    assert rank is None or ending.rank == rank


def test_a_rank_that_does_not_stop_in_time_is_killed() -> None:
    agent, supervisor, _ = pod(f"trap 'exit 143' TERM; {TOLD} sleep 30 & wait", f"{DEAF}; touch ready; sleep 30")
    supervisor.grace_s = 0.3
    ending = supervisor.run(agent)
    assert (ending.rank, ending.code, ending.reason) == (1, 137, "Killed")


STACKS = (
    "import faulthandler as f, signal as s, time; f.register(s.SIGUSR2, file=2); s.signal(s.SIGTERM, s.SIG_IGN); "
    "open('ready', 'w').close(); time.sleep(30)"
)


@pytest.mark.parametrize(
    ("first", "seen"),
    [(f"{TOLD} exit 143", 1), ("until test -e ready; do :; done; exit 3", 0)],
    ids=["a stop", "a failure"],  # TOLD has this process's id
)
def test_a_rank_that_does_not_stop_tells_where_it_stands_unless_a_peer_has_failed(
    first: str, seen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "FAILURE_GRACE_S", 0.3)
    agent, supervisor, out = pod(first, f'exec {sys.executable} -c "{STACKS}"')
    supervisor.grace_s = 0.6
    supervisor.run(agent)
    assert out.getvalue().count(b"(most recent call first)") == seen


def test_a_second_interrupt_kills_at_once() -> None:
    begun, interrupt = "until [ -e started ]; do sleep 0.02; done", f"kill -INT {os.getpid()}"
    # The rank hears of the first one as SIGTERM; sent sooner, the second could be one with it.
    ending, _ = run(f"trap '{interrupt}' TERM; {begun}; {interrupt}; while :; do sleep 0.05; done")
    assert ending.code == 137


def test_the_grace_period_leaves_time_for_the_launcher() -> None:
    assert Supervisor(120, io.BytesIO()).grace_s == 110
    assert Supervisor(3, io.BytesIO()).grace_s == 5


def test_a_stop_before_any_rank_runs_needs_no_agent() -> None:
    supervisor = Supervisor(30, io.BytesIO())

    def agent() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(30)

    ending = supervisor.run(agent)
    assert (ending.code, ending.rank, ending.reason) == (143, None, "Stopped")
    assert supervisor.agent.is_alive()


def test_a_stop_while_ranks_are_started_reaches_them() -> None:
    supervisor = Supervisor(30, io.BytesIO())
    script = "trap 'touch told; exit 143' TERM; touch ready; while :; do sleep 0.01; done"

    def agent() -> None:
        (pipe,) = supervisor.pipes([0])
        with Path(pipe).open("wb") as output:
            process = subprocess.Popen(["sh", "-c", script], stdout=output, start_new_session=True)
        while not Path("ready").exists():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)
        while not supervisor.stopping:
            time.sleep(0.001)
        supervisor.started([process.pid])
        supervisor.over.wait()
        process.wait()

    ending = supervisor.run(agent)
    assert (ending.code, ending.rank) == (143, 0)
    assert Path("told").exists()


def test_no_rank_is_started_once_the_pod_has_stopped() -> None:
    supervisor, over = Supervisor(30, io.BytesIO()), threading.Event()
    refused: list[str] = []

    def agent() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        over.wait()
        try:
            supervisor.pipes([0])
        except InterruptedError as error:
            refused.append(str(error))

    assert supervisor.run(agent).code == 143
    over.set()
    supervisor.agent.join()
    assert refused == ["told to stop before any rank was started"]


def test_stop_signals_ignored_from_before_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        ending, _ = run(f"kill -HUP {os.getpid()}; echo on")
        assert ending == Ending(0)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_agent_that_gives_up_takes_its_ranks_along_and_the_blame() -> None:
    supervisor = Supervisor(30, io.BytesIO())

    def lost() -> None:
        processes = begin(supervisor, ["sleep 30", "trap 'exit 1' TERM; sleep 30 & wait"])
        supervisor.end()
        for process in processes:
            process.wait()
        raise ConnectionError("store gone")

    ending = supervisor.run(lost)
    assert (ending.code, ending.rank, ending.lines) == (1, None, ("ConnectionError: store gone",))
    assert supervisor.succeeded() is False


def test_output_that_nobody_reads_does_not_end_the_ranks() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    agent, supervisor, _ = pod("echo lost; exit 3")
    with os.fdopen(writer, "wb", buffering=0) as out:
        supervisor.out = out
        assert supervisor.run(agent).code == 3


def test_of_ranks_seen_to_end_together_the_likely_cause_comes_first() -> None:
    codes = [(0, None), (1, None), (143, signal.SIGTERM), (3, None), (137, signal.SIGKILL), (1, None)]
    ranks = [Rank(number) for number in range(len(codes) + 1)]
    for rank, (code, number) in zip(ranks, codes, strict=False):
        rank.exit = Exit(code, number, 0.0)
    assert [rank.number for rank in sorted(ranks, key=likely_cause)][:4] == [2, 4, 3, 1]
    for rank in ranks:
        os.close(rank.pipe)
        os.close(rank.entrance)


def test_the_agents_failure_is_the_pods() -> None:
    assert fate(None).code == fate(SystemExit(0)).code == 0
    assert fate(SystemExit(2)).code == 2
    assert fate(ConfigError([Problem("RANK", "x", "a number")])).lines == ("RANK: got 'x'; allowed: a number",)
    assert fate(OSError("Address already in use")).reason == "PortInUse"
    assert sys.exc_info() == (None, None, None)
