"""Watches the ranks of one pod: passes on what they print, sees who ended first and why, and stops them in time.

The main thread of the launcher runs this while torchrun's agent works in another. Torch-free, and must not know how
ranks are placed or started: it is told their numbers and process ids, and the agent learns from it when all have ended.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

from teragpt.config import ConfigError
from teragpt.launcher.environment import ranks_grace
from teragpt.launcher.termination import BAD_CONFIG, CRASHED, FINISHED, LAST_LINES, STOPPED, Ending, oom_kills

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
FAILURE_GRACE_S = 5.0  # for the peers of a failed rank, which can no longer write a checkpoint together
TELL_S = 1.0  # before ranks that do not stop are killed: for each to tell where it stands
CHUNK = 1 << 16  # bytes read at once; a longer line is broken
STEP_LINE = re.compile(rb"\s*step\s+(\d+)/")


@dataclass(frozen=True)
class Exit:
    """How a rank's process ended: its code (a signal n: 128 + n), that signal, and seconds since the epoch."""

    code: int
    signal: int | None
    time: float

    @property
    def asked(self) -> bool:
        """Whether it ended as one does that was told to stop."""
        return self.code == STOPPED


class Rank:
    """One rank of this pod: global `number`, process id, the pipe that it prints to, how it ended."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pid = 0
        self.exit: Exit | None = None
        self.said: deque[bytes] = deque(maxlen=LAST_LINES)
        self.partial = b""
        # The write end stays open here too: a rank that ends must not look like one that closed its output.
        self.pipe, self.entrance = os.pipe()
        os.set_blocking(self.pipe, False)

    def lines(self) -> list[bytes]:
        """The whole lines that it printed since the last call, as far as one chunk goes."""
        try:
            chunk = os.read(self.pipe, CHUNK)
        except BlockingIOError:
            return []
        *whole, self.partial = (self.partial + chunk).split(b"\n")
        if len(self.partial) >= CHUNK:
            whole, self.partial = [*whole, self.partial], b""
        self.said.extend(whole)
        return whole

    def rest(self) -> list[bytes]:
        """What it printed last, once it has ended, a line without an end included."""
        found: list[bytes] = []
        while whole := self.lines():
            found += whole
        if self.partial:
            self.said.append(self.partial)
            found, self.partial = [*found, self.partial], b""
        return found

    def poll(self) -> bool:
        """Whether its process has ended since the last call. Leaves it to be reaped, so that its id stays its own."""
        if self.exit or not self.pid:
            return False
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return False
        by_signal = ended.si_code != os.CLD_EXITED
        code = ended.si_status + (128 if by_signal else 0)
        self.exit = Exit(code, ended.si_status if by_signal else None, time.time())
        return True

    def tell(self) -> None:
        """Have it print every thread's stack, where it knows SIGUSR2: whoever does not know it would die of it."""
        with suppress(OSError):
            status = Path(f"/proc/{self.pid}/status").read_text("ascii")
            if int(status.partition("SigCgt:")[2].split()[0], 16) >> (signal.SIGUSR2 - 1) & 1:
                os.kill(self.pid, signal.SIGUSR2)

    def send(self, number: int) -> None:
        """Send a signal to its process and to those that this has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


class Supervisor:
    """One pod's ranks and the agent that starts them; `grace_s`: seconds from a stop signal to SIGKILL from outside."""

    def __init__(self, grace_s: float, out: BinaryIO) -> None:
        self.grace_s = ranks_grace(grace_s)
        self.out = out
        self.ranks: list[Rank] = []
        self.first: Rank | None = None  # to end badly
        self.step: int | None = None
        self.stopping = False  # told to, from outside
        self.starting = False  # ranks: they may run already, and are not known yet
        self.left = False  # there is nobody to watch ranks any more
        self.door = threading.Lock()  # of these two
        self.ending = False  # told to, by the agent
        self.told = False  # the ranks were
        self.deadline: float | None = None  # of SIGKILL, on the monotonic clock
        self.tells: float | None = None  # when those that have not ended by then tell where they stand
        self.over = threading.Event()  # no rank lives
        self.failure: BaseException | None = None  # of the agent
        self.agent = threading.Thread(target=lambda: None, daemon=True)
        self.oom_kills = oom_kills()
        self.inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.doorbell, self.bell = os.pipe()
        self.selector = selectors.DefaultSelector()
        for end in (self.doorbell, self.bell):
            os.set_blocking(end, False)
        self.selector.register(self.doorbell, selectors.EVENT_READ)

    # Called by the agent, in its thread.

    def pipes(self, numbers: Sequence[int]) -> list[str]:
        """Files that the ranks of these global numbers shall print to. Raises InterruptedError once all is over."""
        with self.door:
            if self.left:
                raise InterruptedError("told to stop before any rank was started")
            self.starting = True
        ranks = [Rank(number) for number in numbers]
        self.post(lambda: self.expect(ranks))
        return [f"/dev/fd/{rank.entrance}" for rank in ranks]

    def started(self, pids: Sequence[int]) -> None:
        """The ranks of the last `pipes` run now, as these processes."""
        self.post(lambda: self.watch(pids))

    def succeeded(self) -> bool | None:
        """Whether every rank did; None while one lives."""
        return self.first is None and not self.ending if self.over.is_set() else None

    def end(self) -> None:
        """Stop the ranks and wait until none lives."""
        self.post(self.end_ranks)
        self.over.wait()

    def post(self, work: Callable[[], None]) -> None:
        """Have the main thread do some work."""
        self.inbox.put(work)
        with suppress(BlockingIOError):  # full of bells already
            os.write(self.bell, b"\0")

    # The main thread's.

    def run(self, agent: Callable[[], None]) -> Ending:
        """Run `agent` in a thread until it and its ranks have ended. How they did."""
        self.agent = threading.Thread(target=self.guard, args=(agent,), name="agent", daemon=True)
        with self.signals():
            self.agent.start()
            while not self.settled():
                self.turn()
        return self.verdict()

    def guard(self, agent: Callable[[], None]) -> None:
        """Run the agent in its thread, keeping what it raises, and ring when it is done."""
        try:
            agent()
        except BaseException as error:  # noqa: BLE001 - whatever ends the agent ends the pod, with this as its reason
            self.failure = error
        self.post(self.agent.join)

    @contextmanager
    def signals(self) -> Generator[None, None, None]:
        """Stop on stop signals (but for those ignored from before, as under nohup); ring when a child ends.

        Afterwards stop signals are ignored: all has ended, and one that comes while this process leaves (the operator
        ends workers as soon as the master has ended) must not change how.
        """
        handlers: dict[signal.Signals, Callable[..., None]]
        handlers = {number: self.stop for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
        handlers[signal.SIGCHLD] = lambda *_: None
        handlers |= {signal.SIGUSR1: self.save, signal.SIGUSR2: self.tell}
        for number, handler in handlers.items():
            signal.signal(number, handler)
        bell = signal.set_wakeup_fd(self.bell, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(bell)
            for number in handlers:
                signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else signal.SIG_IGN)

    def settled(self) -> bool:
        """Whether nothing is left to wait for: not for an agent that waits for other nodes, once told to stop."""
        if self.alive():
            return False
        with self.door:
            stopped = self.stopping and not self.starting
            self.left = not self.agent.is_alive() or stopped or (self.over.is_set() and self.first is not None)
        return self.left

    def turn(self) -> None:
        """Wait for the next thing to happen, and see to it."""
        ends = self.deadline if self.tells is None else self.tells
        left = None if ends is None else max(0.0, ends - time.monotonic())
        for key, _ in self.selector.select(left):
            if key.data is None:
                self.answer()
            else:
                self.emit(key.data, key.data.lines())
        if self.tells is not None and time.monotonic() >= self.tells:
            self.tell()
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.kill()

    def answer(self) -> None:
        """Somebody rang: do what was posted, then see which ranks have ended."""
        with suppress(BlockingIOError):
            while os.read(self.doorbell, CHUNK):
                pass
        while not self.inbox.empty():
            self.inbox.get()()
        self.reap()

    def reap(self) -> None:
        """Note the ranks that have ended, and who failed first; its peers are stopped, since they wait for it."""
        ended = [rank for rank in self.ranks if rank.poll()]
        for rank in ended:
            self.emit(rank, rank.rest())
        for rank in sorted(ended, key=likely_cause):
            self.blame(rank)
        if self.first and not self.stopping and self.alive():
            self.terminate(FAILURE_GRACE_S)
        if ended and not self.alive():
            for rank in self.ranks:
                rank.send(signal.SIGKILL)  # what it left running behind it
            self.deadline = self.tells = None
            self.over.set()

    def blame(self, rank: Rank) -> None:
        """Take the rank for the first that failed, unless there was one before or the agent ended it.

        A rank that stopped as it was told yields to one that failed in stopping.
        """
        if not rank.exit or not rank.exit.code or self.ending:
            return
        yields = self.stopping and self.first and self.first.exit and self.first.exit.asked
        if not self.first or (yields and not rank.exit.asked):
            self.first = rank

    def expect(self, ranks: list[Rank]) -> None:
        """Listen to ranks that are about to start."""
        self.ranks = ranks
        for rank in ranks:
            self.selector.register(rank.pipe, selectors.EVENT_READ, rank)

    def watch(self, pids: Sequence[int]) -> None:
        """Take note of the processes, and tell them what came while they were started."""
        for rank, pid in zip(self.ranks, pids, strict=True):
            rank.pid = pid
        self.starting = False
        if self.stopping:
            self.terminate(self.grace_s)

    def emit(self, rank: Rank, lines: list[bytes]) -> None:
        """Print a rank's lines: rank 0's as they are, the others' with their number."""
        if not lines:
            return
        for line in lines:
            if step := STEP_LINE.match(line):
                self.step = int(step[1])
        prefix = b"[rank %d] " % rank.number if rank.number else b""
        with suppress(OSError):  # training does not end because nobody reads on
            self.out.write(b"".join(prefix + line + b"\n" for line in lines))
            self.out.flush()

    def alive(self) -> list[Rank]:
        """The ranks that run."""
        return [rank for rank in self.ranks if rank.pid and not rank.exit]

    def stop(self, number: int, _frame: object = None) -> None:
        """A stop signal came: ranks may write a checkpoint. A second Ctrl-C kills them at once."""
        if self.stopping and number == signal.SIGINT:
            self.kill()
        self.stopping = True
        self.terminate(self.grace_s)

    def save(self, *_: object) -> None:
        """A checkpoint is asked for: one rank is enough to tell, since what one notes all act on."""
        for rank in self.alive()[:1]:
            with suppress(ProcessLookupError):
                os.kill(rank.pid, signal.SIGUSR1)

    def tell(self, *_: object) -> None:
        """Have every rank print where each of its threads stands."""
        self.tells = None
        for rank in self.alive():
            rank.tell()

    def end_ranks(self) -> None:
        """The agent gave up: end its ranks, and blame none for it."""
        self.ending = True
        if self.alive():
            self.terminate(FAILURE_GRACE_S)
        else:
            self.over.set()

    def terminate(self, grace_s: float) -> None:
        """Ask the ranks to end, once, and set the time when they must."""
        if not self.told and (ranks := self.alive()):
            self.told = True
            self.deadline = time.monotonic() + grace_s
            if self.stopping and not self.first:  # else it is known who failed, and what the others wait for
                self.tells = self.deadline - min(TELL_S, grace_s / 2)
            for rank in ranks:
                rank.send(signal.SIGTERM)

    def kill(self) -> None:
        """End the ranks now."""
        self.deadline = self.tells = None
        for rank in self.alive():
            rank.send(signal.SIGKILL)

    def verdict(self) -> Ending:
        """How the pod ended: as its first failing rank, else well, else as it was told, else as its agent."""
        if self.first and self.first.exit:
            last = tuple(line.decode("utf-8", "replace") for line in self.first.said)
            died, kills = self.first.exit, oom_kills() - self.oom_kills
            return Ending(died.code, self.first.number, died.signal, died.time, self.step, last, kills)
        if self.over.is_set() and not self.ending:
            return Ending(FINISHED, step=self.step)
        if self.stopping:
            return Ending(STOPPED, time=time.time())
        return fate(self.failure, self.step)


def likely_cause(rank: Rank) -> tuple[bool, int, int]:
    """Order of ranks seen to have ended at one moment: a rank killed by a signal, then the highest of the codes.

    A peer of a rank that was killed, or that chose code 2 or 3, ends with an exception's code 1.
    """
    if not rank.exit:
        return True, 0, rank.number
    return rank.exit.signal is None, -rank.exit.code, rank.number


def fate(error: BaseException | None, step: int | None = None) -> Ending:
    """How a pod ends when no rank decides: bad input is told from a failure to bring the nodes together."""
    if error is None or (isinstance(error, SystemExit) and not error.code):
        return Ending(FINISHED)
    code = BAD_CONFIG if isinstance(error, ConfigError | SystemExit) else CRASHED
    text = str(error) if code == BAD_CONFIG else f"{type(error).__name__}: {error}"
    return Ending(code, time=time.time(), step=step, lines=(text,))
