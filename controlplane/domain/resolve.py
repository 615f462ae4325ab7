"""From a spec to a run with nothing left open: every setting of the trainer, its layout, its bytes, its steps.

The one place that joins what a user asked for with what the machine has. It reads no clock and no database; the
dataset's vocabulary is handed in by whoever could read it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from controlplane.domain.errors import InvalidSpec, Problem
from controlplane.domain.layout import Layout, Machine, layout_on_cluster, layout_on_machine, misfits
from controlplane.domain.names import fingerprint
from controlplane.domain.spec import SET_ELSEWHERE, RunSpec
from controlplane.domain.storage import REMOTE, BadStorage, Place, place_of, uri_of
from teragpt.config import Config, ConfigError
from teragpt.config import resolve as resolve_config
from teragpt.plan import state
from teragpt.sizes import REFERENCE_VOCABULARY, SIZES, TINY

RANK_GRACE_S = 120


@dataclass(frozen=True)
class ResolvedRun:
    """A run with nothing left open. `state_bytes` are those of the fullest rank, by kind.

    `folder` is the run folder as its user knows it; `config` holds paths as the pods see them, on `claims` that are
    mounted into each. Every field after `steps` may be absent in what an older version stored.
    """

    config: dict[str, Any]
    layout: Layout
    parameters: int
    tokens: int
    steps: int
    state_bytes: dict[str, int]
    env: dict[str, str] = field(default_factory=dict[str, str])
    labels: dict[str, str] = field(default_factory=dict[str, str])
    grace_s: int = RANK_GRACE_S
    folder: str = ""
    claims: tuple[str, ...] = ()

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.layout.world_size

    def to_json(self) -> dict[str, Any]:
        """As the store and the API hold it."""
        flat = dataclasses.asdict(self)
        return {**flat.pop("layout"), "world_size": self.world_size, **flat, "claims": list(self.claims)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ResolvedRun:
        """The run that `to_json` wrote, also that of an older version."""
        layout = Layout(**{f.name: value[f.name] for f in dataclasses.fields(Layout)})
        others = {f.name: value[f.name] for f in dataclasses.fields(cls) if f.name in value}
        folder, claims = others.pop("folder", value["config"]["out"]), tuple(others.pop("claims", ()))
        return cls(layout=layout, folder=folder, claims=claims, **others)

    @property
    def spec_hash(self) -> str:
        """What tells this run's objects from another's of the same name."""
        return fingerprint(self.to_json())


def resolve(
    spec: RunSpec,
    machine: Machine,
    out: str,
    *,
    vocabulary: int | None = None,
    start_from: str = "",
    shared_folders: bool = True,
) -> ResolvedRun:
    """The run that `spec` describes on `machine`, with run folder `out` unless the spec names one.

    `shared_folders` where pods see this machine's files; elsewhere `out` and `start_from` are addresses as
    `controlplane.domain.storage` knows them, and an empty `out` means that the spec must name one. Raises InvalidSpec
    with a pointer to every field that cannot be used, also for what can never fit the machine.
    """
    run = lay_out(spec, machine, out, vocabulary=vocabulary, start_from=start_from, shared_folders=shared_folders)
    if problems := list(misfits(run.layout, spec, machine)):
        raise InvalidSpec(problems)
    return run


def lay_out(
    spec: RunSpec,
    machine: Machine,
    out: str,
    *,
    vocabulary: int | None = None,
    start_from: str = "",
    shared_folders: bool = True,
) -> ResolvedRun:
    """As `resolve`, whether it fits the machine or not."""
    problems: list[Problem] = []
    places = _places(spec, out, start_from, problems, shared_folders=shared_folders)
    config = _config(spec, {name: place.path for name, place in places.items()}, vocabulary, problems)
    if problems or config is None:
        raise InvalidSpec(problems)
    parameters = config.shape.parameters(config.num_tokens)
    if shared_folders:
        layout = layout_on_machine(spec.compute, machine, parameters)
    else:
        layout = layout_on_cluster(spec.compute, machine, parameters, spec.size)
    if problems := list(_batch_problems(config, layout)):
        raise InvalidSpec(problems)
    bytes_of_state = state(parameters, layout.world_size)
    return ResolvedRun(
        config=dataclasses.asdict(config),
        layout=layout,
        parameters=parameters,
        tokens=config.tokens,
        steps=config.steps,
        state_bytes={**dataclasses.asdict(bytes_of_state), "total": bytes_of_state.total},
        env={variable.name: variable.value for variable in spec.env},
        labels=dict(spec.labels),
        folder=places["out"].uri,
        claims=tuple(sorted({place.claim for place in places.values() if place.claim})),
    )


def _places(
    spec: RunSpec, out: str, start_from: str, problems: list[Problem], *, shared_folders: bool
) -> dict[str, Place]:
    """By setting of the trainer, the folders that the run reads and writes; what is wrong is added to `problems`."""
    given = start_from or spec.train.get("start_from", "")
    begun = given if isinstance(given, str) else ""  # anything else, the trainer's settings refuse
    addresses = {
        "out": ("/checkpoint/uri", spec.checkpoint.uri or out),
        "data": ("/data/uri", spec.data.uri or ""),
        "start_from": ("/train/start_from", begun if shared_folders else uri_of(begun)),
    }
    places: dict[str, Place] = {}
    for name, (pointer, uri) in addresses.items():
        if not uri:
            continue
        try:
            places[name] = place_of(uri, shared_folders=shared_folders)
        except BadStorage as error:
            problems.append(Problem(pointer, "not_a_folder", str(error)))
    if not addresses["out"][1]:
        detail = f"it is required, since this installation has no storage of its own; allowed: {REMOTE}"
        problems.append(Problem("/checkpoint/uri", "missing", detail))
    return places


def _config(spec: RunSpec, places: Mapping[str, str], vocabulary: int | None, problems: list[Problem]) -> Config | None:
    """The trainer's configuration; what is wrong with it is added to `problems`."""
    given: dict[str, Any] = {"size": spec.size, **spec.train, **places}
    if spec.checkpoint.every_steps is not None:
        given["checkpoint_every"] = spec.checkpoint.every_steps
    try:
        return resolve_config(given, vocabulary)
    except ConfigError as error:
        problems += [Problem(_pointer(one.field, spec), "invalid_setting", str(one)) for one in error.problems]
        return None


def _pointer(setting: str, spec: RunSpec) -> str:
    """Where in the spec a setting of the trainer was given."""
    elsewhere = SET_ELSEWHERE.get(setting)
    return elsewhere if elsewhere and setting not in spec.train else f"/train/{setting}"


def _batch_problems(config: Config, layout: Layout) -> Iterable[Problem]:
    """What the ranks must be able to share out."""
    world = layout.world_size
    if config.sequences < world:
        detail = f"got {world} ranks; allowed: at most the {config.sequences} sequences of a global batch"
        yield Problem("/compute/processes_per_node", "more_ranks_than_sequences", detail)
    if world % config.dp_replicate:
        detail = f"dp_replicate: got {config.dp_replicate}; allowed: a divisor of the {world} ranks"
        yield Problem("/train/dp_replicate", "invalid_setting", detail)


def sizes() -> list[dict[str, Any]]:
    """Every named size with what it derives, for `GET /sizes`."""
    rows: list[dict[str, Any]] = []
    for name in SIZES:
        config = resolve_config({"size": name}, None if name == TINY else REFERENCE_VOCABULARY)
        parameters = config.shape.parameters(config.num_tokens)
        derived = {key: getattr(config, key) for key in SHOWN}
        rows.append({"name": name, "parameters": parameters, **derived, "state_bytes": state(parameters, 1).total})
    return rows


SHOWN = (
    "dim",
    "depth",
    "heads",
    "kv_heads",
    "ffn",
    "context",
    "num_tokens",
    "tied",
    "tokens",
    "global_batch_tokens",
    "steps",
    "learning_rate",
)
