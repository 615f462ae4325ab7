from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, select

from controlplane.domain.errors import BadCursor, InvalidSpec, KeyReused, NameInUse, NotFound
from controlplane.domain.spec import parse_spec
from controlplane.domain.sweeps import SweepSpec
from controlplane.services import metrics, runs, sweeps
from controlplane.services.attempts import events
from controlplane.services.context import Context
from controlplane.services.views import SweepTable
from controlplane.store.tables import Run


def ask(context: Context, *, key: str | None = None, **body: Any) -> SweepTable:
    body = {"name": "rates", "spec": {"size": "tiny"}, "grid": {"/train/seed": [1, 2, 3]}, "parallelism": 2, **body}
    return sweeps.create_sweep(context, SweepSpec(**body), idempotency_key=key)[0]


def count(context: Context) -> int:
    with context.store.read() as session:
        return session.scalar(select(func.count()).select_from(Run)) or 0


def refused(context: Context, **body: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidSpec) as refusal:
        ask(context, **body)
    assert count(context) == 0
    return [(one.pointer, one.code) for one in refusal.value.problems]


def test_every_point_becomes_a_run_named_after_the_sweep_and_its_place(context: Context) -> None:
    made = ask(context)
    assert [(one.name, one.values, one.phase) for one in made.items] == [
        ("rates-0", {"/train/seed": 1}, "queued"),
        ("rates-1", {"/train/seed": 2}, "queued"),
        ("rates-2", {"/train/seed": 3}, "queued"),
    ]
    assert [one.reason for one in made.items] == [None, None, "WaitsForSweep"]
    assert made.items[2].message == "sweep 'rates' lets 2 runs go at a time"
    assert (made.phases, made.ended, made.parallelism) == ({"queued": 3}, False, 2)
    run = runs.get(context, "rates-1")
    assert (run.sweep, run.resolved["config"]["seed"], run.spec["train"]) == (made.id, 2, {"seed": 2})


def test_a_sweep_without_a_name_is_called_after_its_id(context: Context) -> None:
    made = ask(context, name=None)
    assert made.name == f"sweep-{made.id[-8:].lower()}"
    assert made.items[0].name == f"{made.name}-0"


def test_the_same_key_gives_the_same_sweep_and_refuses_another(context: Context) -> None:
    made = ask(context, key="k")
    again, replayed = sweeps.create_sweep(
        context,
        SweepSpec(name="rates", spec={"size": "tiny"}, grid={"/train/seed": [1, 2, 3]}, parallelism=2),
        idempotency_key="k",
    )
    assert (again.id, replayed, count(context)) == (made.id, True, 3)
    with pytest.raises(KeyReused):
        ask(context, key="k", parallelism=1)
    with pytest.raises(KeyReused):
        runs.create_run(context, parse_spec({"size": "tiny"}), idempotency_key="k")
    assert count(context) == 3


def test_one_bad_point_and_nothing_is_made(context: Context) -> None:
    assert refused(context, grid={"/train/seed": [1, "x"]}) == [("/grid/~1train~1seed/1", "invalid_setting")]
    assert refused(context, grid={}, points=[{}, {"train": {"stepz": 1}}]) == [
        ("/points/1/train/stepz", "invalid_setting")
    ]
    assert refused(context, spec={"size": "tiny", "checkpoint": {"uri": "/tmp/x"}}) == [  # noqa: S108 - never made
        ("/spec/checkpoint/uri", "folder_in_use")
    ]
    assert refused(context, spec={"size": "no"}) == [("/spec/size", "value_error")]  # once, not for every point


def test_a_name_that_is_taken_leaves_nothing_behind(context: Context) -> None:
    runs.create_run(context, parse_spec({"size": "tiny", "name": "rates-2"}))
    with pytest.raises(NameInUse):
        ask(context, key="k")
    assert count(context) == 1
    assert sweeps.list_sweeps(context).sweeps == []
    assert ask(context, key="k", name="others").name == "others"  # the key stands for nothing yet


def test_a_cancel_reaches_every_run_that_goes_on_once(context: Context) -> None:
    made = ask(context)
    runs.cancel_run(context, "rates-0")
    cancelled = sweeps.cancel_sweep(context, "rates")
    assert cancelled.cancelled_at is not None
    assert sweeps.cancel_sweep(context, made.id).cancelled_at == cancelled.cancelled_at
    for name, told in (("rates-0", "a cancel was asked for"), ("rates-1", "a cancel of its sweep was asked for")):
        run = runs.get(context, name)
        assert (run.desired, run.revision) == ("cancelled", 2)
        assert [one.message for one in events(context, run.id) if one.kind == "cancel"] == [told]


def test_the_table_shows_the_last_and_the_lowest_losses(context: Context) -> None:
    run = ask(context).items[1].run
    for seq, loss in enumerate((3.0, 2.5, 2.75), 1):
        point = {"seq": seq, "step": seq, "time": 1.0, "loss": loss, "tokens_per_s": 7.0}
        metrics.add_metrics(context, run, 1, [{**point, "val_loss": 9 - loss} if seq < 3 else point])
    shown = sweeps.get(context, "rates").items[1]
    assert (shown.step, shown.loss, shown.best_loss, shown.tokens_per_s) == (3, 2.75, 2.5, 7.0)
    assert (shown.val_loss, shown.best_val_loss) == (6.5, 6.0)
    assert sweeps.get(context, "rates").items[0].best_loss is None


def test_sweeps_are_listed_newest_first_a_page_at_a_time(context: Context) -> None:
    names = [f"s{n}" for n in range(3)]
    for name in names:
        ask(context, name=name)
    first = sweeps.list_sweeps(context, limit=2)
    assert first.next_cursor is not None
    rest = sweeps.list_sweeps(context, cursor=first.next_cursor, limit=2)
    assert [one.name for one in [*first.sweeps, *rest.sweeps]] == names[::-1]
    assert rest.next_cursor is None
    assert first.sweeps[0].phases == {"queued": 3}
    with pytest.raises(BadCursor):
        sweeps.list_sweeps(context, cursor="cnVuXw==")


def test_the_newest_sweep_of_a_name_is_meant_and_an_unknown_one_is_not_found(context: Context) -> None:
    older = ask(context)
    ask(context, name="others")
    assert sweeps.get(context, "rates").id == older.id
    for call in (sweeps.get, sweeps.cancel_sweep):
        with pytest.raises(NotFound):
            call(context, "nothing")
