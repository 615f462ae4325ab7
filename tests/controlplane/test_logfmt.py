from __future__ import annotations

import json
import logging
import sys

import pytest

from controlplane.logfmt import Logfmt, about, configure


def line(message: str, **extra: object) -> str:
    record = logging.makeLogRecord(
        {"name": "controlplane.x", "levelname": "INFO", "msg": message, "created": 0, **extra}
    )
    return Logfmt().format(record)


def test_a_line_names_time_level_logger_and_message() -> None:
    assert line("ready") == "time=1970-01-01T00:00:00.000+00:00 level=info logger=controlplane.x msg=ready"


@pytest.mark.parametrize("value", ["", "two words", 'a"b', "a=b", "line\nbreak", "Wört"])
def test_values_that_would_blur_the_pairs_are_quoted(value: str) -> None:
    told = line("m", run=value)
    assert json.loads(told.partition(" run=")[2]) == value
    assert "\n" not in told


def test_plain_values_stand_bare() -> None:
    assert line("m", path="/v1/runs", ms=1.5).endswith(" path=/v1/runs ms=1.5")


def test_a_line_says_what_it_is_about_within_and_no_longer_than_that() -> None:
    with about(run="run_1"), about(attempt=2):
        assert line("m", to="x").endswith("msg=m to=x run=run_1 attempt=2")
    assert line("m").endswith("msg=m")


def test_a_traceback_stays_within_the_line() -> None:
    try:
        int("boom")
    except ValueError:
        told = line("failed", exc_info=sys.exc_info())
    assert "boom" in told
    assert "\n" not in told


def test_our_lines_go_to_stderr_from_the_level_on_and_libraries_from_warning_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure("info")
        logging.getLogger("controlplane.a").info("ours")
        logging.getLogger("controlplane.a").debug("too fine")
        logging.getLogger("library").info("theirs")
        logging.getLogger("library").warning("heard")
        told = capsys.readouterr()
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.getLogger("controlplane").setLevel(logging.NOTSET)
    assert [text.partition("msg=")[2] for text in told.err.splitlines()] == ["ours", "heard"]
    assert not told.out
