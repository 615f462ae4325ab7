"""The shim as a program of its own, run by this interpreter with everything that a user's has."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.clusters.local import shim
from tests.controlplane.clusters.local.conftest import until

STUBBORN = """
import signal, time
signal.signal(15, lambda *_: print("no", flush=True))
print("up", flush=True)
while True:
    time.sleep(1)
"""


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    yield
    shim.sweep(str(tmp_path / "object/pod" / shim.TERMINATION))


def folder(tmp_path: Path) -> Path:
    pod = tmp_path / "object/pod"
    (pod / shim.WORK).mkdir(parents=True)
    return pod


def launch(pod: Path, code: str, **changes: Any) -> dict[str, Any]:
    record = {
        "argv": [sys.executable, "-c", code],
        "env": {"TERAGPT_TERMINATION_LOG": str(pod / shim.TERMINATION)},
        "cwd": str(pod / shim.WORK),
        "marker": str(pod / shim.TERMINATION),
        "grace_s": 10,
    }
    return {**record, **changes}


def start(pod: Path, record: dict[str, Any]) -> subprocess.Popen[bytes]:
    """A shim that was told what to start."""
    source = os.memfd_create("launch")
    os.write(source, json.dumps(record).encode())
    os.lseek(source, 0, os.SEEK_SET)
    with (pod / shim.LOG).open("ab") as log:
        command = [
            sys.executable,
            "-W",
            "ignore::RuntimeWarning",
            "-m",
            shim.__name__,
            str(pod),
        ]  # imported by the package
        environ = {**os.environ, "PYTHONPATH": str(Path(shim.__file__).parents[3])}
        process = subprocess.Popen(
            command, env=environ, stdin=source, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        )
    os.close(source)
    return process


def end(pod: Path) -> dict[str, Any]:
    return dict(json.loads((pod / shim.EXIT).read_text()))


def test_it_says_started_and_leaves_how_the_pod_ended(tmp_path: Path) -> None:
    pod = folder(tmp_path)
    said, _ = start(pod, launch(pod, "print('hello'); raise SystemExit(5)")).communicate(timeout=20)
    assert said == b"started"
    assert (end(pod)["code"], end(pod)["message"]) == (5, "hello")
    assert json.loads((pod / shim.POD).read_text())["boot"] == shim.identity(os.getpid())["boot"]
    assert sorted(path.name for path in pod.iterdir()) == [
        "exit.json",
        "lock",
        "log",
        "pod.json",
        "termination",
        "work",
    ]


def test_it_passes_sigterm_on_and_then_kills(tmp_path: Path) -> None:
    pod = folder(tmp_path)
    process = start(pod, launch(pod, STUBBORN, grace_s=0.3))
    until(lambda: (pod / shim.LOG).read_bytes() == b"up\n")
    os.kill(json.loads((pod / shim.POD).read_text())["pid"], signal.SIGTERM)
    process.communicate(timeout=20)
    assert (end(pod)["code"], end(pod)["signal"]) == (137, "SIGKILL")
    assert (pod / shim.LOG).read_bytes() == b"up\nno\n"


def test_it_ends_the_orphans_of_the_pod(tmp_path: Path) -> None:
    pod = folder(tmp_path)
    code = "import subprocess; print(subprocess.Popen(['sleep', '998'], start_new_session=True, env={}).pid)"
    start(pod, launch(pod, code, env={"PATH": os.environ["PATH"]})).communicate(timeout=20)
    assert int((pod / shim.LOG).read_text()) not in shim.processes()


def test_its_guard_ends_the_pod_where_it_is_killed(tmp_path: Path) -> None:
    pod = folder(tmp_path)
    process = start(pod, launch(pod, "import subprocess, time; subprocess.Popen(['sleep', '997']); time.sleep(99)"))
    until(lambda: len(list(shim.members(str(pod / shim.TERMINATION)))) == 2)
    os.kill(json.loads((pod / shim.POD).read_text())["pid"], signal.SIGKILL)
    process.communicate(timeout=20)
    assert not list(shim.members(str(pod / shim.TERMINATION)))
    assert not (pod / shim.EXIT).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"argv": ["/nowhere"]}, "/nowhere: No such file or directory"),
        ({"cwd": "/nowhere"}, f"{sys.executable}: No such file or directory"),
        ({"argv": [sys.executable, "\0"]}, f"{sys.executable}: embedded null byte"),
    ],
)
def test_it_says_why_a_command_did_not_start(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    pod = folder(tmp_path)
    start(pod, launch(pod, "", **changes)).communicate(timeout=20)
    assert (end(pod)["reason"], end(pod)["code"], end(pod)["message"]) == ("StartError", 127, message)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, shim.__file__, str(tmp_path / "absent")], capture_output=True, check=False
    )
    assert process.stdout.startswith(b"error: [Errno 2] No such file or directory")


def test_the_record_of_the_end_waits_for_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record = shim._set_record_aside()
    assert os.fstat(record).st_blocks * 512 >= shim.RECORD_BYTES
    answers: list[Any] = [OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "broken"), None]
    real = os.fsync
    monkeypatch.setattr("time.sleep", lambda _: None)

    def fsync(descriptor: int) -> None:
        if answers and (problem := answers.pop(0)):
            raise problem
        real(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    shim._write_record(record, {"code": 0})
    os.close(record)
    assert json.loads(Path(shim.EXIT).read_text()) == {"code": 0}


def test_room_for_the_termination_message_is_set_aside_and_is_no_message(tmp_path: Path) -> None:
    pod = folder(tmp_path)
    look = "import os; raise SystemExit(str(os.stat(os.environ['TERAGPT_TERMINATION_LOG']).st_blocks * 512))"
    start(pod, launch(pod, look)).communicate(timeout=20)
    assert int(end(pod)["message"]) >= shim.MESSAGE_BYTES, "the log's end, where nothing else was said"


def test_a_record_without_a_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record = shim._set_record_aside()
    Path(f"{shim.EXIT}.part").unlink()
    with pytest.raises(FileNotFoundError):
        shim._write_record(record, {"code": 0})
    os.close(record)


def test_a_pod_does_not_start_where_its_end_could_not_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.write", lambda _, data: len(data) // 2)
    with pytest.raises(OSError, match="No space left"):
        shim._set_record_aside()


def test_a_process_is_told_from_every_other() -> None:
    here = shim.identity(os.getpid())
    assert here["start"] == shim.start_of(os.getpid()) > 0
    assert shim.start_of(2**22 + 1) == 0


def test_an_attribute_that_linux_does_not_know_is_an_error() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        shim.prctl(-1, 0)


EATS = """
import os, sys, time
small, large = (bytearray(os.urandom(1)) * (size << 20) for size in (40, int(sys.argv[1])))
print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_what_holds_more_than_the_limit_is_killed_and_its_peak_is_told(tmp_path: Path) -> None:
    pod = folder(tmp_path)
    code = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {EATS!r}, '400']) and 9)"
    start(pod, launch(pod, code, memory=300 << 20)).communicate(timeout=40)
    told = end(pod)
    assert (told["code"], told["reason"]) == (
        9,
        "OOMKilled",
    )  # the larger of the two processes: the pod's first one lived
    peak = re.fullmatch(r"held ([\d,]+) MiB of memory at its peak; allowed: 300 MiB", told["detail"])
    assert peak
    assert 440 <= int(peak[1]) <= 600


def test_what_stays_within_the_limit_is_left_alone(tmp_path: Path) -> None:
    pod = folder(tmp_path)
    code = "import time; held = bytearray(b'x') * (150 << 20); time.sleep(1.5); raise SystemExit(4)"
    start(pod, launch(pod, code, memory=300 << 20)).communicate(timeout=40)
    assert (end(pod)["code"], end(pod)["reason"], end(pod).get("detail")) == (4, "Error", None)


def test_memory_that_processes_share_counts_once(tmp_path: Path) -> None:
    pod = folder(tmp_path)
    code = """
import mmap, os, time
shared = mmap.mmap(-1, 120 << 20)
for at in range(0, len(shared), 4096): shared[at] = 1
children = [os.fork() for _ in range(2)]
if 0 in children:
    sum(shared[at] for at in range(0, len(shared), 4096))
    time.sleep(1.5)
    os._exit(0)
time.sleep(2)
raise SystemExit(4)
"""
    start(pod, launch(pod, code, memory=250 << 20)).communicate(timeout=40)
    assert (end(pod)["code"], end(pod)["reason"]) == (4, "Error")


def test_a_command_runs_on_its_cores_or_on_any_where_they_are_gone(tmp_path: Path) -> None:
    core = max(os.sched_getaffinity(0))
    for name, cores, allowed in (("one", [core], {core}), ("none", [4095], os.sched_getaffinity(0))):
        pod = folder(tmp_path / name)
        start(pod, launch(pod, "import os; print(os.sched_getaffinity(0))", cores=cores)).communicate(timeout=20)
        assert (pod / shim.LOG).read_text().strip() == str(allowed)
