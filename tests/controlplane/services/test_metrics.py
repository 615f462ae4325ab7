from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.errors import NotFound
from controlplane.services import metrics
from controlplane.services.context import Context
from controlplane.services.metrics import add_metrics, curve, last_point, merged, points_after, thinned
from controlplane.services.runs import get
from controlplane.services.views import RunView
from controlplane.store.moves import add_attempt, get_run


def point(seq: int, step: int, **values: float | None) -> dict[str, Any]:
    return {"seq": seq, "step": step, "time": float(seq), **values}


def second_attempt(context: Context, run: RunView) -> None:
    context.store.write(lambda t: add_attempt(t, get_run(t, run.id), 2, 1.0, 1.0))


def test_points_are_added_once_and_acknowledged_by_the_highest(context: Context, run: RunView) -> None:
    assert add_metrics(context, run.id, 1, [point(1, 1, loss=5.0), point(2, 2, loss=4.0)]).seq == 2
    assert add_metrics(context, run.id, 1, [point(2, 2, loss=99.0), point(3, 3, loss=3.0)]).seq == 3
    assert add_metrics(context, run.id, 1, [point(1, 1, loss=99.0)]).seq == 3
    assert add_metrics(context, run.id, 1, []).seq == 3
    assert [one["loss"] for one in curve(context, run.id)] == [5.0, 4.0, 3.0]


def test_points_of_many_threads_are_all_there_once(context: Context, run: RunView) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: add_metrics(context, run.id, 1, [point(n, n), point(n + 1, n + 1)]), range(1, 100)))
    assert [one["seq"] for one in points_after(context, run.id)] == list(range(1, 101))


def test_points_of_no_run_or_attempt_are_refused(context: Context, run: RunView) -> None:
    with pytest.raises(NotFound, match="attempt 7"):
        add_metrics(context, run.id, 7, [point(1, 1)])
    with pytest.raises(NotFound, match="run 'run_0'"):
        add_metrics(context, "run_0", 1, [point(1, 1)])


def test_progress_is_the_newest_point_and_keeps_the_last_evaluation(context: Context, run: RunView) -> None:
    add_metrics(context, run.id, 1, [point(1, 0, val_loss=7.0), point(2, 1, loss=5.0, tokens_per_s=10.0, eta_s=60.0)])
    progress = get(context, run.id).progress
    assert progress is not None
    shown = {key: progress[key] for key in ("step", "steps", "loss", "val_loss", "tokens_per_s", "eta_s")}
    assert shown == {
        "step": 1,
        "steps": run.resolved["steps"],
        "loss": 5.0,
        "val_loss": 7.0,
        "tokens_per_s": 10.0,
        "eta_s": 60.0,
    }


def test_an_older_attempts_late_points_do_not_turn_progress_back(context: Context, run: RunView) -> None:
    second_attempt(context, run)
    add_metrics(context, run.id, 2, [point(1, 50, loss=2.0)])
    add_metrics(context, run.id, 1, [point(9, 40, loss=3.0)])
    progress = get(context, run.id).progress
    assert progress is not None
    assert progress["step"] == 50


def test_a_curve_shows_the_highest_attempt_at_each_step_with_its_evaluation(context: Context, run: RunView) -> None:
    second_attempt(context, run)
    add_metrics(context, run.id, 1, [point(n, n, loss=float(n)) for n in range(1, 5)] + [point(5, 4, val_loss=9.0)])
    add_metrics(context, run.id, 2, [point(1, 3, loss=30.0), point(2, 4, loss=40.0), point(3, 4, val_loss=41.0)])
    shown = [(one["step"], one["attempt"], one["loss"], one.get("val_loss")) for one in curve(context, run.id)]
    assert shown == [(1, 1, 1.0, None), (2, 1, 2.0, None), (3, 2, 30.0, None), (4, 2, 40.0, 41.0)]


def test_keys_pick_values_and_leave_out_points_that_have_none(context: Context, run: RunView) -> None:
    add_metrics(context, run.id, 1, [point(1, 1, loss=1.0, lr=0.1), point(2, 2, val_loss=2.0)])
    picked = curve(context, run.id, keys=["val_loss", "step"])
    assert picked == [{"attempt": 1, "seq": 2, "step": 2, "time": 2.0, "val_loss": 2.0}]


def test_a_stream_goes_on_after_the_last_point_that_it_sent(context: Context, run: RunView) -> None:
    second_attempt(context, run)
    assert last_point(context, run.id) == (0, 0)
    add_metrics(context, run.id, 1, [point(1, 1), point(2, 2)])
    add_metrics(context, run.id, 2, [point(1, 2)])
    places = [(one["attempt"], one["seq"]) for one in points_after(context, run.id, attempt=1, seq=1)]
    assert places == [(1, 2), (2, 1)]
    assert points_after(context, run.id, attempt=2, seq=1) == []
    assert last_point(context, run.id) == (2, 1)
    assert len(points_after(context, run.id, limit=2)) == 2


def test_a_rewind_within_an_attempt_shows_what_came_last() -> None:
    points = [{"attempt": 1, "step": 5, "loss": 9.0}, {"attempt": 1, "step": 5, "loss": 1.0}]
    assert [one["loss"] for one in merged(points)] == [1.0]


@given(values=st.lists(st.one_of(st.none(), st.floats(-100, 100)), min_size=1, max_size=300), most=st.integers(2, 60))
def test_thinning_keeps_the_ends_the_extremes_and_the_bound(values: list[float | None], most: int) -> None:
    points = [{"step": step, "loss": value} for step, value in enumerate(values)]
    kept = thinned(points, most, ["loss", "absent"])
    assert len(kept) <= max(2, most)
    assert kept[0] is points[0]
    assert kept[-1] is points[-1]
    assert [one["step"] for one in kept] == sorted({one["step"] for one in kept})
    known = [value for value in values if value is not None]
    if known and most >= 4:
        losses = [one["loss"] for one in kept if one["loss"] is not None]
        assert min(losses) == min(known)
        assert max(losses) == max(known)


def test_a_short_curve_is_not_thinned(context: Context, run: RunView) -> None:
    add_metrics(context, run.id, 1, [point(n, n, loss=float(n)) for n in range(1, 101)])
    assert len(curve(context, run.id, downsample=100)) == 100
    thin = curve(context, run.id, downsample=10)
    assert len(thin) <= 10
    assert (thin[0]["step"], thin[-1]["step"]) == (1, 100)
    assert metrics.SHAPE_KEYS == ("loss", "val_loss")
