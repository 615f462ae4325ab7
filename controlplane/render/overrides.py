"""A user's patch of the pod template, in the manner of Kubernetes' strategic merge.

Maps merge, null removes, lists of named things merge by name, other lists are replaced. The result is looked at as a
whole: it must still be a pod that `controlplane.render.pod` has types for, and it must still be ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from controlplane.domain.errors import Problem
from controlplane.domain.fields import reserved_label
from controlplane.domain.spec import RESERVED_ENV, pointer_to, short
from controlplane.render import models
from controlplane.render.attempt import RESERVED_VARIABLES
from controlplane.render.pod import PORT_NAME, Container, EnvVar, PodTemplate

KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "imagePullSecrets": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}
OURS = (models.RUN_ID, models.ATTEMPT, models.MANAGED_BY)
FIELD = "pod_overrides"


class BadOverride(ValueError):
    """A patch that leads to a pod that we do not send, with every problem found (`problems`)."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, self.problems)))


def patched(template: PodTemplate, patch: Mapping[str, Any], token_volume: str) -> PodTemplate:
    """The template with the patch in it; `token_volume` is the one volume that may hold a token. Raises BadOverride."""
    merged = merge(template.manifest(), patch)
    try:
        made = PodTemplate.model_validate(merged)
    except ValidationError as error:
        raise BadOverride(_refused(merged, patch, dict(one)) for one in error.errors(include_url=False)) from None
    if problems := [*_taken(template, made), *_credentials(made, token_volume, template)]:
        raise BadOverride(problems)
    return made


def merge(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """`patch` laid over `base`; neither is changed."""
    merged = dict(base)
    for name, value in patch.items():
        before = merged.get(name)
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, Mapping):
            merged[name] = merge(before if isinstance(before, Mapping) else {}, value)
        elif isinstance(value, list) and name in KEYS:
            merged[name] = _merge_named(before if isinstance(before, list) else [], value, KEYS[name])
        else:
            merged[name] = value
    return merged


def _merge_named(base: list[Any], patch: list[Any], key: str) -> list[Any]:
    """Elements of one key merge, new ones follow."""
    merged = list(base)
    for value in patch:
        name = value.get(key) if isinstance(value, Mapping) else None
        there = [at for at, one in enumerate(merged) if name is not None and _key(one, key) == name]
        if there:
            merged[there[0]] = merge(merged[there[0]], value)
        else:
            merged.append(merge({}, value) if isinstance(value, Mapping) else value)
    return merged


def _key(value: object, key: str) -> object:
    return value.get(key) if isinstance(value, Mapping) else None


def _refused(merged: object, patch: object, one: Mapping[str, Any]) -> Problem:
    """What a type refuses, with a pointer into the patch as far as the patch goes."""
    where: list[str | int] = [FIELD]
    name = ""
    for part in one["loc"]:
        if isinstance(merged, list) and isinstance(part, int):
            key, element = KEYS.get(name), merged[part] if part < len(merged) else None
            at = part
            if key is not None and isinstance(patch, list):
                at = next((at for at, other in enumerate(patch) if _key(other, key) == _key(element, key)), part)
            merged, patch = element, patch[at] if isinstance(patch, list) and at < len(patch) else None
            where.append(at)
        else:
            name = str(part)
            merged = merged.get(name) if isinstance(merged, Mapping) else None
            patch = patch.get(name) if isinstance(patch, Mapping) else None
            where.append(name)
    given = "" if one["type"] == "missing" else f"got {short(one['input'])}; "
    said = str(one["msg"]).removeprefix("Value error, ")
    if one["type"] == "extra_forbidden":
        said = "allowed: nothing; TeraGPT's pods have no such field"
    return Problem(pointer_to(*where), "override_refused", f"{given}{said}")


def _taken(before: PodTemplate, after: PodTemplate) -> Iterable[Problem]:
    """What tells us whose the pod is, and what its processes are told by us or the operator."""
    for label in OURS:
        if after.metadata.labels.get(label) != before.metadata.labels[label]:
            yield _problem(("metadata", "labels", label), after.metadata.labels.get(label), "TeraGPT's own value")
    for label, value in after.metadata.labels.items():
        if label not in OURS and reserved_label(label) and before.metadata.labels.get(label) != value:
            yield _problem(("metadata", "labels", label), value, "keys that the cluster's controllers do not set")
    ours, made = before.spec.containers[0], after.spec.containers[0]
    if made.command is None:
        yield _problem(("spec", "containers", 0, "command"), None, "a command")
    if [port.name for port in made.ports or []].count(PORT_NAME) != 1:
        yield _problem(("spec", "containers", 0, "ports"), None, f"ports with names of their own, beside {PORT_NAME}")
    if _reserved(made) != _reserved(ours):
        changed = [one.name for one in _reserved(made) if one not in _reserved(ours)] or "one left out"
        yield _problem(("spec", "containers", 0, "env"), changed, "names that TeraGPT does not set itself")
    if after.spec.restart_policy != before.spec.restart_policy:
        yield _problem(("spec", "restartPolicy"), after.spec.restart_policy, "what TeraGPT sets")
    if after.spec.subdomain != before.spec.subdomain:
        yield _problem(("spec", "subdomain"), after.spec.subdomain, "what TeraGPT sets")


def _credentials(made: PodTemplate, token_volume: str, before: PodTemplate) -> Iterable[Problem]:
    """Tokens of the service account: ours is for the control plane alone, any other could speak for the namespace."""
    ours = next((volume for volume in before.spec.volumes if volume.name == token_volume), None)
    for at, volume in enumerate(made.spec.volumes):
        tokens = (
            [source for source in volume.projected.sources if source.service_account_token] if volume.projected else []
        )
        if tokens and volume != ours:
            yield _problem(("spec", "volumes", at, "projected"), volume.name, "no token of the service account")


def _reserved(container: Container) -> list[EnvVar]:
    """Variables whose names are ours or the operator's."""
    return [one for one in container.env if one.name in RESERVED_VARIABLES or one.name.startswith(RESERVED_ENV)]


def _problem(where: tuple[str | int, ...], given: object, allowed: str) -> Problem:
    return Problem(pointer_to(FIELD, *where), "override_refused", f"got {short(given)}; allowed: {allowed}")
