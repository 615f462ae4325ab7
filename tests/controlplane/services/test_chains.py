from __future__ import annotations

from typing import Any

import pytest

from controlplane.domain.errors import InvalidSpec, NeededByRun
from controlplane.domain.spec import parse_spec
from controlplane.domain.sweeps import SweepSpec
from controlplane.services import changes, plans, purges, runs, sweeps
from controlplane.services.context import Context
from controlplane.services.views import RunView
from controlplane.store.tables import Run
from tests.controlplane.postgres import ON_SQLITE

pytestmark = ON_SQLITE


def ask(context: Context, **spec: Any) -> RunView:
    return runs.create_run(context, parse_spec({"size": "tiny", "train": {"steps": 20}, **spec}))[0]


def refused(context: Context, **spec: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidSpec) as refusal:
        ask(context, **spec)
    return [(one.pointer, one.code) for one in refusal.value.problems]


def end(context: Context, run: RunView, phase: str) -> None:
    """What the reconciler has written of a run that came to its end."""

    def job(transaction: Any) -> None:
        row = transaction.session.get_one(Run, run.id)
        row.phase, row.live_name, row.live_folder, row.finished_at = phase, None, None, context.clock()

    context.store.write(job)


@pytest.fixture
def first(context: Context) -> RunView:
    return ask(context, name="first", train={"steps": 10})


def test_a_run_comes_after_the_one_that_is_named_and_starts_where_that_ends(context: Context, first: RunView) -> None:
    second = ask(context, after="first")
    assert (second.after, second.spec["after"]) == (first.id, first.id)
    assert second.resolved["config"]["start_from"] == first.folder
    assert (second.reason, second.message) == ("WaitsForRun", f"waits for run 'first' ({first.id}) to succeed")


def test_after_a_run_that_has_succeeded_there_is_nothing_to_wait_for(context: Context, first: RunView) -> None:
    end(context, first, "succeeded")
    assert ask(context, after=first.id).reason is None


def test_what_cannot_be_waited_for_is_refused(context: Context, first: RunView) -> None:
    assert refused(context, after="itself", name="itself") == [("/after", "no_such_run")]
    assert refused(context, after="first", train={"steps": 10}) == [("/train/steps", "nothing_left")]
    assert refused(context, after="first", train={"steps": 20, "dim": 64}) == [("/after", "other_tensors")]
    assert refused(context, after="first", train={"steps": 20, "head_dim": 32}) == [("/after", "other_tensors")]
    with_start = {"steps": 20, "start_from": "/some/where"}
    assert refused(context, after="first", train=with_start) == [("/train/start_from", "one_of")]
    for phase in ("failed", "cancelled"):
        end(context, first, phase)
        assert refused(context, after=first.id) == [("/after", "cannot_follow")]


def test_a_plan_says_what_is_wrong_with_it_too(context: Context, first: RunView) -> None:
    planned = plans.plan(context, parse_spec({"size": "tiny", "after": "first", "train": {"steps": 5}}))
    assert [one.pointer for one in planned.problems] == ["/train/steps"]
    assert planned.resolved.config["start_from"] == first.folder
    with pytest.raises(InvalidSpec):
        plans.plan(context, parse_spec({"size": "tiny", "after": "nothing"}))


def test_points_of_a_sweep_may_come_after_a_run_and_not_after_each_other(context: Context, first: RunView) -> None:
    body: dict[str, Any] = {"name": "s", "spec": {"size": "tiny", "train": {"steps": 20}, "after": "first"}}
    made, _ = sweeps.create_sweep(context, SweepSpec(**body, grid={"/train/seed": [1, 2]}, parallelism=2))
    assert [one.reason for one in made.items] == ["WaitsForRun"] * 2
    assert made.items[0].message == f"waits for run 'first' ({first.id}) to succeed"
    with pytest.raises(InvalidSpec) as refusal:
        sweeps.create_sweep(context, SweepSpec(name="t", spec={"size": "tiny"}, points=[{}, {"after": "t-0"}]))
    assert [one.pointer for one in refusal.value.problems] == ["/points/1/after"]


def test_a_run_that_is_waited_for_is_not_purged(context: Context, first: RunView) -> None:
    second = ask(context, after="first")
    end(context, first, "succeeded")
    changes.delete_run(context, first.id)
    with pytest.raises(NeededByRun, match=second.id):
        purges.purge(context, first.id)


def test_a_clone_comes_after_the_same_run(context: Context, first: RunView) -> None:
    second = ask(context, after="first")
    end(context, first, "succeeded")
    ask(context, name="first")  # another one has the name by now
    assert runs.clone_run(context, second.id, {})[0].after == first.id
