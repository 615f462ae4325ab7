"""List and watch: what the API server has of one kind, kept up to date by one thread however much there is.

Only what `project` makes of an object is kept. A list is taken as a whole or not at all, a watch goes on from the last
version that was seen, and who reads is told when the two have lost touch with the server (`check`): nothing here ever
looks as if objects were gone because an answer was missing.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from controlplane.clusters.base import Unavailable
from controlplane.clusters.kubernetes.connection import Connection, Refused, Stream, Trouble
from controlplane.clusters.kubernetes.pages import Listing
from controlplane.clusters.watches import RESTARTS

log = logging.getLogger(__name__)
T = TypeVar("T")

PAGE = 200  # objects: of pods 1 MB of JSON
WATCH_S = (240, 300)  # how long the server is asked to keep a watch open
SILENCE_S = 330.0  # longer than any watch: a socket that is silent for so long is dead
RESYNC_S = 600.0
BACKOFF_S = (0.2, 10.0)  # the first wait after a failure, and the longest
QUIET_S = 150.0  # an open watch is heard of at least so often: the server sends bookmarks every minute
LOST_S = 30.0  # how long the last word counts after the connection broke
GONE, FORBIDDEN, NOT_FOUND = 410, 403, 404
ALIVE_S = 1.0  # a watch that ended sooner, with nothing said, has failed


class Relist(Exception):
    """The version to go on from is no longer there."""


class Informer(Generic[T]):
    """The objects at `path` that `selectors` leave, by name.

    `project` makes of an object what is kept (None: nothing). `changed` is called on the informer's thread with the
    names whose projection is new, gone or another one, after each list and each piece of a watch.
    """

    def __init__(
        self,
        connection: Connection,
        path: str,
        project: Callable[[Mapping[str, Any]], T | None],
        changed: Callable[[set[str]], None],
        *,
        selectors: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.items: dict[str, T] = {}
        self._connection, self._project, self._changed, self._clock = connection, project, changed, clock
        self._selectors = dict(selectors or {})
        self._lock = threading.Lock()
        self._noted: dict[str, int] = {}  # by name, the version of objects that we made and have not seen yet
        self._version = ""
        self._listed_at = float("-inf")
        self._heard_at = float("-inf")
        self._gone_at: float | None = None  # since when the version to go on from is known to be gone
        self._problem: str | None = "not listed yet"
        self.status: int | None = None  # the code of the last refusal, while it lasts
        self._failures = 0
        self._open: Stream | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch {path.rpartition('/')[2]}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; nothing is updated any more."""
        self._stopping.set()
        if (stream := self._open) is not None:
            stream.close()
        if self._thread.is_alive():
            self._thread.join(2.0)

    @property
    def listed(self) -> bool:
        """Whether there was a complete list."""
        return self._listed_at > float("-inf")

    def check(self) -> None:
        """Raises Unavailable where what is kept may not be what is there."""
        silent = self._clock() - self._heard_at
        if not self.listed or silent > (QUIET_S if self._problem is None else LOST_S):
            raise Unavailable(f"{self.path}: {self._problem or f'nothing heard for {silent:.0f} s'}")

    def get(self, name: str) -> T | None:
        """What is kept of one object."""
        return self.items.get(name)

    def values(self) -> list[T]:
        """What is kept of every object."""
        with self._lock:
            return list(self.items.values())

    def note(self, raw: Mapping[str, Any]) -> None:
        """Take in an object that we made ourselves, until the server tells of it: it must not look absent meanwhile."""
        name, version = raw["metadata"]["name"], _number(raw["metadata"].get("resourceVersion"))
        kept = self._project(raw)
        with self._lock:
            if kept is None or version <= _number(self._version):
                return
            self._noted[name] = version
            self.items.setdefault(name, kept)
        self._changed({name})

    # --- on the informer's thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if not self._version or self._clock() - self._listed_at > RESYNC_S:
                    self._list()
                self._watch()
            except Relist:
                RESTARTS.add(self.path)
                self._version, self._gone_at = "", self._gone_at or self._clock()
                self._stopping.wait(BACKOFF_S[0] * random.uniform(0.5, 1.0))
            except (Trouble, Refused) as error:
                self._failed(error)
            except Exception as error:  # an object that `project` cannot read must not end the watch for ever
                log.exception("%s: cannot be followed", self.path)
                self._version = ""
                self._failed(error)

    def _failed(self, error: Exception) -> None:
        if self._stopping.is_set():
            return
        RESTARTS.add(self.path)
        if isinstance(error, Refused):
            self.status = error.status
            self._version = "" if error.status == GONE else self._version
        if self._problem is None:
            log.info("%s: %s", self.path, error)
        self._problem = str(error)
        wait = min(BACKOFF_S[1], BACKOFF_S[0] * 2.0 ** min(self._failures, 16)) * random.uniform(0.5, 1.0)
        self._failures += 1
        asked = error.retry_after if isinstance(error, Refused) else None
        self._stopping.wait(max(wait, min(asked or 0.0, LOST_S)))

    def _heard(self) -> None:
        self._heard_at, self._problem, self._failures, self.status = self._clock(), None, 0, None

    def _list(self) -> None:
        """Take a complete list in place of what is kept. Raises Trouble, Refused, and Relist where it took too long."""
        found: dict[str, T] = {}
        listing = Listing(self._connection, self.path, self._selectors, PAGE, self._paged)
        try:
            for raw in listing:
                if (kept := self._project(raw)) is not None:
                    name = raw["metadata"]["name"]
                    before = self.items.get(name)
                    found[name] = before if before is not None and before == kept else kept
        except Refused as error:
            if error.status == GONE:
                raise Relist from error
            raise
        version = listing.version
        with self._lock:
            for name, made in list(self._noted.items()):
                if made > _number(version) and name in self.items:
                    found.setdefault(name, self.items[name])
                else:
                    del self._noted[name]
            known, self.items = self.items, found
            self._version = version
        if self._gone_at is not None:
            took, self._gone_at = self._clock() - self._gone_at, None
            log.info("%s: %d listed anew within %.2f s: the last version was gone", self.path, len(found), took)
        changed = {name for name, kept in found.items() if known.get(name) is not kept}
        changed.update(name for name in known if name not in found)
        if changed:
            self._changed(changed)
        self._listed_at = self._clock()  # and not before whoever is told has taken it all in
        self._heard()

    def _paged(self) -> None:
        """A part of a list has come."""
        self._heard_at = self._clock() if self.listed else self._heard_at

    def _watch(self) -> None:
        """Follow the changes until the server closes the stream. Raises Trouble, Refused and Relist."""
        seconds = random.randint(*WATCH_S)
        query = {
            **self._selectors,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(seconds),
        }
        begun, said = self._clock(), False
        with self._connection.stream("GET", self.path, query=query, timeout=(3.0, SILENCE_S)) as stream:
            self._open = stream
            try:
                if self._stopping.is_set():
                    return
                self._heard_at, self._problem, self.status = self._clock(), None, None
                for lines in _batches(stream):
                    said = True
                    self._heard()
                    self._take(lines)
            finally:
                self._open = None
        if not said and self._clock() - begun < ALIVE_S:
            raise Trouble("the watch was closed at once")

    def _take(self, lines: list[bytes]) -> None:
        changed: set[str] = set()
        for event in map(_event, lines):
            raw = event["object"]
            if event["type"] == "ERROR":
                if raw.get("code") == GONE:
                    raise Relist
                raise Refused(int(raw.get("code") or 500), json.dumps(raw).encode())
            if event["type"] != "BOOKMARK" and self._apply(event["type"], raw):
                changed.add(raw["metadata"]["name"])
            self._version = raw["metadata"]["resourceVersion"]
        if changed:
            self._changed(changed)

    def _apply(self, what: str, raw: Mapping[str, Any]) -> bool:
        """Take in one change; whether it makes a difference."""
        name = raw["metadata"]["name"]
        kept = None if what == "DELETED" else self._project(raw)
        with self._lock:
            self._noted.pop(name, None)
            before = self.items.get(name)
            if kept is None:
                self.items.pop(name, None)
            else:
                self.items[name] = kept
        return kept != before


def _batches(stream: Stream) -> Iterator[list[bytes]]:
    """The lines of each piece that arrives, an event each; an event may span pieces."""
    left = b""
    for piece in stream:
        *lines, left = (left + piece).split(b"\n")
        if events := [line for line in lines if line]:
            yield events


def _event(line: bytes) -> dict[str, Any]:
    """Raises Trouble."""
    try:
        return dict(json.loads(line))
    except ValueError as error:
        raise Trouble(f"an event that is no JSON: {error}") from error


def _number(version: str | None) -> int:
    """A resource version as a number: they are comparable (KEP-5504); 0 where one is not."""
    return int(version) if version and version.isdecimal() else 0
