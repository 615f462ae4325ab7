"""A search finds every line that holds a text, once, in bounded steps."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import pytest

from controlplane.domain.errors import BadCursor, NotFound
from controlplane.domain.spec import parse_spec
from controlplane.services import log_search, runs
from controlplane.services.context import Context
from controlplane.services.log_search import BadPattern, Span, search
from controlplane.services.logs import pod_name
from controlplane.services.views import LogMatch, RunView
from controlplane.store.moves import add_attempt, get_attempt, get_run
from tests.controlplane.memory_cluster import MemoryCluster

FIRST = "one\n[rank 1] uno loss\ntwo loss é\r\n[rank 1] dos\nlast loss"
SECOND = "[rank 2] due loss\n[rank 3] tre\n"


@pytest.fixture
def two_nodes(context: Context, memory: MemoryCluster) -> RunView:
    spec = parse_spec({"size": "tiny", "compute": {"nodes": 2, "processes_per_node": 2, "cpus_per_node": 1}})
    made, _ = runs.create_run(context, spec)
    write(memory, made.kubernetes["name"], FIRST, 0)
    write(memory, made.kubernetes["name"], SECOND, 1)
    return made


def write(memory: MemoryCluster, name: str, text: str, node: int = 0) -> None:
    memory.written[f"{name}/{pod_name(name, node)}"] = text.encode()


def end(context: Context, run: RunView, *, again: bool = False) -> str:
    """End the first attempt; with `again` a second one follows, whose object's name this returns."""

    def job(transaction: Any) -> None:
        get_attempt(transaction, run.id, 1).finished_at = 1.0
        if again:
            add_attempt(transaction, get_run(transaction, run.id), 2, 1.0, 1.0, resumed_from=None)

    context.store.write(job)
    return str(runs.get(context, run.id).kubernetes["name"])


def every(context: Context, run: RunView, text: str, **wanted: Any) -> list[LogMatch]:
    """All pages."""
    found, cursor = list[LogMatch](), None
    for _ in range(1000):
        page = search(context, run.id, text, cursor=cursor, **wanted)
        found += page.matches
        cursor = page.next_cursor
        if cursor is None:
            return found
    raise AssertionError("it does not end")


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_all_nodes_ranks_and_attempts_are_searched(
    context: Context, two_nodes: RunView, memory: MemoryCluster, limit: int
) -> None:
    write(memory, end(context, two_nodes, again=True), "again loss\n")
    found = [(one.attempt, one.rank, one.line, one.text) for one in every(context, two_nodes, "loss", limit=limit)]
    assert found == [
        (1, 1, 2, "uno loss"),
        (1, 0, 3, "two loss é"),
        (1, 0, 5, "last loss"),
        (1, 2, 1, "due loss"),
        (2, 0, 1, "again loss"),
    ]


def test_letters_of_either_case_are_found_where_that_is_asked_for(
    context: Context, two_nodes: RunView, memory: MemoryCluster
) -> None:
    write(memory, two_nodes.kubernetes["name"], "LOSS É\nloss é\nLoss e\n\u212a a.c\n")
    assert [one.text for one in every(context, two_nodes, "loss é", ignore_case=True)] == ["LOSS É", "loss é"]
    assert [(one.line, one.offset) for one in every(context, two_nodes, "lOSS é", ignore_case=True)] == [(1, 0), (2, 8)]
    assert every(context, two_nodes, "lOSS é") == []
    assert every(context, two_nodes, "A?C", ignore_case=True) == every(context, two_nodes, "a.C") == []


def test_a_rank_and_an_attempt_narrow_it(context: Context, two_nodes: RunView) -> None:
    assert [one.text for one in every(context, two_nodes, "loss", rank=2)] == ["due loss"]
    assert [one.text for one in every(context, two_nodes, "loss", rank=0, attempt=1)] == ["two loss é"]
    assert every(context, two_nodes, "rank 1") == []
    assert [one.text for one in every(context, two_nodes, "é")] == ["two loss é"]
    with pytest.raises(NotFound, match="attempt"):
        search(context, two_nodes.id, "loss", attempt=2)
    with pytest.raises(NotFound, match="rank"):
        search(context, two_nodes.id, "loss", rank=4)


def test_an_offset_is_where_the_line_begins(context: Context, two_nodes: RunView, memory: MemoryCluster) -> None:
    end(context, two_nodes)
    for one in every(context, two_nodes, "loss"):
        name = two_nodes.kubernetes["name"]
        data = memory.written[f"{name}/{pod_name(name, one.rank // 2)}"]
        assert one.text in data[one.offset :].decode().splitlines()[0]
        assert data[: one.offset].count(b"\n") == one.line - 1


def test_a_page_is_bounded_work_and_the_next_one_goes_on(
    context: Context, run: RunView, memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_search, "SCANNED", 1 << 20)
    lines = [f"step {number} | {'x' * 90}" for number in range(50_000)]
    lines[30_000] += " needle"
    write(memory, run.kubernetes["name"], "\n".join([*lines, ""]))
    first = search(context, run.id, "needle")
    assert (first.matches, bool(first.next_cursor)) == ([], True)
    assert first.looked < 3 << 20
    (found,) = every(context, run, "needle")
    assert (found.line, found.text) == (30_001, lines[30_000])


@pytest.mark.parametrize(
    ("pattern", "shown"),
    [
        (r"^\w+ loss", ["uno loss", "two loss é", "last loss", "due loss"]),
        (r"loss$", ["uno loss", "last loss", "due loss"]),
        (r"^dos$", ["dos"]),
        (r"l.ss é", ["two loss é"]),
        (r"(?i)TRE|DOS", ["dos", "tre"]),
        (r"one\s", []),
    ],
)
def test_a_regular_expression_is_of_one_line(
    context: Context, two_nodes: RunView, pattern: str, shown: list[str]
) -> None:
    end(context, two_nodes)
    assert [one.text for one in every(context, two_nodes, pattern, regex=True)] == shown
    assert [one.text for one in every(context, two_nodes, pattern, regex=True, limit=1)] == shown


@pytest.mark.parametrize("pattern", ["(", "(a)\\1", "(?=a)", "a{2000}", "(?:(?:a{1000}){1000}){1000}"])
def test_what_no_linear_engine_can_find_is_refused(context: Context, run: RunView, pattern: str) -> None:
    with pytest.raises(BadPattern):
        search(context, run.id, pattern, regex=True)


def test_a_pattern_that_would_hang_another_engine_takes_no_time(
    context: Context, run: RunView, memory: MemoryCluster
) -> None:
    write(memory, run.kubernetes["name"], "a" * 200_000 + "\n")
    begun = time.process_time()
    assert every(context, run, "(a|aa)+(a+)+$b", regex=True) == []
    assert time.process_time() - begun < 5


def test_lines_are_of_their_own_time_or_of_their_attempts(
    context: Context, run: RunView, memory: MemoryCluster
) -> None:
    lines = [
        "2026-11-30T01:00:00Z early",
        "[2026-11-30 02:00:00,5] noon",
        "2026-11-30T03:30:00+01:00 zoned",
        "timeless",
    ]
    write(memory, run.kubernetes["name"], "\n".join([*lines, ""]))
    end(context, run)  # in 1970

    def shown(since: str | None = None, until: str | None = None) -> list[str]:
        span = Span(*(datetime.fromisoformat(one) if one else None for one in (since, until)))
        return [one.text.split()[-1] for one in every(context, run, "", regex=True, span=span)]

    assert shown() == ["early", "noon", "zoned", "timeless"]
    assert shown(until="2026-11-30T02:00:00Z") == ["early", "timeless"]
    assert shown(until="2026-11-30T02:00:01Z") == ["early", "noon", "timeless"]
    assert shown(since="1970-01-01T00:00:00Z", until="2026-11-30T01:30:00Z") == ["early", "timeless"]
    assert shown(since="2026-11-30T02:00:00Z") == []  # the attempt had ended


def test_of_a_long_line_what_stands_around_is_shown(context: Context, run: RunView, memory: MemoryCluster) -> None:
    write(memory, run.kubernetes["name"], "a" * 5000 + "needle" + "b" * 5000 + "\n")
    (found,) = every(context, run, "needle")
    assert found.text == "a" * 500 + "needle" + "b" * 500


def test_a_log_that_has_lost_its_beginning_keeps_its_numbers(
    context: Context, run: RunView, memory: MemoryCluster
) -> None:
    name = run.kubernetes["name"]
    write(memory, name, "".join(f"step {number}\n" for number in range(100)))
    key = f"{name}/{pod_name(name, 0)}"
    memory.given_up[key] = (memory.written[key].index(b"step 40\n"), 40)
    assert (every(context, run, "5")[0].line, every(context, run, "5")[0].text) == (46, "step 45")
    assert every(context, run, "step 39") == []


@pytest.mark.parametrize("cursor", ["x", "MQ==", "MS4yLjM="])
def test_a_cursor_of_nobody_is_refused(context: Context, run: RunView, cursor: str) -> None:
    with pytest.raises(BadCursor):
        search(context, run.id, "x", cursor=cursor)
