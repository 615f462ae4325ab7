from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from teragpt.launcher.termination import Ending, oom_kills

RECORDED = Path(__file__).with_name("recorded")


def test_the_message_holds_the_facts() -> None:
    message = json.loads(Ending(3, 2, None, 12.5, 120, ("a", "b")).message())
    assert message == {
        "rank": 2,
        "code": 3,
        "signal": None,
        "reason": "Diverged",
        "step": 120,
        "time": 12.5,
        "last_lines": ["a", "b"],
    }


@pytest.mark.parametrize("character", ["x", "é", "火", "\x00", '"', "\ud800"])
@pytest.mark.parametrize("length", [0, 1, 100, 499, 10_000])
def test_the_message_keeps_the_last_lines_that_fit_in_4096_bytes(character: str, length: int) -> None:
    lines = tuple(f"{number} {character * length}" for number in range(30))
    encoded = Ending(1, 0, lines=lines).message()
    assert len(encoded) <= 4096
    kept = json.loads(encoded)["last_lines"]
    assert [line.split()[0] for line in kept] == [str(30 - back) for back in range(len(kept), 0, -1)]
    assert kept


@pytest.mark.parametrize(
    ("code", "number", "lines", "oom", "reason"),
    [
        (2, None, ("out of memory",), 0, "ConfigError"),
        (2, None, ("error: dim: got 7; allowed: 8; data: got '/d'; allowed: a dataset folder",), 0, "BadData"),
        (2, None, ("error: dim: got 'data: got'; allowed: 8",), 0, "ConfigError"),
        (3, None, (), 0, "Diverged"),
        (143, None, (), 0, "Stopped"),
        (137, signal.SIGKILL, (), 0, "Killed"),
        (137, signal.SIGKILL, (), 1, "OutOfMemory"),
        (139, signal.SIGSEGV, (), 1, "Crash"),
        (1, None, ("torch.OutOfMemoryError: CUDA out of memory.", "exit"), 0, "CudaOutOfMemory"),
        (1, None, ("RuntimeError: CUDA error: out of memory",), 0, "CudaOutOfMemory"),
        (1, None, ("ModuleNotFoundError: No module named 'tqdm'",), 0, "MissingPackage"),
        (
            1,
            None,
            ("[Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7",),
            0,
            "CollectiveTimeout",
        ),
        (1, None, ("no step in 600 s: rank 1 at optim.py:58 reduce",), 0, "CollectiveTimeout"),
        (1, None, ("Timed out waiting 1800000ms for recv operation to complete",), 0, "CollectiveTimeout"),
        (1, None, ("MemoryError",), 0, "OutOfMemory"),
        (1, None, ("OSError: [Errno 28] No space left on device",), 0, "DiskFull"),
        (1, None, ("OSError: [Errno 30] Read-only file system: '/mnt/metrics.jsonl'",), 0, "DiskReadOnly"),
        (1, None, ("EADDRINUSE: address already in use",), 0, "PortInUse"),
        (1, None, ("RuntimeError: [gloo/pair.cc] Connection closed by peer [10.0.0.1]:1",), 0, "PeerLost"),
        (1, None, ("RendezvousTimeoutError: ",), 0, "RendezvousFailed"),
        (1, None, ("ValueError: no",), 0, "Crash"),
    ],
)
def test_the_reason_is_one_stable_word(
    code: int, number: int | None, lines: tuple[str, ...], oom: int, reason: str
) -> None:
    assert Ending(code, 0, number, lines=lines, oom_kills=oom).reason == reason


@pytest.mark.parametrize("recording", sorted(RECORDED.glob("*.log")), ids=lambda path: path.stem)
def test_what_ranks_really_printed_as_they_failed_gives_the_reason(recording: Path) -> None:
    """On H200s, shortened: a card whose memory was taken, and one of two ranks that fell silent."""
    lines = tuple(recording.read_text("utf-8").splitlines())
    assert Ending(1, 0, lines=lines).reason == recording.stem
    assert json.loads(Ending(1, 0, lines=lines).message())["reason"] == recording.stem


def test_an_ending_reads_as_a_sentence() -> None:
    assert str(Ending(139, 1, signal.SIGSEGV, step=7)) == "rank 1 ended first: Crash, SIGSEGV (code 139) at step 7"
    assert str(Ending(128 + 35, 0, 35)) == "rank 0 ended first: Crash, SIG35 (code 163)"
    assert str(Ending(143)) == "no rank was started: Stopped, exit code 143"


def test_kills_for_memory_are_counted_in_our_control_group(tmp_path: Path) -> None:
    cgroup, root = tmp_path / "cgroup", tmp_path / "fs"
    assert oom_kills(str(cgroup), str(root)) == 0
    cgroup.write_text("1:memory:/old\n0::/pods/ours\n")
    assert oom_kills(str(cgroup), str(root)) == 0
    events = root / "pods" / "ours" / "memory.events"
    events.parent.mkdir(parents=True)
    events.write_text("low 0\nhigh 0\noom 4\noom_kill 3\noom_group_kill 1\n")
    assert oom_kills(str(cgroup), str(root)) == 3
    events.write_text("low 0\n")
    assert oom_kills(str(cgroup), str(root)) == 0
