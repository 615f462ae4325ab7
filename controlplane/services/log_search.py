"""Search in what a run's ranks wrote: all that is kept of it, a page at a time, each of bounded work.

Attempts are gone through from the first on, within one its nodes, within a node its log from the beginning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

from controlplane.services import runs
from controlplane.services.attempts import attempt as get_attempt
from controlplane.services.attempts import attempts as get_attempts
from controlplane.services.context import Context
from controlplane.services.cursors import cursor_after, id_before
from controlplane.services.logs import LARGEST_CHUNK, node_of, of_line, pod_of
from controlplane.services.views import AttemptView, LogMatch, LogMatches

SCANNED = 64 << 20  # bytes that one page looks at, about
LOOK = 64 << 10  # bytes that a look at a log counts as, however short it is
AROUND = 500  # characters of a long line that are shown before what was found, and behind it
LARGEST_PAGE = 1000
PATTERN_WORK, LINE_WORK = 4, 64  # how much more a byte costs with a regular expression, and a line in bytes
TIME = re.compile(r"\W?(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,6})?(?:Z|[+-]\d\d:?\d\d)?)")  # a line begins with
FORM = re.compile(r"\d{1,9}\.\d{1,9}\.\d{1,18}\.\d{1,18}")


class Place(NamedTuple):
    """Where a search goes on: at byte `offset` of the log of an attempt's node, which `line` lines precede."""

    attempt: int
    node: int = 0
    offset: int = 0
    line: int = 0


class BadPattern(ValueError):
    """What is no regular expression of RE2's, and why."""


class Found(Protocol):
    """Where a text was found in a line."""

    def start(self) -> int:
        """Its first character."""
        ...

    def end(self) -> int:
        """The one behind it."""
        ...


class Sought(Protocol):
    """What is to be found in a log."""

    def lines(self, data: bytes) -> Iterator[tuple[int, int, int]]:
        """Of every line that may hold it: where it begins, where the next one does, and its number from 1."""
        ...

    def within(self, line: str) -> Found | None:
        """Where a line holds it."""
        ...

    def work(self, data: bytes) -> int:
        """Bytes that a look at these counts as."""
        ...


class Words:
    """A text to be found in a log: as it is, or with its letters in either case."""

    def __init__(self, text: str, *, ignore_case: bool = False) -> None:
        flags = re.IGNORECASE if ignore_case else 0
        self.in_text = re.compile(re.escape(text), flags)
        self.in_bytes = re.compile(b"".join(_in_either(letter) for letter in text) if ignore_case else _of(text), flags)

    def lines(self, data: bytes) -> Iterator[tuple[int, int, int]]:
        """As `Sought.lines`."""
        number, counted, found = 1, 0, self.in_bytes.search(data)
        while found:
            at = found.start()
            begin, end = data.rfind(b"\n", 0, at) + 1, data.find(b"\n", at) + 1 or len(data)
            number += data.count(b"\n", counted, begin)
            yield begin, end, number
            counted, found = begin, self.in_bytes.search(data, end)

    def within(self, line: str) -> Found | None:
        """As `Sought.within`."""
        return self.in_text.search(line)

    def work(self, data: bytes) -> int:
        """As `Sought.work`."""
        return len(data)


class Pattern:
    """A regular expression of RE2's, whose time is proportional to what it is looked for in, whatever it is."""

    def __init__(self, text: str, *, ignore_case: bool = False) -> None:
        """Raises BadPattern."""
        import re2

        options = re2.Options()
        options.log_errors, options.case_sensitive = False, not ignore_case
        try:
            self.in_text = re2.compile(text, options)
        except re2.error as error:
            why = error.args[0].decode("utf-8", "replace") if isinstance(error.args[0], bytes) else str(error)
            raise BadPattern(why) from None

    def lines(self, data: bytes) -> Iterator[tuple[int, int, int]]:
        """All: a line in bytes still has the prefix that tells its rank."""
        begin, number = 0, 1
        while begin < len(data):
            end = data.find(b"\n", begin) + 1 or len(data)
            yield begin, end, number
            begin, number = end, number + 1

    def within(self, line: str) -> Found | None:
        """As `Sought.within`."""
        found: Found | None = self.in_text.search(line)
        return found

    def work(self, data: bytes) -> int:
        """As `Sought.work`."""
        return PATTERN_WORK * (len(data) + LINE_WORK * data.count(b"\n"))


class Span(NamedTuple):
    """From when on and before when lines are wanted."""

    since: datetime | None = None
    until: datetime | None = None

    def overlaps(self, attempt: AttemptView) -> bool:
        """Whether an attempt ran in it."""
        begun, ended = attempt.started_at, attempt.finished_at
        late = begun is not None and self.until is not None and begun >= self.until
        return not late and not (ended is not None and self.since is not None and ended < self.since)

    def holds(self, line: str) -> bool:
        """Whether a line's own time is in it; one without a time is as old as its attempt."""
        if (self.since, self.until) == (None, None) or not (told := TIME.match(line)):
            return True
        try:
            when = datetime.fromisoformat(told[1].replace(",", "."))
        except ValueError:
            return True
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return (self.since is None or when >= self.since) and (self.until is None or when < self.until)


def _of(text: str) -> bytes:
    return re.escape(text.encode())


def _in_either(letter: str) -> bytes:
    """A letter in bytes, in both cases: there `re` knows those of ASCII alone."""
    if letter.isascii():
        return _of(letter)
    return b"(?:" + b"|".join(sorted({_of(form) for form in (letter, letter.lower(), letter.upper())})) + b")"


ALWAYS = Span()


class Wanted(NamedTuple):
    """Which lines are wanted: with what, of when, and of which rank."""

    sought: Sought
    span: Span
    rank: int | None

    def shown(self, rank: int, line: str) -> str | None:
        """The line, or what of a long one stands around what is sought; None of one that is not wanted."""
        if self.rank not in {None, rank} or not self.span.holds(line):
            return None
        found = self.sought.within(line)
        return None if found is None else line[max(0, found.start() - AROUND) : found.end() + AROUND]


class Step(NamedTuple):
    """A part of the work: the place behind it, how many bytes it counts as, and what it found."""

    behind: Place
    looked: int
    match: LogMatch | None = None


def search(
    context: Context,
    run_id: str,
    text: str,
    *,
    attempt: int | None = None,
    rank: int | None = None,
    ignore_case: bool = False,
    regex: bool = False,
    span: Span = ALWAYS,
    limit: int = 100,
    cursor: str | None = None,
) -> LogMatches:
    """Lines that hold `text`, of one rank or all, of one attempt or all. A page may be empty and not be the last.

    With `regex` the text is a regular expression, of one line. Raises NotFound for a run, attempt or rank that is not
    there, BadCursor, and BadPattern.
    """
    run = runs.get(context, run_id)
    chosen = get_attempts(context, run.id) if attempt is None else [get_attempt(context, run.id, attempt)]
    nodes = range(run.resolved["nodes"]) if rank is None else [node_of(run, rank)]
    begin = Place(*map(int, id_before(cursor, FORM).split("."))) if cursor else Place(0)
    chosen = [one for one in chosen if span.overlaps(one)]
    found, looked, sought = list[LogMatch](), 0, (Pattern if regex else Words)(text, ignore_case=ignore_case)
    for step in _steps(runs.where(context, run), chosen, nodes, begin, Wanted(sought, span, rank)):
        looked += step.looked
        if step.match is not None:
            found.append(step.match)
        if len(found) == limit or looked >= SCANNED:
            return LogMatches(found, cursor_after(".".join(map(str, step.behind))), looked)
    return LogMatches(found, None, looked)


def _steps(
    context: Context, attempts: Sequence[AttemptView], nodes: Sequence[int], begin: Place, wanted: Wanted
) -> Iterator[Step]:
    for each in attempts:
        for node in nodes:
            if (each.attempt, node) >= (begin.attempt, begin.node):
                same = (each.attempt, node) == (begin.attempt, begin.node)
                yield from _through(context, each, begin if same else Place(each.attempt, node), wanted)


def _through(context: Context, attempt: AttemptView, place: Place, wanted: Wanted) -> Iterator[Step]:
    """A node's log from a place on, a chunk of whole lines at a time; the last line without an end where it is over."""
    name, pod = attempt.name, pod_of(attempt, place.node)
    while True:
        data = context.cluster.logs(name, pod, place.offset, LARGEST_CHUNK)
        if not data and place.offset < (there := context.cluster.log_extent(name, pod)).first:
            place = place._replace(offset=there.first, line=there.lines)
            continue
        whole = data[: data.rfind(b"\n") + 1] or (data if attempt.finished_at or len(data) == LARGEST_CHUNK else b"")
        for at, behind, line in wanted.sought.lines(whole):
            here = place._replace(offset=place.offset + behind, line=place.line + line)
            written, shown = of_line(whole[at:behind].decode("utf-8", "replace").rstrip("\r\n"))
            if (cut := wanted.shown(written, shown)) is not None:
                match = LogMatch(attempt.attempt, written, here.line, place.offset + at, cut)
                yield Step(here, 0, match)
        place = place._replace(offset=place.offset + len(whole), line=place.line + whole.count(b"\n"))
        yield Step(place, LOOK + wanted.sought.work(whole))
        if not whole:
            return
