"""The process that owns one pod, and outlives the control plane: started as a script with the pod's folder.

It imports the standard library alone and nothing of ours, so that a pod costs a few megabytes and starts at once. It
holds the folder's lock for as long as anything of the pod lives: a free lock means that nothing does. `docs/
local-cluster.md` describes the folder and why a kill at any instant starts nothing twice and leaves nothing behind.

    descriptor 0   what to start, as JSON (no file: it holds the run's token)
    descriptor 1   where to say "started", or what went wrong before
    descriptor 2   the pod's log
    descriptor 3   the reserved rendezvous port, kept bound for the pod's life
"""
# ruff: noqa: PTH110, PTH123, PTH104, PTH120, PTH208 - pathlib costs a third of the start-up and the memory of a process that only opens a few files

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

LOCK, POD, EXIT, LOG, TERMINATION, WORK = "lock", "pod.json", "exit.json", "log", "termination", "work"
DELETING = "deleting"  # in the object's folder, above the pod's
MESSAGE_BYTES = 4096  # of a termination message, as the kubelet keeps
TAIL_BYTES = 2048  # of the log, where there is no message: FallbackToLogsOnError
RECORD_BYTES = 32 << 10  # set aside for exit.json: the message at its longest in JSON, and room
SWEEP_S = 10.0  # a process that takes longer to die hangs in the kernel: nobody can do more
SOON_S = 0.05
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
FILLED_PER_S = 1 << 30  # bytes that processes come to hold in a second, at most about
SOONEST_S, LATEST_S, TABLE_S = 0.1, 5.0, 1.0  # between two looks at them, and at which there are


def main(folder: str) -> None:
    """Start the pod of `folder` unless it was ever started or is being deleted, and see it to its end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD, signal.SIGINT, signal.SIGHUP})
    os.chdir(folder)
    lock = try_lock(LOCK)
    if lock is None or os.path.exists(POD) or os.path.exists(EXIT) or os.path.exists(f"../{DELETING}"):
        return
    with open(0, "rb", closefd=False) as source:
        launch = json.load(source)
    os.dup2(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), 0)
    with contextlib.suppress(OSError):
        os.set_inheritable(3, False)  # noqa: FBT003 - os's own signature
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    shim = os.fork()
    if shim == 0:
        _start_and_follow(launch)
        return
    os.close(1)
    _guard(shim)


def _guard(shim: int) -> None:
    """Outlive the shim: should it be killed, all that it was responsible for comes to us, and ends."""
    while shim not in dict(_reaped()):
        signal.sigwait({signal.SIGCHLD, signal.SIGTERM})
    _end_descendants()


def _start_and_follow(launch: dict[str, Any]) -> None:
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # not inherited
    record = _set_record_aside()
    _set_message_aside(launch["marker"])
    started = time.time()
    write_atomically(POD, {**identity(os.getpid()), "started": started})
    child, problem = _fork_child(launch)
    with contextlib.suppress(BrokenPipeError):
        os.write(1, b"started")
    os.close(1)
    memory = Memory(launch.get("memory"), child)
    status = _follow(child, launch["grace_s"], memory)
    _end_descendants()
    end = {**_end(status, problem, launch["marker"]), **memory.told(status)}
    _write_record(record, {**end, "started": started, "finished": time.time()})


def _set_record_aside() -> int:
    """Blocks for exit.json, so that a disk that fills up later cannot lose the pod's end."""
    record = os.open(f"{EXIT}.part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    if os.write(record, b" " * RECORD_BYTES) != RECORD_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(record)
    return record


def _set_message_aside(path: str) -> None:
    """Room for the termination message, which the launcher writes over it, so that it tells of a full disk too."""
    message = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.posix_fallocate(message, 0, MESSAGE_BYTES)
    os.close(message)


def _fork_child(launch: dict[str, Any]) -> tuple[int, str]:
    """The pod's first process, and why it could not be what was asked ("" when it is)."""
    reader, writer = os.pipe()
    shim = os.getpid()
    child = os.fork()
    if child == 0:
        _become(launch, shim, writer)
    os.close(writer)
    with open(reader, encoding="utf-8") as told:
        return child, told.read()


def _become(launch: dict[str, Any], shim: int, writer: int) -> NoReturn:
    """In the child: become the command, or say why not. The first process of its own session."""
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        if os.getppid() != shim:  # it died before it could be tied to us
            os._exit(137)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these two, and exec would keep that
            signal.signal(number, signal.SIG_DFL)
        with contextlib.suppress(OSError):  # a core that has gone since: then any
            os.sched_setaffinity(0, launch.get("cores") or os.sched_getaffinity(0))
        os.dup2(2, 1)
        os.chdir(launch["cwd"])
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvpe(launch["argv"][0], launch["argv"], launch["env"])  # noqa: S606 - the pod's command
    except (OSError, ValueError) as error:
        os.write(writer, f"{launch['argv'][0]}: {getattr(error, 'strerror', error)}".encode())
    finally:
        os._exit(127)


class Memory:
    """What the pod's processes hold. Beyond the limit the largest is killed, as the kernel does it in a container.

    The first of them, which tells of the others' ends, goes last. It takes no right and no cgroup: they are looked at
    as often as they could come to the limit in the meantime.
    """

    def __init__(self, limit: int | None, first: int) -> None:
        self.limit, self.first, self.peak, self.killed = limit, first, 0, False
        self._pids: set[int] = set()
        self._listed = self._due = 0.0

    def look(self) -> float:
        """Keep them within the limit; seconds until this is to be called again."""
        if self.limit is None:
            return 86400.0
        now = time.monotonic()
        if now >= self._due:
            if now >= self._listed + TABLE_S:
                self._listed, self._pids = now, _descendants()
            room = self.limit - self._held()
            self._due = now + min(LATEST_S, max(SOONEST_S, room / FILLED_PER_S))
        return self._due - now

    def told(self, status: int) -> dict[str, Any]:
        """What exit.json says of it, where a process was killed and the pod failed of it."""
        if not (self.killed and self.limit and os.waitstatus_to_exitcode(status)):
            return {}
        used, allowed = (f"{size / (1 << 20):,.0f} MiB" for size in (self.peak, self.limit))
        return {"reason": "OOMKilled", "detail": f"held {used} of memory at its peak; allowed: {allowed}"}

    def _held(self) -> int:
        """Bytes in all, after the largest process was killed where that was too much."""
        assert self.limit is not None
        held = sum(_sizes(pid, "status", ("RssAnon:", "RssShmem:")) for pid in self._pids)
        if held > self.limit:  # pages that processes share were counted in each
            sizes = {pid: _sizes(pid, "smaps_rollup", ("Pss_Anon:", "Pss_Shmem:")) for pid in _descendants()}
            held = sum(sizes.values())
            self.peak = max(self.peak, held)
            if held > self.limit:
                self.killed |= _kill({max(sizes, key=lambda pid: (pid != self.first, sizes[pid]))})
        return held


def _sizes(pid: int, file: str, names: tuple[str, ...]) -> int:
    """Bytes that lines of one of a process's files in /proc name in kB; 0 where it has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/{file}", encoding="ascii", errors="replace") as lines:
        return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(names))
    return 0


def _follow(child: int, grace_s: float, memory: Memory) -> int:
    """Wait for the child's end, passing SIGTERM on and SIGKILL to everything when the grace period is over."""
    deadline = None
    while True:
        left = memory.look() if deadline is None else min(memory.look(), max(SOON_S, deadline - time.monotonic()))
        told = signal.sigtimedwait({signal.SIGTERM, signal.SIGCHLD}, left)
        if told is not None and told.si_signo == signal.SIGTERM and deadline is None:
            deadline = time.monotonic() + grace_s
            os.kill(child, signal.SIGTERM)
        if told is None and deadline is not None and time.monotonic() >= deadline:
            _kill_descendants()
        for pid, status in _reaped():
            if pid == child:
                return status


def _reaped() -> Iterator[tuple[int, int]]:
    """Those of our children, and of the orphans that came to us, that have ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status


def _end_descendants() -> None:
    """As in a container, nothing outlives the first process."""
    deadline = time.monotonic() + SWEEP_S
    while _kill_descendants() and time.monotonic() < deadline:
        signal.sigtimedwait({signal.SIGCHLD}, SOON_S)
        list(_reaped())


def _kill_descendants() -> bool:
    """SIGKILL to all that descends from this process, orphans included; whether there was any."""
    return _kill(_descendants())


def _descendants() -> set[int]:
    """Pids of all that descends from this process."""
    table = processes()
    ours = {os.getpid()}
    while grown := {pid for pid, seen in table.items() if seen.parent in ours} - ours:
        ours |= grown
    return ours - {os.getpid()}


def _end(status: int, problem: str, message_file: str) -> dict[str, Any]:
    """How the pod ended: exit code, signal, reason, and its termination message or the end of its log."""
    code = os.waitstatus_to_exitcode(status)
    number, code = (-code, 128 - code) if code < 0 else (0, code)
    text = _tail(message_file, MESSAGE_BYTES) or (_tail(LOG, TAIL_BYTES) if code else "")
    return {
        "code": code,
        "signal": signal.Signals(number).name if number else None,
        "reason": "StartError" if problem else "Error" if code else None,
        "message": problem or text,
    }


def _tail(path: str, size: int) -> str:
    """The last `size` bytes of a file as text; of one that cannot be read, nothing."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read(size).decode("utf-8", "replace").strip("\0 \n")
    except OSError:
        return ""


def _write_record(descriptor: int, record: dict[str, Any]) -> None:
    """Publish exit.json over the blocks set aside; a disk that refuses even so is asked until it takes it."""
    data = json.dumps(record).encode()
    while True:
        try:
            os.pwrite(descriptor, data, 0)
            os.ftruncate(descriptor, len(data))
            os.fsync(descriptor)
            os.rename(f"{EXIT}.part", EXIT)
            sync_folder(".")
        except OSError as error:
            if error.errno not in FULL:
                raise
            time.sleep(1)
        else:
            return


# --- what the cluster shares with the shim ------------------------------------------------------------------------


def prctl(option: int, value: int) -> None:
    """Set one attribute of this process (Linux). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def try_lock(path: str) -> int | None:
    """An exclusive lock on the file, as a descriptor that ends it when closed everywhere; None where it is held."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def write_atomically(path: str, record: object, mode: int = 0o600) -> None:
    """Write JSON so that, whatever happens, the file is absent or whole, and stays once this has returned."""
    part = f"{path}.part"
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(record, file)
        file.flush()
        os.fsync(descriptor)
    os.rename(part, path)
    sync_folder(os.path.dirname(path) or ".")


def sync_folder(path: str) -> None:
    """Make the folder's entries durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def identity(pid: int) -> dict[str, Any]:
    """What tells a process from every other, before and after: pid, start time in ticks since boot, boot id."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return {"pid": pid, "start": start_of(pid), "boot": file.read().strip()}


class Seen(NamedTuple):
    """A live process in /proc: its parent, and its start in ticks since boot."""

    parent: int
    start: int


def processes(pids: list[str] | None = None) -> dict[int, Seen]:
    """Live processes (zombies are not) by pid: all of them, or those given."""
    table: dict[int, Seen] = {}
    for entry in os.listdir("/proc") if pids is None else pids:
        if entry.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
                if fields[0] not in (b"Z", b"X"):
                    table[int(entry)] = Seen(int(fields[1]), int(fields[19]))
    return table


def start_of(pid: int) -> int:
    """A process's start time in ticks since boot; 0 where there is no such live process."""
    seen = processes([str(pid)]).get(pid)
    return seen.start if seen else 0


def members(marker: str) -> Iterator[int]:
    """Pids of a pod's processes, known by the termination file that their environment names."""
    wanted = os.fsencode(f"TERAGPT_TERMINATION_LOG={marker}")
    for pid in processes():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            if wanted in file.read().split(b"\0"):
                yield pid


def sweep(marker: str) -> None:
    """SIGKILL to a pod's processes until none is left: for where shim and guard were killed both."""
    deadline = time.monotonic() + SWEEP_S
    while _kill(set(members(marker)) - {os.getpid()}) and time.monotonic() < deadline:
        time.sleep(0.01)


def _kill(pids: set[int]) -> bool:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(pids)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as error:
        with contextlib.suppress(OSError):
            os.write(1, f"error: {error}".encode())
        raise
