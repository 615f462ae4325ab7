"""Search in what a run's ranks wrote: all that is kept of it, a page at a time, each of bounded work.

Attempts are gone through from the first on, within one its nodes, within a node its log from the beginning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

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
FORM = re.compile(r"\d{1,9}\.\d{1,9}\.\d{1,18}\.\d{1,18}")


class Place(NamedTuple):
    """Where a search goes on: at byte `offset` of the log of an attempt's node, which `line` lines precede."""

    attempt: int
    node: int = 0
    offset: int = 0
    line: int = 0


class Sought:
    """A text to be found in a log: as it is, or with its letters in either case."""

    def __init__(self, text: str, *, ignore_case: bool = False) -> None:
        flags = re.IGNORECASE if ignore_case else 0
        self.in_text = re.compile(re.escape(text), flags)
        self.in_bytes = re.compile(b"".join(_in_either(letter) for letter in text) if ignore_case else _of(text), flags)


def _of(text: str) -> bytes:
    return re.escape(text.encode())


def _in_either(letter: str) -> bytes:
    """A letter in bytes, in both cases: there `re` knows those of ASCII alone."""
    if letter.isascii():
        return _of(letter)
    return b"(?:" + b"|".join(sorted({_of(form) for form in (letter, letter.lower(), letter.upper())})) + b")"


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
    limit: int = 100,
    cursor: str | None = None,
) -> LogMatches:
    """Lines that hold `text`, of one rank or all, of one attempt or all. A page may be empty and not be the last.

    Raises NotFound for a run, attempt or rank that is not there, and BadCursor.
    """
    run = runs.get(context, run_id)
    chosen = get_attempts(context, run.id) if attempt is None else [get_attempt(context, run.id, attempt)]
    nodes = range(run.resolved["nodes"]) if rank is None else [node_of(run, rank)]
    begin = Place(*map(int, id_before(cursor, FORM).split("."))) if cursor else Place(0)
    found, looked, sought = list[LogMatch](), 0, Sought(text, ignore_case=ignore_case)
    for step in _steps(runs.where(context, run), chosen, nodes, begin, sought, rank):
        looked += step.looked
        if step.match is not None:
            found.append(step.match)
        if len(found) == limit or looked >= SCANNED:
            return LogMatches(found, cursor_after(".".join(map(str, step.behind))), looked)
    return LogMatches(found, None, looked)


def _steps(
    context: Context,
    attempts: Sequence[AttemptView],
    nodes: Sequence[int],
    begin: Place,
    sought: Sought,
    rank: int | None,
) -> Iterator[Step]:
    for each in attempts:
        for node in nodes:
            if (each.attempt, node) >= (begin.attempt, begin.node):
                same = (each.attempt, node) == (begin.attempt, begin.node)
                yield from _through(context, each, begin if same else Place(each.attempt, node), sought, rank)


def _through(context: Context, attempt: AttemptView, place: Place, sought: Sought, rank: int | None) -> Iterator[Step]:
    """A node's log from a place on, a chunk of whole lines at a time; the last line without an end where it is over."""
    name, pod = attempt.name, pod_of(attempt, place.node)
    while True:
        data = context.cluster.logs(name, pod, place.offset, LARGEST_CHUNK)
        if not data and place.offset < (there := context.cluster.log_extent(name, pod)).first:
            place = place._replace(offset=there.first, line=there.lines)
            continue
        whole = data[: data.rfind(b"\n") + 1] or (data if attempt.finished_at or len(data) == LARGEST_CHUNK else b"")
        for at, behind, line in _lines_with(whole, sought.in_bytes):
            here = place._replace(offset=place.offset + behind, line=place.line + line)
            written, shown = of_line(whole[at:behind].decode("utf-8", "replace").rstrip("\r\n"))
            if rank in {None, written} and (cut := _around(shown, sought.in_text)):
                match = LogMatch(attempt.attempt, written, here.line, place.offset + at, cut)
                yield Step(here, 0, match)
        place = place._replace(offset=place.offset + len(whole), line=place.line + whole.count(b"\n"))
        yield Step(place, LOOK + len(whole))
        if not whole:
            return


def _lines_with(data: bytes, sought: re.Pattern[bytes]) -> Iterator[tuple[int, int, int]]:
    """Of every line that holds what is sought: where it begins, where the next one does, and its number from 1."""
    number, counted, found = 1, 0, sought.search(data)
    while found:
        at = found.start()
        begin, end = data.rfind(b"\n", 0, at) + 1, data.find(b"\n", at) + 1 or len(data)
        number += data.count(b"\n", counted, begin)
        yield begin, end, number
        counted, found = begin, sought.search(data, end)


def _around(line: str, sought: re.Pattern[str]) -> str:
    """The line, or what of a long one stands around what is sought; empty where only its rank was found."""
    found = sought.search(line)
    return line[max(0, found.start() - AROUND) : found.end() + AROUND] if found else ""
