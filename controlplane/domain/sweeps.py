"""A sweep: one spec and many points. From the body of `POST /sweeps` to the spec of each run, and back again.

What is wrong with a run of a point is wrong with a field of that body, which is named. It knows no store.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints

from controlplane.domain.changes import merged
from controlplane.domain.errors import InvalidSpec, Problem
from controlplane.domain.fields import Section
from controlplane.domain.names import fingerprint
from controlplane.domain.spec import RunSpec, parse_spec, pointer_to, printable, short

MOST_POINTS = 500  # all of them are stored in one transaction
WAITS_FOR_SWEEP = "WaitsForSweep"
SweepName = Annotated[str, StringConstraints(min_length=1, max_length=90), AfterValidator(printable)]


class SweepSpec(Section):
    """What a sweep is asked to be: a spec, and where its runs differ from it, as a `grid` or as a list of `points`."""

    name: SweepName | None = Field(
        default=None,
        description="Display name; its runs are called after it, with the point's number. After its id unless given.",
        examples=["rates"],
    )
    spec: dict[str, Any] = Field(
        default_factory=dict,
        description="What all of its runs have in common: the body of `POST /runs`, without `name`.",
        examples=[{"size": "tiny", "train": {"steps": 50}}],
    )
    grid: dict[str, Annotated[list[Any], Field(min_length=1, max_length=MOST_POINTS)]] = Field(
        default_factory=dict,
        description="Values by JSON pointer into the spec: a run for each combination; the last varies fastest.",
        examples=[{"/train/learning_rate": [0.001, 0.002], "/train/seed": [1, 2]}],
    )
    points: Annotated[list[dict[str, Any]], Field(max_length=MOST_POINTS)] = Field(
        default_factory=list,
        description="In place of a grid, a run for each: a JSON merge patch (RFC 7396) of the spec.",
        examples=[[{"train": {"learning_rate": 0.001}}, {"size": "124m", "train": {"seed": 2}}]],
    )
    parallelism: int = Field(
        default=1, ge=1, le=MOST_POINTS, description="The most of its runs that are under way at once.", examples=[2]
    )

    def patches(self) -> list[dict[str, Any]]:
        """The points as merge patches of the spec. Raises InvalidSpec."""
        if problems := list(self._misshapen()):
            raise InvalidSpec(problems)
        if self.points:
            return self.points
        return [_patch(dict(zip(self.grid, values, strict=True))) for values in itertools.product(*self.grid.values())]

    def run_spec(self, patch: dict[str, Any]) -> RunSpec:
        """The spec of a point's run. Raises InvalidSpec, with pointers into that spec."""
        spec = merged(self.spec, patch)
        if "name" in spec:
            detail = f"got {short(spec['name'])}; allowed: nothing, since runs are called after the sweep"
            raise InvalidSpec([Problem("/name", "named_by_sweep", detail)])
        return parse_spec(spec)

    def blamed(self, at: int, patch: dict[str, Any], problem: Problem) -> Problem:
        """What is wrong with the run of point `at` as a problem of the sweep's body."""
        if self.points and _given(patch, problem.pointer):
            return Problem(f"/points/{at}{problem.pointer}", problem.code, problem.detail)
        for pointer, values in self.grid.items():
            if f"{problem.pointer}/".startswith(f"{pointer}/"):
                given = fingerprint(_leaf(patch, pointer))  # 1 and true are equal to Python
                value = next(place for place, one in enumerate(values) if fingerprint(one) == given)
                return Problem(pointer_to("grid", pointer, value), problem.code, problem.detail)
        if _given(self.spec, problem.pointer):
            return Problem(f"/spec{problem.pointer}", problem.code, problem.detail)
        where = f"/points/{at}" if self.points else "/grid"
        return Problem(where, problem.code, f"point {at}: {problem}")

    def _misshapen(self) -> Iterator[Problem]:
        if bool(self.grid) == bool(self.points):
            got = "both" if self.grid else "neither"
            yield Problem("", "one_of", f"got {got} of grid and points; allowed: exactly one of the two, not empty")
        several = math.prod(len(values) for values in self.grid.values())
        if several > MOST_POINTS:
            yield Problem("/grid", "too_many_points", f"got {several:,} points; allowed: {MOST_POINTS}")
        yield from self._twice()
        for pointer in self.grid:
            if not _parts(pointer):
                allowed = "a JSON pointer into the spec, as /train/learning_rate"
                yield Problem(pointer_to("grid", pointer), "no_pointer", f"got {short(pointer)}; allowed: {allowed}")
            elif above := next((one for one in self.grid if pointer.startswith(f"{one}/")), None):
                detail = f"got a field within {short(above)}; allowed: pointers to different fields"
                yield Problem(pointer_to("grid", pointer), "within_another", detail)

    def _twice(self) -> Iterator[Problem]:
        """Points that are there already: their runs would train the very same, and no column would tell them apart."""
        allowed = "each once; to do the same again, vary /train/seed"
        for pointer, values in self.grid.items():
            for at, _ in _repeated(values):
                detail = f"got {short(values[at])} once more; allowed: {allowed}"
                yield Problem(pointer_to("grid", pointer, at), "repeated_point", detail)
        for at, before in _repeated([merged(self.spec, patch) for patch in self.points]):
            detail = f"got what point {before} makes of the spec; allowed: {allowed}"
            yield Problem(f"/points/{at}", "repeated_point", detail)


def _repeated(values: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """Which of some JSON values were there before, and where first. 1 and 1.0 are the same, true is another."""
    first: dict[str, int] = {}
    for at, value in enumerate(values):
        if (before := first.setdefault(fingerprint(_plain(value)), at)) != at:
            yield at, before


def _plain(value: Any) -> Any:
    """A JSON value with its whole numbers as integers, however they were written."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def waits_for_sweep(name: str, parallelism: int) -> str:
    """What a run is told that waits for others of its sweep; the same for all of them, for as long as they wait."""
    several = "one run" if parallelism == 1 else f"{parallelism} runs"
    return f"sweep {name!r} lets {several} go at a time"


def values_of(patch: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """What a patch sets, by JSON pointer."""
    found: dict[str, Any] = {}
    for name, value in patch.items():
        pointer = above + pointer_to(name)
        found |= values_of(value, pointer) if isinstance(value, dict) and value else {pointer: value}
    return found


def _parts(pointer: str) -> list[str]:
    """The names that an RFC 6901 pointer leads through; none for what is no pointer into an object."""
    first, *names = pointer.split("/")
    return [] if first else [name.replace("~1", "/").replace("~0", "~") for name in names]


def _patch(values: Mapping[str, Any]) -> dict[str, Any]:
    patch: dict[str, Any] = {}
    for pointer, value in values.items():
        *above, last = _parts(pointer)
        place = patch
        for name in above:
            place = place.setdefault(name, {})
        place[last] = value
    return patch


def _leaf(patch: Mapping[str, Any], pointer: str) -> Any:
    found: Any = patch
    for name in _parts(pointer):
        found = found[name]
    return found


def _given(document: Mapping[str, Any], pointer: str) -> bool:
    """Whether a document says something of the field at `pointer`, or of all that is around it."""
    place: Any = document
    for name in _parts(pointer):
        if not isinstance(place, dict):
            return True
        if name not in place:
            return False
        place = place[name]
    return bool(_parts(pointer))
