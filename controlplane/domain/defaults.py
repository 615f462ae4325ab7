"""What an installation's runs take where their specs say nothing: nodes, image pull secrets, proxies, priorities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, ValidationError

from controlplane.domain.errors import InvalidSpec
from controlplane.domain.fields import LabelValue, OwnLabel, Section
from controlplane.domain.placement import Placement, Scheduling
from controlplane.domain.spec import RunSpec, Variable, problems_of, shallow

SectionT = TypeVar("SectionT", bound=Section)


class RunDefaults(Section):
    """The parts of a spec that an installation may decide. What a spec gives goes first, field by field."""

    compute: Placement = Field(default_factory=Placement)
    scheduling: Scheduling = Field(default_factory=Scheduling)
    env: Annotated[list[Variable], Field(max_length=256)] = Field(default_factory=list)
    labels: Annotated[dict[OwnLabel, LabelValue], Field(max_length=64)] = Field(default_factory=dict)
    pod_overrides: Annotated[dict[str, Any], AfterValidator(shallow)] = Field(default_factory=dict)

    def under(self, spec: RunSpec) -> RunSpec:
        """The spec with these defaults in what it leaves open; variables and labels are joined by name."""
        named = {variable.name for variable in spec.env}
        return spec.model_copy(
            update={
                "compute": _filled(spec.compute, self.compute),
                "scheduling": _filled(spec.scheduling, self.scheduling),
                "env": [*(each for each in self.env if each.name not in named), *spec.env],
                "labels": {**self.labels, **spec.labels},
                "pod_overrides": spec.pod_overrides or self.pod_overrides,
            }
        )


def parse_defaults(given: Mapping[str, Any]) -> RunDefaults:
    """The defaults that a JSON object describes. Raises InvalidSpec with a pointer to every bad field."""
    try:
        return RunDefaults.model_validate(given)
    except ValidationError as error:
        raise InvalidSpec(problems_of(error)) from None


def _filled(given: SectionT, defaults: Section) -> SectionT:
    names = defaults.model_fields_set - given.model_fields_set
    return given.model_copy(update={name: getattr(defaults, name) for name in names})
