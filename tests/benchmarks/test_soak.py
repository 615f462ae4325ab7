"""What the soak calls flat, and what it does not."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest

from benchmarks.controlplane.plane import Plane
from benchmarks.controlplane.soak import Look, Soak, picture, slope, verdicts, within

PLANE = object.__new__(Plane)
QUICK = {0.001: 0, 0.01: 0, math.inf: 0}


def looks(mb_an_hour: float, *, minutes: float = 30.0, noise: float = 0.5) -> list[Look]:
    chance = random.Random(1)
    return [
        Look(
            at=2.0 * number,
            resident_mb=150 + mb_an_hour * number / 1800 + chance.gauss(0, noise),
            files=40,
            threads=20,
            cpu_s=0.0,
            phases={"succeeded": number},
            decisions={0.001: number, 0.01: 2 * number, math.inf: 2 * number},
        )
        for number in range(int(30 * minutes))
    ]


def held(seen: list[Look], soak: Soak | None = None) -> set[str]:
    return {name for name, (holds, _) in verdicts(seen, soak or Soak(PLANE)).items() if holds}


EVERYTHING = {"memory_mb_an_hour", "more_files_and_threads", "scheduling_p99_ms", "failed"}


def test_the_slope_is_that_of_the_line_and_its_interval_holds_it() -> None:
    each, half = slope([(one.at, one.resident_mb) for one in looks(40)])
    assert 0 < half < 1 / 360
    assert 3600 * (each - half) <= 40 <= 3600 * (each + half)
    assert slope([(1.0, 2.0)])[1] == math.inf


@pytest.mark.parametrize(("mb_an_hour", "minutes", "noise", "holds"),
                         [(0, 30, 0.5, True), (60, 30, 0.5, False), (0, 3, 10, False)])  # fmt: skip
def test_memory_is_flat_where_its_slope_is_small_and_well_known(
    mb_an_hour: float, minutes: float, noise: float, holds: bool
) -> None:
    assert ("memory_mb_an_hour" in held(looks(mb_an_hour, minutes=minutes, noise=noise))) == holds


def test_files_that_stay_open_late_decisions_and_failures_are_told() -> None:
    assert held(looks(0)) == EVERYTHING
    leaking = [dataclasses.replace(one, files=40 + number // 20) for number, one in enumerate(looks(0))]
    assert held(leaking) == EVERYTHING - {"more_files_and_threads"}
    late = [dataclasses.replace(one, decisions={**one.decisions, math.inf: 3 * n}) for n, one in enumerate(looks(0))]
    assert held(late) == EVERYTHING - {"scheduling_p99_ms"}
    failing = Soak(PLANE)
    failing.failed["read: 500"] += 1
    assert held(looks(0), failing) == EVERYTHING - {"failed"}
    lost = [dataclasses.replace(one, phases={"failed": 1}) for one in looks(0)]
    assert held(lost) == EVERYTHING - {"failed"}


def test_decisions_before_the_first_look_do_not_count() -> None:
    first, last = dataclasses.replace(looks(0)[0], decisions={**QUICK, math.inf: 9}), looks(0)[10]
    last = dataclasses.replace(last, decisions={0.001: 50, 0.01: 100, math.inf: 109})
    assert (within(0.5, first, last), within(0.99, first, last)) == (0.001, 0.01)


def test_the_picture_rises_with_the_memory() -> None:
    lines = picture([(one.at, one.resident_mb) for one in looks(600, noise=0)], columns=20, rows=4).splitlines()
    assert all("*" in line for line in lines[:4])
    assert lines[0].rindex("*") > lines[3].rindex("*")
    assert lines[4].split() == ["minutes", "0.0", "30.0"]
