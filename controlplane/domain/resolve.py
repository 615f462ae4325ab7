"""From a spec to a run with nothing left open: every setting of the trainer, its layout, its bytes, its steps.

The one place that joins what a user asked for with what the machine has. It reads no clock and no database; the
dataset's vocabulary is handed in by whoever could read it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Protocol

from controlplane.domain.errors import InvalidSpec, Problem
from controlplane.domain.names import fingerprint
from controlplane.domain.spec import SET_ELSEWHERE, Compute, RunSpec
from teragpt.config import Config, ConfigError
from teragpt.config import resolve as resolve_config
from teragpt.plan import state
from teragpt.sizes import REFERENCE_VOCABULARY, SIZES, TINY

CPU_RANKS = 2  # ranks of a run without a GPU: enough to exercise every collective, and it leaves a laptop usable
PROCESS_BYTES = 768 << 20  # resident set of a rank before its state: interpreter, torch, gloo
RANK_GRACE_S = 120


class Machine(Protocol):
    """What a cluster has, as far as a layout depends on it: `memory` in bytes."""

    @property
    def cpus(self) -> int:
        """CPU cores."""
        ...

    @property
    def memory(self) -> int:
        """Bytes of memory."""
        ...

    @property
    def gpus(self) -> int:
        """GPUs."""
        ...


@dataclass(frozen=True)
class Layout:
    """Pods and ranks of a run: what each node gets."""

    nodes: int
    processes_per_node: int
    gpus_per_node: int
    cpus_per_node: int
    memory_per_node: int

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.nodes * self.processes_per_node


@dataclass(frozen=True)
class ResolvedRun:
    """A run with nothing left open. `state_bytes` are those of the fullest rank, by kind."""

    config: dict[str, Any]
    layout: Layout
    parameters: int
    tokens: int
    steps: int
    state_bytes: dict[str, int]
    env: dict[str, str] = field(default_factory=dict[str, str])
    labels: dict[str, str] = field(default_factory=dict[str, str])
    grace_s: int = RANK_GRACE_S

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.layout.world_size

    def to_json(self) -> dict[str, Any]:
        """As the store and the API hold it."""
        flat = dataclasses.asdict(self)
        return {**flat.pop("layout"), "world_size": self.world_size, **flat}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ResolvedRun:
        """The run that `to_json` wrote."""
        layout = Layout(**{f.name: value[f.name] for f in dataclasses.fields(Layout)})
        others = {f.name: value[f.name] for f in dataclasses.fields(cls) if f.name != "layout"}
        return cls(layout=layout, **others)

    @property
    def spec_hash(self) -> str:
        """What tells this run's objects from another's of the same name."""
        return fingerprint(self.to_json())


def resolve(
    spec: RunSpec, machine: Machine, out: str, *, vocabulary: int | None = None, start_from: str = ""
) -> ResolvedRun:
    """The run that `spec` describes on `machine`, with run folder `out` unless the spec names one.

    Raises InvalidSpec with a pointer to every field that cannot be used, also for what can never fit the machine.
    """
    run = lay_out(spec, machine, out, vocabulary=vocabulary, start_from=start_from)
    if problems := list(misfits(run, spec, machine)):
        raise InvalidSpec(problems)
    return run


def lay_out(
    spec: RunSpec, machine: Machine, out: str, *, vocabulary: int | None = None, start_from: str = ""
) -> ResolvedRun:
    """As `resolve`, whether it fits the machine or not."""
    problems = list(_uri_problems(spec))
    config = _config(spec, out, vocabulary, start_from, problems)
    if problems or config is None:
        raise InvalidSpec(problems)
    parameters = config.shape.parameters(config.num_tokens)
    layout = _layout(spec.compute, machine, parameters)
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
    )


def _uri_problems(spec: RunSpec) -> Iterator[Problem]:
    for pointer, uri in (("/data/uri", spec.data.uri), ("/checkpoint/uri", spec.checkpoint.uri)):
        if uri is None:
            continue
        if not PurePosixPath(uri).is_absolute() or "\0" in uri:
            detail = f"got {uri!r}; allowed: an absolute path of a folder on this machine"
            yield Problem(pointer, "not_a_folder", detail)


def _config(spec: RunSpec, out: str, vocabulary: int | None, start_from: str, problems: list[Problem]) -> Config | None:
    """The trainer's configuration; what is wrong with it is added to `problems`."""
    given: dict[str, Any] = {"size": spec.size, **spec.train, "out": spec.checkpoint.uri or out}
    if spec.data.uri is not None:
        given["data"] = spec.data.uri
    if spec.checkpoint.every_steps is not None:
        given["checkpoint_every"] = spec.checkpoint.every_steps
    if start_from:
        given["start_from"] = start_from
    try:
        return resolve_config(given, vocabulary)
    except ConfigError as error:
        problems += [Problem(_pointer(one.field, spec), "invalid_setting", str(one)) for one in error.problems]
        return None


def _pointer(setting: str, spec: RunSpec) -> str:
    """Where in the spec a setting of the trainer was given."""
    elsewhere = SET_ELSEWHERE.get(setting)
    return elsewhere if elsewhere and setting not in spec.train else f"/train/{setting}"


def _layout(compute: Compute, machine: Machine, parameters: int) -> Layout:
    """One process per GPU; where there is no GPU, one per CPU core, two by default."""
    each = max(1, machine.gpus // compute.nodes)
    gpus = compute.gpus_per_node if compute.gpus_per_node is not None else min(machine.gpus, each)
    cpu_ranks = compute.cpus_per_node or max(1, min(CPU_RANKS, machine.cpus // compute.nodes))
    processes = compute.processes_per_node or gpus or cpu_ranks
    cpus = compute.cpus_per_node or max(1, min(processes, machine.cpus // compute.nodes))
    on_rank = PROCESS_BYTES + (0 if gpus else state(parameters, compute.nodes * processes).total)
    return Layout(compute.nodes, processes, gpus, cpus, compute.memory_per_node or processes * on_rank)


def misfits(run: ResolvedRun, spec: RunSpec, machine: Machine) -> Iterable[Problem]:
    """What the machine can never give, however long the run waits."""
    layout = run.layout
    wanted = (
        ("gpus_per_node", "GPUs", layout.gpus_per_node, machine.gpus),
        ("cpus_per_node", "CPUs", layout.cpus_per_node, machine.cpus),
        ("memory_per_node", "bytes of memory", layout.memory_per_node, machine.memory),
    )
    for name, unit, each, there in wanted:
        if each * layout.nodes <= there:
            continue
        derived = getattr(spec.compute, name) is None
        pointer = ("/compute/nodes" if layout.nodes > 1 else "/size") if derived else f"/compute/{name}"
        given = getattr(spec.compute, name) if not derived else (layout.nodes if layout.nodes > 1 else spec.size)
        detail = (
            f"got {given!r}, which needs {each * layout.nodes:,} {unit}; allowed: what fits this machine's {there:,}"
        )
        yield Problem(pointer, "does_not_fit", detail)


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
