"""From a spec to a run with nothing left open: every setting of the trainer, its layout, its bytes, its steps.

The one place that joins what a user asked for with what the machine has. It reads no clock and no database; the
dataset's vocabulary is handed in by whoever could read it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from controlplane.domain.errors import InvalidSpec, Problem
from controlplane.domain.layout import Layout, Machine, layout_on_cluster, layout_on_machine
from controlplane.domain.names import compact
from controlplane.domain.placement import Kind, Placement, Scheduling, given
from controlplane.domain.planned import on_gpus, told
from controlplane.domain.priorities import RANKS
from controlplane.domain.spec import SET_ELSEWHERE, RunSpec, short
from controlplane.domain.storage import REMOTE, BadStorage, Place, place_of, uri_of
from teragpt.config import Config, ConfigError, for_cores
from teragpt.config import resolve as resolve_config
from teragpt.datasets.portions import parse_mixture, written
from teragpt.layout import misfits, state
from teragpt.plan import Plan
from teragpt.sizes import REFERENCE_VOCABULARY, SIZES, TINY

RANK_GRACE_S = 120
OUT, START = "/checkpoint/uri", "/train/start_from"
SECTIONS: dict[str, type[Placement | Scheduling]] = {"placement": Placement, "scheduling": Scheduling}
READS = {"num_tokens", "loader"}  # given, the vocabulary is the user's own business
BATCHES = {"global_batch_tokens", "eval_sequences"}
NUMBERS = ("processes_per_node", "gpus_per_node", "cpus_per_node", "nodes")  # of compute: what makes the ranks so many
LISTS = ("claims", "command", "left_open")
ON_ANY: tuple[Kind, ...] = ("Job",)  # what every Kubernetes cluster has: taken where it could not be asked yet


class Start(NamedTuple):
    """What a run begins from: the `folder` of its checkpoint, and the `optimizer` that made it, empty where unknown."""

    folder: str = ""
    optimizer: str = ""

    @classmethod
    def of(cls, resolved: Mapping[str, Any], folder: str) -> Start:
        """From the checkpoint in `folder` of a run that is `resolved`, as the store keeps it."""
        known = "optimizer" not in resolved.get("left_open", ())
        return cls(folder, resolved["config"].get("optimizer", Config.optimizer) if known else "")


ANEW = Start()


@dataclass(frozen=True)
class ResolvedRun:
    """A run with nothing left open. `state_bytes` are those of the fullest rank, by kind.

    `folder` is the run folder as its user knows it; `config` holds paths as the pods see them, on `claims` that are
    mounted into each. `kind` and `namespace` (empty: the cluster's own) are those of its objects for all its life: what
    is created again must be the same object. So is `cluster`, one of the further ones (empty: the installation's own).
    `secrets` are the variables that come from one; `command` is what pods run that do not train; `left_open` are
    settings that only the trainer can know, which sees data and checkpoints: `config` holds a guess. `planned` is what
    the planner says of it, empty without known GPUs. Fields with a default may be absent in what an older version
    stored.
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
    kind: Kind = "PyTorchJob"
    namespace: str = ""
    cluster: str = ""
    runtime: str | None = None
    placement: Placement = field(default_factory=Placement)
    scheduling: Scheduling = field(default_factory=Scheduling)
    secrets: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    pod_overrides: dict[str, Any] = field(default_factory=dict[str, Any])
    ttl_after_finish_s: int | None = None
    command: tuple[str, ...] = ()
    left_open: tuple[str, ...] = ()
    planned: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.layout.world_size

    def to_json(self) -> dict[str, Any]:
        """As the store and the API hold it."""
        flat = dict(vars(self))
        layout = vars(flat.pop("layout"))
        given = {name: flat[name].model_dump(mode="json", exclude_defaults=True) for name in SECTIONS}
        lists = {name: list(flat[name]) for name in LISTS}
        return {**layout, "world_size": self.world_size, **flat, **given, **lists}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ResolvedRun:
        """The run that `to_json` wrote, also that of an older version."""
        layout = Layout(**{one.name: value[one.name] for one in dataclasses.fields(Layout) if one.name in value})
        others = {one.name: value[one.name] for one in dataclasses.fields(cls) if one.name in value}
        others |= {name: model.model_validate(value.get(name, {})) for name, model in SECTIONS.items()}
        others["folder"] = value.get("folder", value["config"]["out"])
        others |= {name: tuple(value.get(name, ())) for name in LISTS}
        return cls(layout=layout, **others)

    @property
    def spec_hash(self) -> str:
        """What tells this run's objects from another's of the same name."""
        return spec_hash(self.to_json())


def spec_hash(resolved: Mapping[str, Any]) -> str:
    """As `ResolvedRun.spec_hash`, of what `to_json` wrote."""
    said = compact({name: value for name, value in resolved.items() if name != "planned"})
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def lay_out(
    spec: RunSpec,
    machine: Machine,
    out: str,
    *,
    vocabulary: int | None = None,
    start: Start = ANEW,
    shared_folders: bool = True,
    kinds: Sequence[Kind] = ("PyTorchJob",),
    kind: Kind | Literal["auto"] = "auto",
    namespaces: Sequence[str] = (),
    cluster: str = "",
) -> ResolvedRun:
    """The run that `spec` describes on `machine`, whether it fits there or not (`layout.misfits` says).

    Its run folder is `out` unless the spec names one. `shared_folders` where pods see this machine's files; elsewhere
    `out` and what it starts from are addresses as `controlplane.domain.storage` knows them, and an empty `out` means
    that the spec must name one. `kinds` of objects can be made, the best one first; `kind` is the installation's wish,
    the spec's own goes first. `namespaces` are those that runs may live in, on the further `cluster` if one is named.
    Raises InvalidSpec with a pointer to every field that cannot be used.
    """
    problems = list(unhonoured(spec)) if shared_folders else []
    places = _places(spec, out, start.folder, problems, shared_folders=shared_folders)
    chosen = _kind(spec, kinds, kind, problems)
    if not shared_folders:
        problems += _elsewhere(spec, namespaces)
    before = {"optimizer": start.optimizer} if start.optimizer else {}
    config = _config(spec, {**before, **spec.train, **_folders(spec, places, problems)}, vocabulary, problems)
    if problems or config is None:
        raise InvalidSpec(problems)
    layout, plan = on_gpus(spec, config, machine, layout_on_machine if shared_folders else layout_on_cluster)
    if isinstance(plan, Plan):
        config = dataclasses.replace(config, **plan.settings)
    if not layout.gpus_per_node:
        config = for_cores(config, spec.train)
    if problems := list(_mesh_problems(config, layout, spec)):
        raise InvalidSpec(problems)
    bytes_of_state = state(config, layout.world_size)
    return ResolvedRun(
        config=dataclasses.asdict(config),
        layout=layout,
        parameters=config.shape.parameters(config.num_tokens),
        tokens=config.tokens,
        steps=config.steps,
        state_bytes={**dataclasses.asdict(bytes_of_state), "total": bytes_of_state.total},
        env={variable.name: variable.value for variable in spec.env if variable.value is not None},
        labels=dict(spec.labels),
        folder=places[OUT].uri,
        claims=tuple(sorted({place.claim for place in places.values() if place.claim})),
        kind=chosen,
        namespace="" if shared_folders else spec.kubernetes.namespace or next(iter(namespaces), ""),
        cluster=cluster,
        runtime=spec.kubernetes.runtime if chosen == "TrainJob" else None,
        placement=Placement.model_validate(spec.compute.model_dump(include=set(Placement.model_fields))),
        scheduling=spec.scheduling,
        secrets={one.name: one.secret_ref.model_dump() for one in spec.env if one.secret_ref is not None},
        pod_overrides=spec.pod_overrides,
        ttl_after_finish_s=spec.limits.ttl_after_finish_s,
        planned=told(plan),
        left_open=tuple(_left_open(spec, config, start, shared_folders=shared_folders)),
    )


def _left_open(spec: RunSpec, config: Config, start: Start, *, shared_folders: bool) -> Iterator[str]:
    """What only the trainer can know: the vocabulary of data, the optimizer of checkpoints that it alone reads."""
    if not shared_folders and spec.data.uris and not spec.train.keys() & READS:
        yield "num_tokens"
    if (config.start_from or spec.checkpoint.uri) and not start.optimizer and "optimizer" not in spec.train:
        yield "optimizer"


def unhonoured(spec: RunSpec) -> Iterator[Problem]:
    """What the local cluster has nothing for: refused, so that nobody waits for an effect that cannot come."""
    there = [
        *((f"/compute/{name}", value) for name, value in given(spec.compute)),
        *((f"/scheduling/{name}", value) for name, value in given(spec.scheduling) if name != "priority"),
        *((f"/kubernetes/{name}", value) for name, value in given(spec.kubernetes) if name != "kind"),
        *((f"/env/{at}/secret_ref", one.secret_ref) for at, one in enumerate(spec.env) if one.secret_ref),
    ]
    if spec.limits.ttl_after_finish_s is not None:
        there.append(("/limits/ttl_after_finish_s", spec.limits.ttl_after_finish_s))
    if spec.pod_overrides:
        there.append(("/pod_overrides", "a patch"))
    if (priority := spec.scheduling.priority) is not None and priority not in RANKS:
        detail = f"got {short(priority)}; allowed on the local cluster: {', '.join(RANKS)}"
        yield Problem("/scheduling/priority", "not_on_this_cluster", detail)
    for pointer, value in there:
        detail = f"got {short(value)}; allowed: nothing, since the local cluster has no such thing; leave it out"
        yield Problem(pointer, "not_on_this_cluster", detail)


def _elsewhere(spec: RunSpec, namespaces: Sequence[str]) -> Iterator[Problem]:
    """A namespace that is none of ours."""
    asked = spec.kubernetes.namespace
    if asked is not None and asked not in namespaces:
        detail = f"got {asked!r}; allowed: the installation's namespaces of runs, {', '.join(namespaces)}"
        yield Problem("/kubernetes/namespace", "not_on_this_cluster", detail)


def _kind(spec: RunSpec, kinds: Sequence[Kind], wanted: Kind | Literal["auto"], problems: list[Problem]) -> Kind:
    """The kind of the run's objects; where the cluster is known not to have it, that is added to `problems`."""
    asked = spec.kubernetes.kind
    if asked == "auto":
        asked = "TrainJob" if spec.kubernetes.runtime else wanted
    if asked == "auto":
        return (*kinds, *ON_ANY)[0]
    pointer = "/kubernetes/kind" if spec.kubernetes.kind != "auto" else "/kubernetes/runtime"
    if kinds and asked not in kinds and all(problem.pointer != pointer for problem in problems):
        detail = f"got {asked!r}; allowed: what the cluster has, {', '.join(kinds)}"
        problems.append(Problem(pointer, "not_on_this_cluster", detail))
    return asked


def _places(
    spec: RunSpec, out: str, start_from: str, problems: list[Problem], *, shared_folders: bool
) -> dict[str, Place]:
    """By pointer, the folders that the run reads and writes; what is wrong is added to `problems`."""
    start = start_from or spec.train.get("start_from", "")
    begun = start if isinstance(start, str) else ""  # anything else, the trainer's settings refuse
    addresses = {OUT: spec.checkpoint.uri or out, **spec.data.uris, START: begun if shared_folders else uri_of(begun)}
    places: dict[str, Place] = {}
    for pointer, uri in addresses.items():
        if not uri:
            continue
        try:
            places[pointer] = place_of(uri, shared_folders=shared_folders)
        except BadStorage as error:
            problems.append(Problem(pointer, "not_a_folder", str(error)))
    if not addresses[OUT]:
        detail = f"it is required, since this installation has no storage of its own; allowed: {REMOTE}"
        problems.append(Problem(OUT, "missing", detail))
    return places


def _folders(spec: RunSpec, places: Mapping[str, Place], problems: list[Problem]) -> dict[str, str]:
    """The settings of the trainer that name folders; what is wrong with a mixture is added to `problems`."""
    paths = {pointer: place.path for pointer, place in places.items()}
    names = {"out": OUT, "start_from": START, **({"data": "/data/uri"} if spec.data.uri else {})}
    folders = {name: paths[pointer] for name, pointer in names.items() if pointer in paths}
    data = [paths[pointer] for pointer in spec.data.uris if pointer in paths]
    if not spec.data.sources and "sources" in spec.data.model_fields_set:
        detail = "got none; allowed: one or more, or leave it out for the embedded corpus"
        problems.append(Problem("/data/sources", "too_short", detail))
    if not spec.data.sources or len(data) < len(spec.data.sources):
        return folders
    mixture = ",".join(written(at, one.weight, one.epochs) for at, one in zip(data, spec.data.sources, strict=True))
    if len(data) == 1 and spec.data.sources[0].epochs is None:
        return {**folders, "data": data[0]}
    try:
        read = [one.place for one in parse_mixture(mixture)]
    except ConfigError as error:
        problems += [Problem("/data/sources", "invalid_mixture", one.detail) for one in error.problems]
        return folders
    if read != data:
        detail = f"got {short(mixture)}; allowed: addresses without commas"
        problems.append(Problem("/data/sources", "invalid_mixture", detail))
    return {**folders, "data": mixture}


def _config(spec: RunSpec, given: Mapping[str, Any], vocabulary: int | None, problems: list[Problem]) -> Config | None:
    """The trainer's configuration; what is wrong with it is added to `problems`."""
    settings: dict[str, Any] = {"size": spec.size, **given}
    if spec.checkpoint.every_steps is not None:
        settings["checkpoint_every"] = spec.checkpoint.every_steps
    try:
        return resolve_config(settings, vocabulary)
    except ConfigError as error:
        problems += [Problem(_pointer(one.field, spec), "invalid_setting", one.detail) for one in error.problems]
        return None


def _pointer(setting: str, spec: RunSpec) -> str:
    """Where in the spec a setting of the trainer was given."""
    elsewhere = SET_ELSEWHERE.get(setting)
    return elsewhere if elsewhere and setting not in spec.train else f"/train/{setting}"


def _mesh_problems(config: Config, layout: Layout, spec: RunSpec) -> Iterator[Problem]:
    """What the ranks cannot share out; batches that nobody asked for are blamed on what made the ranks so many."""
    found = list(misfits(config, layout.world_size))
    small = [one for one in found if one.field in BATCHES - spec.train.keys()]
    if small:
        more = " and ".join(f"/train/{one.field}" for one in small)
        detail = f"got {layout.world_size} ranks; allowed: fewer, or more of {more}: {small[0].allowed}"
        asked = [name for name in NUMBERS if name in spec.compute.model_fields_set]
        yield Problem(f"/compute/{(asked or NUMBERS)[0]}", "more_ranks_than_sequences", detail)
    for one in found:
        if one not in small:
            yield Problem(_pointer(one.field, spec), "invalid_setting", one.detail)


def sizes() -> list[dict[str, Any]]:
    """Every named size with what it derives, for `GET /sizes`."""
    rows: list[dict[str, Any]] = []
    for name in SIZES:
        config = resolve_config({"size": name}, None if name == TINY else REFERENCE_VOCABULARY)
        parameters = config.shape.parameters(config.num_tokens)
        derived = {key: getattr(config, key) for key in SHOWN}
        rows.append({"name": name, "parameters": parameters, **derived, "state_bytes": state(config).total})
    return rows


SHOWN = (
    "dim",
    "depth",
    "heads",
    "kv_heads",
    "head_dim",
    "ffn",
    "context",
    "num_tokens",
    "tied",
    "tokens",
    "global_batch_tokens",
    "steps",
    "optimizer",
    "learning_rate",
)
