from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import sqlite

from controlplane.domain.changes import RunChanges
from controlplane.domain.errors import BadCursor
from controlplane.domain.spec import parse_spec
from controlplane.services import changes, runs
from controlplane.services.context import Context
from controlplane.services.lists import Filter, list_runs, page_of
from tests.controlplane.memory_cluster import Clock
from tests.controlplane.postgres import ON_POSTGRES, ON_SQLITE, planned


def ask(context: Context, **spec: Any) -> str:
    return runs.create_run(context, parse_spec({"size": "tiny", **spec}))[0].id


def ids(context: Context, **conditions: Any) -> list[str]:
    return [run.id for run in list_runs(context, Filter(**conditions)).runs]


@pytest.mark.parametrize("labels", [{}, {"odd": "1"}])
def test_pages_are_newest_first_and_complete_while_runs_are_added(context: Context, labels: dict[str, str]) -> None:
    made = [ask(context, labels={"odd": str(number % 2)}) for number in range(7)]
    seen, cursor = [], None
    while True:
        page = list_runs(context, Filter(labels=labels), cursor=cursor, limit=2)
        seen += [run.id for run in page.runs]
        cursor = page.next_cursor
        ask(context, labels={"odd": "1"})
        if cursor is None:
            break
    assert seen == (made[1::2] if labels else made)[::-1]


def test_every_condition_narrows_a_list(context: Context, clock: Clock) -> None:
    one = ask(context, name="Alpha_1", labels={"team": "lm", "gpu": "no"}, pinned=True)
    clock.sleep(60)
    two = ask(context, name="alphaX2", labels={"team": "lm"})
    then = datetime.fromtimestamp(clock.now, UTC)
    assert ids(context) == [two, one]
    assert ids(context, phases=["queued", "failed"]) == [two, one]
    assert ids(context, phases=["failed"]) == []
    assert ids(context, sizes=["124m", "tiny"]) == [two, one]
    assert ids(context, sizes=["124m"]) == []
    assert ids(context, name="Alpha_1") == [one]
    assert ids(context, labels={"team": "lm"}) == [two, one]
    assert ids(context, labels={"team": "lm", "gpu": "no"}) == ids(context, labels={"gpu": "no", "team": "lm"}) == [one]
    assert ids(context, pinned=True) == [one]
    assert ids(context, pinned=False) == [two]
    assert ids(context, since=then) == [two]
    assert ids(context, until=then) == [one]
    assert ids(context, since=then, until=then) == []


def test_words_are_searched_in_names_labels_and_the_start_of_ids(context: Context) -> None:
    one = ask(context, name="Größe 試験", labels={"team": "LM", "example.com/stage": "draft"})
    two = ask(context, name="50%_off")
    assert ids(context, query="GRÖSSE") == [one]
    assert ids(context, query="験") == [one]
    assert ids(context, query="team=lm") == ids(context, query="lm größe") == [one]
    assert ids(context, query="stage=dr") == [one]
    assert ids(context, query="lm off") == []
    assert ids(context, query="%") == ids(context, query="_off") == [two]
    assert ids(context, query="\\") == []
    assert ids(context, query=f" {two} ") == [two]
    assert ids(context, query=two[:-1]) == [two]
    assert ids(context, query="  ") == [two, one]


@pytest.mark.parametrize("cursor", ["x", "é", base64.urlsafe_b64encode(b"run_1").decode()])
def test_a_cursor_that_no_list_gave_out_is_refused(context: Context, cursor: str) -> None:
    with pytest.raises(BadCursor):
        list_runs(context, Filter(), cursor=cursor)


LETTERS = st.text("ab%_\\ Éß=", min_size=1, max_size=6).filter(str.strip)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=LETTERS, label=st.text("ab", max_size=3), query=LETTERS)
def test_a_run_is_found_exactly_by_words_that_it_holds(context: Context, name: str, label: str, query: str) -> None:
    run = ask(context, labels={"k": label})
    named = runs.clone_run(context, run, {"name": name.strip()})[0].id
    found = named in ids(context, query=query)
    runs.cancel_run(context, named)
    free_name(context, named)
    text = f"{name.strip()} k={label}".casefold()
    assert found == all(word.casefold() in text for word in query.split())


def free_name(context: Context, run_id: str) -> None:
    """What the reconciler does with a cancelled run."""
    from controlplane.domain.phases import CANCELLED_EARLY
    from controlplane.store.moves import move

    assert context.store.write(lambda transaction: move(transaction, run_id, CANCELLED_EARLY, 1.0))


@ON_SQLITE
@pytest.mark.parametrize(
    ("conditions", "first"),
    [
        ({}, "SEARCH runs USING COVERING INDEX ix_runs_listed (id<?)"),
        ({"query": "lm", "phases": ["failed"]}, "SEARCH runs USING COVERING INDEX ix_runs_listed (id<?)"),
        (
            {"labels": {"team": "lm"}, "sizes": ["tiny"]},
            "SEARCH run_labels USING COVERING INDEX ix_run_labels_key_value_run_id (key=? AND value=? AND run_id<?)",
        ),
    ],
)
def test_a_page_is_found_in_indexes_in_the_order_of_the_list(
    context: Context, conditions: dict[str, Any], first: str
) -> None:
    statement = page_of(Filter(**conditions), "run_Z", 51)
    compiled = str(statement.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True}))
    with context.store.read() as session:
        plan = [row.detail for row in session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}")]
    assert plan[0] == first
    assert not any("TEMP B-TREE" in step for step in plan), plan


@ON_POSTGRES
@pytest.mark.parametrize(
    "conditions",
    [{}, {"query": "lm", "phases": ["failed"]}, {"labels": {"team": "lm"}, "sizes": ["tiny"]}],
    ids=["all", "searched", "labelled"],
)
def test_a_page_is_in_the_order_of_an_index_before_postgres_has_counted_any_row(
    context: Context, conditions: dict[str, Any]
) -> None:
    ask(context, labels={"team": "lm"})
    plan = planned(context.store, page_of(Filter(**conditions), "run_Z", 51))
    assert "Index" in plan
    assert not any(step in plan for step in ("Sort", "Seq Scan")), plan


def test_changed_labels_are_searched_and_filtered(context: Context) -> None:
    run = ask(context, labels={"team": "lm", "draft": "yes"})
    changes.change_run(context, run, RunChanges(labels={"team": "vision", "draft": None}))
    assert ids(context, labels={"team": "vision"}) == ids(context, query="vision") == [run]
    assert ids(context, labels={"team": "lm"}) == ids(context, query="draft") == []
