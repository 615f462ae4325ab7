"""The body of `POST /runs`: what a user may ask for, field by field. It knows no size's numbers and no machine.

Everything that is not here is refused by name. What `train` may hold is `teragpt.config`'s business; `resolve` asks it.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, ValidationError, model_validator

from controlplane.domain.complaints import said
from controlplane.domain.errors import InvalidSpec, Problem
from controlplane.domain.fields import NO_NUL, VARIABLE, BadField, Cpus, LabelValue, Namespace, OwnLabel, Section, Text
from controlplane.domain.placement import Kubernetes, Placement, Scheduling, SecretRef
from teragpt.config import FIELDS
from teragpt.sizes import SIZES, TINY

SET_ELSEWHERE = {  # settings of the trainer that have a place of their own in a spec
    "size": "/size",
    "data": "/data/uri",
    "out": "/checkpoint/uri",
    "checkpoint_every": "/checkpoint/every_steps",
    "start_from": "/train/start_from",
}
RESERVED_ENV = ("TERAGPT_", "PET_")
FREE_ENV = frozenset({"TERAGPT_CACHE", "TERAGPT_CACHE_BYTES"})  # where a node keeps what it copies, and how much
RESERVED_NAMES = frozenset({"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"})
NODES, PROCESSES, CPUS, MEMORY = 65_536, 1_024, 4_096, 1 << 50  # far beyond any machine: a typo, not a wish
YEAR = 366 * 86_400
DEEPEST_PATCH = 32
TTL = 3_600  # far beyond the longest that a creation is retried, or an ended attempt would be made again
JOINERS = "\u200c\u200d"


def _known_size(size: str) -> str:
    if size not in SIZES:
        raise ValueError(f"got {size!r}; allowed: {', '.join(SIZES)}")
    return size


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def printable(name: str) -> str:
    """A name of any alphabet, without spaces around it. Raises ValueError.

    Persian and the languages of India write with joiners and others with spaces of their own, as emoji do, which Python
    does not call printable.
    """
    seen = "".join(letter for letter in name if letter not in JOINERS and unicodedata.category(letter) != "Zs")
    if not seen or not seen.isprintable():
        raise ValueError(f"got {name!r}; allowed: 1 to 100 printable characters of any alphabet")
    return name.strip()


def _free_variable(name: str) -> str:
    if (name.startswith(RESERVED_ENV) and name not in FREE_ENV) or name in RESERVED_NAMES:
        raise ValueError(f"got {name!r}; allowed: names that teragpt does not set itself")
    return name


def _misplaced(name: str) -> BadField:
    """A setting of the trainer that has a place of its own in a spec."""
    return BadField(name, f"got {name!r}, which is set at {SET_ELSEWHERE[name]}")


def _settings(train: dict[str, Any]) -> dict[str, Any]:
    for name in train:
        if name in ("size", "data", "out"):
            raise _misplaced(name)
    return train


def shallow(patch: dict[str, Any]) -> dict[str, Any]:
    """A pod is some ten levels deep; far deeper ones are no patches of one."""
    level: list[Any] = [patch]
    for _ in range(DEEPEST_PATCH):
        nested = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [value for values in nested for value in values]
    if level:
        raise ValueError(f"got more than {DEEPEST_PATCH} levels; allowed: a patch of a pod template")
    return patch


SizeName = Annotated[str, BeforeValidator(_lower), AfterValidator(_known_size)]
Notes = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]
RunName = Annotated[str, StringConstraints(min_length=1, max_length=100), AfterValidator(printable)]


class Compute(Placement):
    """Where it runs. What is left out follows from the machine: one process per GPU, without a GPU two CPU cores."""

    cluster: Namespace | None = Field(
        default=None,
        description="The cluster that it runs on, one of the installation's (GET /clusters); the first unless given.",
        examples=[None, "east"],
    )
    nodes: int | None = Field(
        default=None,
        ge=1,
        le=NODES,
        description="Nodes, each a pod; one unless given, and two for the tiny size on Kubernetes.",
        examples=[1],
    )
    gpus_per_node: int | None = Field(
        default=None,
        ge=0,
        le=PROCESSES,
        description="GPUs of each node; all that the machine has unless given.",
        examples=[0],
    )
    processes_per_node: int | None = Field(
        default=None,
        ge=1,
        le=PROCESSES,
        description="Ranks on each node; one per GPU, or per CPU where no GPU is used.",
        examples=[2],
    )
    cpus_per_node: Cpus | None = Field(
        default=None, ge=0.01, le=CPUS, description="CPU cores of each node; parts of one are allowed.", examples=[2]
    )
    memory_per_node: int | None = Field(
        default=None, ge=1 << 20, le=MEMORY, description="Bytes of memory of each node.", examples=[2 << 30]
    )


class Portion(Section):
    """One source of a mixture."""

    uri: Text = Field(description="Its dataset, as data.uri.", examples=["pvc://datasets/web"])
    weight: float = Field(
        gt=0,
        le=10**6,
        allow_inf_nan=False,
        description="Its part of the sequences, beside the other sources' weights; they need not sum to one.",
        examples=[0.7],
    )
    epochs: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="How often it is read at most; any number of times unless given.",
        examples=[None, 2],
    )


class Data(Section):
    """What it trains on."""

    uri: Text | None = Field(
        default=None,
        description="Dataset made by `teragpt prepare`: a folder, on Kubernetes pvc://CLAIM/PATH or an object store's "
        "URL; the embedded corpus unless given.",
        examples=[None, "pvc://datasets/books"],
    )
    sources: Annotated[list[Portion], Field(max_length=256)] = Field(
        default_factory=list[Portion],
        description="In place of uri, several datasets of one tokenizer, of which each gives its part of every step.",
        examples=[
            [{"uri": "pvc://datasets/web", "weight": 0.7}, {"uri": "pvc://datasets/code", "weight": 0.3, "epochs": 2}]
        ],
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.uri is not None and self.sources:
            raise BadField("sources", "got sources beside a uri; allowed: one of the two")
        return self

    @property
    def uris(self) -> dict[str, str]:
        """The address of each dataset by the pointer to it."""
        if self.uri is not None:
            return {"/data/uri": self.uri}
        return {f"/data/sources/{at}/uri": one.uri for at, one in enumerate(self.sources)}


class Checkpoint(Section):
    """Where its checkpoints go, and how often."""

    uri: Text | None = Field(
        default=None,
        description="Run folder: an absolute path, on Kubernetes pvc://CLAIM/PATH or an object store's URL; a new one "
        "in the installation's storage unless given.",
        examples=[None, "pvc://checkpoints/first-try"],
    )
    every_steps: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="Steps between checkpoints; a tenth of the run unless given.",
        examples=[50],
    )
    resume: Literal["auto"] = Field(
        default="auto",
        description="auto: every attempt goes on from the last complete checkpoint of the run folder.",
        examples=["auto"],
    )


class Limits(Section):
    """When to stop trying."""

    max_restarts: int = Field(
        default=3, ge=0, le=10_000, description="Restarts after failures before the run has failed.", examples=[3]
    )
    max_runtime_s: int | None = Field(
        default=None,
        ge=1,
        le=YEAR,
        description="Seconds from the run's first start to its deadline; none unless given.",
        examples=[3600],
    )
    max_silence_s: int | None = Field(
        default=None,
        ge=10,
        le=YEAR,
        description="Seconds that a running attempt may neither report a step nor write a line before it counts as "
        "hung; ten minutes, or the time of 100 steps where that is more, unless given.",
        examples=[1800],
    )
    max_pending_s: int | None = Field(
        default=None,
        ge=1,
        le=YEAR,
        description="Seconds that an attempt may wait for its place; no limit unless given.",
        examples=[600],
    )
    ttl_after_finish_s: int | None = Field(
        default=None,
        ge=TTL,
        le=YEAR,
        description="Seconds after which Kubernetes removes an attempt's ended object, should nobody else have.",
        examples=[604800],
    )


class Variable(Section):
    """One environment variable of every pod: its value, or the secret that holds it."""

    name: Annotated[str, StringConstraints(pattern=VARIABLE), AfterValidator(_free_variable)] = Field(
        description="The variable's name.", examples=["HF_HUB_OFFLINE"]
    )
    value: Annotated[str, StringConstraints(max_length=32_768, pattern=NO_NUL)] | None = Field(
        default=None, description="Its value; everybody who sees the run sees it.", examples=["1"]
    )
    secret_ref: SecretRef | None = Field(
        default=None,
        description="On Kubernetes, the secret that holds its value.",
        examples=[{"name": "hf", "key": "token"}],
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.value is None) == (self.secret_ref is None):
            got = "neither" if self.value is None else "both"
            raise ValueError(f"got {got} of value and secret_ref; allowed: exactly one of the two")
        return self


def _each_once(variables: list[Variable]) -> list[Variable]:
    twice = [name for name, times in Counter(one.name for one in variables).items() if times > 1]
    if twice:
        raise ValueError(f"got {twice[0]!r} more than once; allowed: each variable once")
    return variables


class Asked(Section):
    """What any run may ask, whatever it does."""

    name: RunName | None = Field(
        default=None,
        description="Display name in any alphabet; after size and id unless given.",
        examples=["first-try"],
    )
    compute: Compute = Field(
        default_factory=Compute,
        description="Where it runs.",
        examples=[{"nodes": 1, "processes_per_node": 2, "cpus_per_node": 2}],
    )
    scheduling: Scheduling = Field(
        default_factory=Scheduling, description="Who goes first on Kubernetes.", examples=[{"queue": "research"}]
    )
    limits: Limits = Field(default_factory=Limits, description="When to stop trying.", examples=[{"max_restarts": 3}])
    env: Annotated[list[Variable], Field(max_length=256), AfterValidator(_each_once)] = Field(
        default_factory=list,
        description="Environment variables of every pod.",
        examples=[[{"name": "HF_HUB_OFFLINE", "value": "1"}]],
    )
    labels: Annotated[dict[OwnLabel, LabelValue], Field(max_length=64)] = Field(
        default_factory=dict, description="Labels to find it by; also on its pods.", examples=[{"team": "lm"}]
    )
    notes: Notes | None = Field(
        default=None, description="What its user wants to remember of it.", examples=["the first one with Muon"]
    )
    pinned: bool = Field(default=False, description="Whether it is one of those to keep at hand.", examples=[False])
    kubernetes: Kubernetes = Field(
        default_factory=Kubernetes, description="What kind of object it is.", examples=[{"kind": "PyTorchJob"}]
    )
    pod_overrides: Annotated[dict[str, Any], AfterValidator(shallow)] = Field(
        default_factory=dict,
        description="On Kubernetes, a patch of the pod template: maps merge, containers, volumes and variables do by "
        "name; null removes. What would give the pod more rights is refused.",
        examples=[{"spec": {"schedulerName": "my-scheduler"}}],
    )


class Sized(Section):
    """What has a size; of a spec's fields, the one to be told of first."""

    size: SizeName = Field(
        description=f"Named size, in upper or lower case: one of {', '.join(SIZES)}.", examples=[TINY]
    )


class RunSpec(Asked, Sized):
    """What a run is asked to be. The size alone is enough: everything else derives from it and from the machine."""

    after: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = Field(
        default=None,
        description="Id or name of a run: this one waits until that one has succeeded, and starts from its last "
        "checkpoint.",
        examples=[None],
    )
    data: Data = Field(default_factory=Data, description="What it trains on.", examples=[{}])
    checkpoint: Checkpoint = Field(
        default_factory=Checkpoint, description="Where its checkpoints go.", examples=[{"every_steps": 50}]
    )
    train: Annotated[dict[str, Any], AfterValidator(_settings)] = Field(
        default_factory=dict,
        description=f"Settings of the trainer: any of {', '.join(n for n in FIELDS if n not in SET_ELSEWHERE)}.",
        examples=[{"steps": 200, "seed": 1}],
    )


def parse_spec(body: object) -> RunSpec:
    """The spec that a JSON body describes. Raises InvalidSpec with a pointer to every bad field."""
    try:
        return RunSpec.model_validate(body)
    except ValidationError as error:
        raise InvalidSpec(problems_of(error)) from None


def problems_of(error: ValidationError) -> list[Problem]:
    """Pydantic's complaints as problems with JSON pointers."""
    return [_problem(dict(one)) for one in error.errors(include_url=False)]


def _problem(one: dict[str, Any]) -> Problem:
    where, kind = list(one["loc"]), str(one["type"])
    cause = one.get("ctx", {}).get("error")
    if isinstance(cause, BadField):
        where.append(cause.field)
    pointer = pointer_to(*where)
    if kind == "extra_forbidden":
        return Problem(pointer, "unknown_field", f"there is no field {where[-1]!r} here")
    if kind == "missing":
        return Problem(pointer, "missing", f"{where[-1]} is required")
    return Problem(pointer, kind, said(one))


def pointer_to(*where: str | int) -> str:
    """An RFC 6901 pointer to a place in a body."""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in where)


def short(value: object) -> str:
    """A value as a complaint shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
