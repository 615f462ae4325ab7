"""A spec as it becomes a run, all of its problems raised at once."""

from __future__ import annotations

from typing import Any

from controlplane.domain.errors import InvalidSpec
from controlplane.domain.layout import Machine, misfits
from controlplane.domain.resolve import ResolvedRun, lay_out
from controlplane.domain.spec import RunSpec


def resolve(spec: RunSpec, machine: Machine, out: str, **settings: Any) -> ResolvedRun:
    run = lay_out(spec, machine, out, **settings)
    if problems := list(misfits(run.layout, spec, machine)):
        raise InvalidSpec(problems)
    return run
