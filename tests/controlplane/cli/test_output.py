from __future__ import annotations

from datetime import UTC, datetime

import pytest

from controlplane.cli import output


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(None, "-"), (0, "0:00"), (41.4, "0:41"), (11105, "3:05:05"), (183_600, "2d 03:00"), (-3, "0:00")],
)
def test_durations_read_like_clocks(seconds: float | None, written: str) -> None:
    assert output.duration(seconds) == written


def test_age_is_the_time_since() -> None:
    assert output.age("2026-11-24T10:00:00Z", datetime(2026, 11, 24, 10, 2, 5, tzinfo=UTC)) == "2:05"
    assert output.age(None) == "-"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "-"),
        ("", "-"),
        (True, "yes"),
        (False, "no"),
        (1_234_567, "1,234,567"),
        (0.0071, "0.0071"),
        (123456.7, "123,457"),
        ("word", "word"),
        ([1, "ä"], '[1, "ä"]'),
    ],
)
def test_cells(value: object, written: str) -> None:
    assert output.text(value) == written


def test_details_are_dotted_names_without_what_is_empty(capsys: pytest.CaptureFixture[str]) -> None:
    output.details({"id": "run_1", "resolved": {"config": {"dim": 192}}, "reason": None, "labels": {}})
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [["field", "value"], ["id", "run_1"], ["resolved.config.dim", "192"]]


def test_a_piped_table_cuts_nothing_off(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["name", "run"], [["n" * 60, "r" * 60]])
    assert f"{'n' * 60}  {'r' * 60}" in capsys.readouterr().out
