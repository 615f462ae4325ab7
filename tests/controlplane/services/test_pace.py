from __future__ import annotations

from controlplane.services.pace import LONGEST_S, Pace


def test_many_runs_are_told_to_report_less_often_and_few_again_once_they_are_few() -> None:
    now = 0.0
    pace = Pace(lambda: now)
    assert pace.heard("alone") == 0.01
    for number in range(200):
        pace.heard(str(number))
    assert pace.heard("alone") == 2.01
    now = 5.0
    assert pace.heard("alone") == 2.01
    now = 10.0
    assert pace.heard("alone") == 0.01


def test_no_curve_is_far_behind_however_many_they_are() -> None:
    pace = Pace(lambda: 0.0)
    assert max(pace.heard(str(number)) for number in range(5000)) == LONGEST_S


def test_who_was_silent_for_long_is_not_counted() -> None:
    now = 0.0
    pace = Pace(lambda: now)
    for number in range(100):
        pace.heard(str(number))
    now = 3600.0
    assert pace.heard("alone") == 0.01
