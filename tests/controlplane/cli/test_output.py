from __future__ import annotations

from datetime import UTC, datetime

import pytest

from controlplane.cli import output
from controlplane.durations import duration


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(None, "-"), (0, "0:00"), (41.4, "0:41"), (11105, "3:05:05"), (183_600, "2d 03:00"), (-3, "0:00")],
)
def test_durations_read_like_clocks(seconds: float | None, written: str) -> None:
    assert duration(seconds) == written


@pytest.mark.parametrize(
    ("number", "written"), [(0, "0 B"), (999, "999 B"), (1625051136, "1.63 GB"), (999_999, "1 MB"), (3e18, "3e+03 PB")]
)
def test_bytes_are_short(number: float, written: str) -> None:
    assert output.size(number) == written


@pytest.mark.parametrize(
    ("number", "written"),
    [(0, "0 ranks"), (1, "1 rank"), (2, "2 ranks"), (0.5, "0.5 ranks"), (1234567, "1,234,567 ranks")],
)
def test_one_thing_is_not_many(number: float, written: str) -> None:
    assert output.count(number, "rank") == written


def test_moments_are_shown_to_the_second() -> None:
    assert output.clock("2026-11-24T12:00:00.25+02:00") == "2026-11-24 10:00:00"
    assert output.clock(None) == "-"
    assert output.since(None) is None
    assert str(output.since("2026-11-24T10:00:00Z")).startswith("2026-11-24 10:00:00 UTC, ")


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
