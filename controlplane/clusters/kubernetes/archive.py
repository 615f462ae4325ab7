"""A pod's log as it is kept on a shelf, and how far it has been read: nothing twice, nothing left out.

<object>/<pod>.log       what the pod wrote, without timestamps
<object>/<pod>.log.*     what of that the shelf has made smaller
<object>/<pod>.cursor    the last line's timestamp and digest, and how long the log was then

A log is only ever appended to, so readers' offsets stay true. The cursor follows it: what the log has beyond the
cursor is compared with what comes next instead of being written again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta

from controlplane.clusters.shelf import Shelf

log = logging.getLogger(__name__)
TENDED = 1 << 20  # bytes after which a log that grows is made smaller
SUFFIX = len("-abcde")  # what Kubernetes adds to the names of a Job's pods
OVERLAP = timedelta(seconds=1)  # two streams of a container may be written a little out of order


@dataclass(frozen=True)
class Cursor:
    """How far a pod's log is known: its last line (`stamp`, `digest`), the archive's `size`, whether that is all."""

    uid: str
    stamp: str = ""
    digest: str = ""
    size: int = 0
    done: bool = False


class PodLog:
    """The archived log `name` of one pod. One thread at a time writes it."""

    def __init__(self, shelf: Shelf, name: str, uid: str) -> None:
        self._shelf, self._log, self._file = shelf, f"{name}.log", f"{name}.cursor"
        self.cursor = self._read(uid)
        self._expected = self._beyond()
        self._tended, self.first = 0, shelf.extent(self._log).first

    @property
    def since(self) -> str | None:
        """From when on to ask for lines: `sinceTime`, which counts in whole seconds."""
        if not self.cursor.stamp:
            return None
        return (_time(self.cursor.stamp) - OVERLAP).strftime("%Y-%m-%dT%H:%M:%SZ")

    def continued(self) -> Continuation:
        """What to give the lines of an answer to `since` to."""
        return Continuation(self)

    def write(self, lines: list[bytes], last: bytes) -> None:
        """Append lines, the raw one behind the last of them being `last`. Raises OSError."""
        data = b"".join(lines)
        known = min(len(self._expected), len(data))
        if self._expected[:known] == data[:known]:
            self._expected, fresh = self._expected[known:], data[known:]
        else:  # the container's log was rotated in between: what is there stays, and what comes follows it
            fresh = (b"" if self._expected.endswith(b"\n") else b"\n") + data
            self._expected = b""
        if fresh:
            self._shelf.append(self._log, fresh)
            self._tended += len(fresh)
        stamp, digest = last.split(b" ", 1)[0].decode("ascii"), hashlib.sha256(last).hexdigest()
        size = self._size() - len(self._expected)
        self._save(Cursor(self.cursor.uid, stamp, digest, size, self.cursor.done))
        if self._tended >= TENDED:
            self._tended = 0
            self._tend(over=False)

    def finish(self) -> None:
        """There will be no more. Raises OSError."""
        self._tend(over=True)
        self._save(replace(self.cursor, done=True))

    def is_last(self, line: bytes) -> bool:
        """Whether this is the line that the cursor stands behind."""
        return hashlib.sha256(line).hexdigest() == self.cursor.digest

    def _read(self, uid: str) -> Cursor:
        try:
            cursor = Cursor(**json.loads(self._shelf.read(self._file)))
        except (ValueError, TypeError):
            cursor = Cursor(uid)
        # another pod of the same name writes into the same file, behind the first one's lines
        return cursor if cursor.uid == uid else Cursor(uid, size=self._size())

    def _beyond(self) -> bytes:
        """What was appended after the cursor was written."""
        return self._shelf.read(self._log, self.cursor.size, 1 << 40)

    def _size(self) -> int:
        return self._shelf.size(self._log)

    def _tend(self, *, over: bool) -> None:
        """Make it smaller; where that cannot be, it stays as it is."""
        try:
            self.first = self._shelf.tend(self._log, over=over)
        except OSError as error:
            log.warning("the log %s is kept as it is for now: %s", self._log, error)

    def _save(self, cursor: Cursor) -> None:
        self._shelf.put(self._file, json.dumps(asdict(cursor)).encode())
        self.cursor = cursor


class Continuation:
    """Sorts out of an answer what the archive does not have yet. Pieces need not end where lines do."""

    def __init__(self, log: PodLog) -> None:
        self._log = log
        self._seeking = bool(log.cursor.stamp)  # the last known line has not come by yet
        self._skipped: list[bytes] = []
        self._left = b""

    @property
    def pending(self) -> bool:
        """Whether half a line has come that is still to be finished."""
        return bool(self._left)

    def take(self, piece: bytes) -> None:
        """A piece of the answer. Raises OSError."""
        *lines, self._left = (self._left + piece).split(b"\n")
        self._lines([line + b"\n" for line in lines])

    def end(self, *, final: bool) -> None:
        """The answer came to its end; `final`: the container will write no more. Raises OSError."""
        if final and self._left:
            self._lines([self._left + b"\n"])
            self._left = b""
        if self._seeking:
            self._give_up()

    def _lines(self, lines: list[bytes]) -> None:
        lines = [line for line in lines if _stamp(line)]  # the kubelet's own remarks have no timestamp
        if self._seeking and (lines := self._seek(lines)):
            self._seeking, self._skipped = False, []
        if lines:
            self._log.write([line.split(b" ", 1)[1] for line in lines], lines[-1])

    def _seek(self, lines: list[bytes]) -> list[bytes]:
        """What follows the last known line; nothing while that has not come by."""
        for place, line in enumerate(lines):
            if self._log.is_last(line):
                self._seeking = False
                return lines[place + 1 :]
        self._skipped += lines
        if lines and _time(_stamp(lines[-1])) > _time(self._log.cursor.stamp) + OVERLAP:
            self._give_up()
        return []

    def _give_up(self) -> None:
        """The last known line is gone with a rotated file: what is younger has not been seen."""
        lines, self._seeking, self._skipped = self._skipped, False, []
        last = _time(self._log.cursor.stamp)
        self._lines([line for line in lines if _time(_stamp(line)) > last])


def longer_name(shelf: Shelf, name: str, pod: str) -> str | None:
    """The log of a pod that is named without what Kubernetes added; None where the very name has one."""
    file = f"{name}/{pod}.log"
    longer = re.compile(rf"{re.escape(f'{name}/{pod}')}-.{{{SUFFIX - 1}}}\.log")
    others = [other for other in shelf.names(name) if other == file or longer.fullmatch(other)]
    return min(others) if others and file not in others else None


def _stamp(line: bytes) -> str:
    """The line's timestamp; empty where it has none."""
    head, space, _ = line.partition(b" ")
    if not space or not (19 < len(head) < 40) or head[4:5] != b"-" or head[10:11] != b"T":
        return ""
    return head.decode("ascii", "replace")


def _time(stamp: str) -> datetime:
    return datetime.fromisoformat(stamp).astimezone(UTC)
