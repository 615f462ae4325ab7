from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.changes import merged
from controlplane.domain.errors import InvalidSpec, Problem
from controlplane.domain.sweeps import MOST_POINTS, SweepSpec, values_of

SPEC = {"size": "tiny", "labels": {"a/b": "c"}}


def problems(**body: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidSpec) as refused:
        SweepSpec(spec=SPEC, **body).patches()
    return [(one.pointer, one.code) for one in refused.value.problems]


def blamed(sweep: SweepSpec, at: int) -> list[str]:
    """The fields of the sweep's body that are wrong with a point."""
    patch = sweep.patches()[at]
    with pytest.raises(InvalidSpec) as refused:
        sweep.run_spec(patch)
    return [sweep.blamed(at, patch, one).pointer for one in refused.value.problems]


def test_a_grid_is_every_combination_and_the_last_pointer_varies_fastest() -> None:
    sweep = SweepSpec(spec=SPEC, grid={"/train/seed": [1, 2], "/labels/a~1b": ["x", "y"]})
    assert [values_of(one) for one in sweep.patches()] == [
        {"/train/seed": 1, "/labels/a~1b": "x"},
        {"/train/seed": 1, "/labels/a~1b": "y"},
        {"/train/seed": 2, "/labels/a~1b": "x"},
        {"/train/seed": 2, "/labels/a~1b": "y"},
    ]
    assert sweep.run_spec(sweep.patches()[1]).labels == {"a/b": "y"}


NAMES = st.text(min_size=1, max_size=3)


@given(st.dictionaries(NAMES, st.lists(st.integers(), min_size=1, max_size=4, unique=True), min_size=1, max_size=3))
def test_each_combination_of_a_grid_comes_once_and_is_read_back_as_it_was_given(values: dict[str, list[int]]) -> None:
    grid = {"/train/" + name.replace("~", "~0").replace("/", "~1"): several for name, several in values.items()}
    patches = SweepSpec(grid=grid).patches()
    assert len(patches) == math.prod(map(len, values.values()))
    seen = {tuple(values_of(patch).items()) for patch in patches}
    assert len(seen) == len(patches)
    assert all(each.keys() == grid.keys() for each in map(dict, seen))


def test_a_list_of_points_is_taken_as_it_is() -> None:
    points: list[dict[str, Any]] = [{"size": "124m"}, {"train": {"seed": 2}}]
    assert SweepSpec(spec=SPEC, points=points).patches() == points
    assert merged(SPEC, points[1]) == {**SPEC, "train": {"seed": 2}}


def test_what_is_no_sweep_is_refused_with_its_field() -> None:
    assert problems() == [("", "one_of")]
    assert problems(grid={"/size": ["tiny"]}, points=[{}]) == [("", "one_of")]
    assert problems(grid={"/train/seed": [*range(23)], "/train/steps": [*range(23)]}) == [("/grid", "too_many_points")]
    assert problems(grid={"seed": [1], "": [2]}) == [("/grid/seed", "no_pointer"), ("/grid/", "no_pointer")]
    assert problems(grid={"/train": [{}], "/train/seed": [1]}) == [("/grid/~1train~1seed", "within_another")]
    assert len(SweepSpec(grid={"/train/seed": [*range(MOST_POINTS)]}).patches()) == MOST_POINTS


def test_a_point_that_is_there_already_is_refused_by_its_place() -> None:
    assert problems(grid={"/train/seed": [1, 2, 1], "/pinned": [True]}) == [("/grid/~1train~1seed/2", "repeated_point")]
    same = [{}, {"train": {"seed": 1}}, {"size": "tiny"}, {"train": {"seed": 1, "steps": None}}]
    assert problems(points=same) == [("/points/2", "repeated_point"), ("/points/3", "repeated_point")]
    assert problems(grid={"/train/a": [1, 1.0, 2.5, 2.5e0]}) == [
        ("/grid/~1train~1a/1", "repeated_point"),
        ("/grid/~1train~1a/3", "repeated_point"),
    ]
    assert problems(points=[{"train": {"a": [0]}}, {"train": {"a": [-0.0]}}]) == [("/points/1", "repeated_point")]
    assert len(SweepSpec(grid={"/train/a": [1, True, "1", [1], {"b": 1}]}).patches()) == 5


def test_a_bad_run_is_blamed_on_the_field_that_made_it_so() -> None:
    grid = SweepSpec(spec={"size": "tiny", "limits": {"max_restarts": -1}}, grid={"/compute/nodes": [1, 0, 2]})
    assert blamed(grid, 1) == ["/grid/~1compute~1nodes/1", "/spec/limits/max_restarts"]
    alike = SweepSpec(spec=SPEC, grid={"/compute/nodes": [1, True]})
    assert blamed(alike, 1) == ["/grid/~1compute~1nodes/1"]
    listed = SweepSpec(spec={}, points=[{"compute": {"nodes": 0}}])
    assert blamed(listed, 0) == ["/points/0", "/points/0/compute/nodes"]  # the size is nowhere
    assert blamed(SweepSpec(spec=SPEC, points=[{"name": "mine"}]), 0) == ["/points/0/name"]
    assert blamed(SweepSpec(spec={**SPEC, "name": "mine"}, grid={"/train/seed": [1]}), 0) == ["/spec/name"]


def test_what_only_the_whole_can_be_blamed_for_names_the_point() -> None:
    sweep = SweepSpec(spec=SPEC, grid={"/train/seed": [1, 2]})
    problem = Problem("/compute/processes_per_node", "more_ranks_than_sequences", "got 9 ranks")
    told = sweep.blamed(1, sweep.patches()[1], problem)
    assert (told.pointer, told.detail) == ("/grid", "point 1: /compute/processes_per_node: got 9 ranks")
