"""A model's layout on ranks, without a tensor: what each rank holds to the byte, and why a mesh cannot be.

Torch-free and in microseconds. The trainer asks it before it allocates or writes anything, the control plane before it
makes a run, and `python -m teragpt.layout --size 175b --ranks 1024 --set tp=8` prints what it says. Tests hold its
bytes equal to those of the real thing on every rank of worlds that are not there (tests/teragpt/fake.py).
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from teragpt.activations import activation_bytes
from teragpt.config import Config, ConfigError, Problem, mesh_misfits, parse, resolve
from teragpt.sizes import REFERENCE_VOCABULARY, padded

GIVEN = ("pp", "dp_replicate", "cp", "tp")  # the dimensions that settings name; what they leave is `dp_shard`
OURS = Config().model  # the model whose parameters are known here
LEAST_BYTES = {"fp64": 8, "fp32": 4, "fp8": 1}  # of an activation; bf16's where nothing else is sure
VECTOR_BYTES = 12  # of a vector's element beside a parameter in bf16: its master and two moments, in fp32
AT_ONCE = 1 << 25  # elements of the whole matrices that Muon works on at once on a rank, unless one alone is larger
SHOWN = ("parameters", "gradients", "optimizer", "total")


@dataclass(frozen=True)
class Layout:
    """Ranks by dimension of the mesh; `chunks`: stages of the pipeline on each rank of `pp`."""

    pp: int
    dp_replicate: int
    dp_shard: int
    cp: int
    tp: int
    chunks: int = 1

    @property
    def fsdp(self) -> int:
        """Ranks that hold the slices of a parameter between them."""
        return self.dp_shard * self.cp

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.pp * self.dp_replicate * self.fsdp * self.tp

    @property
    def data_ranks(self) -> int:
        """Parts that a global batch is cut into."""
        return self.dp_replicate * self.dp_shard

    def __str__(self) -> str:
        named = ", ".join(f"{name} {size}" for name, size in asdict(self).items() if size > 1)
        return named or "one rank"


def layout(config: Config, ranks: int) -> Layout:
    """The layout of the settings over `ranks`, of which `misfits` has nothing to say; `dp_shard` is what is left."""
    given = {name: getattr(config, name) for name in GIVEN}
    return Layout(**given, dp_shard=max(1, ranks // math.prod(given.values())), chunks=config.pipeline_chunks)


# --- what a rank holds ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """Exact bytes of a rank's state, by kind: parameters, their gradients, what the optimizer holds beside them."""

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.gradients + self.optimizer


@dataclass(frozen=True)
class Kind:
    """`count` equal parameters of (rows, columns) on a rank of the pipeline. `tp` cuts them along a `cut`, or not.

    `momentum` where Muon updates them, which keeps one number for each of theirs in place of two.
    """

    count: int
    rows: int
    columns: int = 1
    cut: int | None = None
    momentum: bool = False


def kinds(config: Config, stages: Layout, pp_rank: int) -> Iterator[Kind]:
    """The parameters on a rank of the pipeline, before `tp` and `fsdp` cut them."""
    dim, q, kv, ffn = config.dim, config.q_dim, config.kv_dim, config.ffn
    vocabulary = padded(config.num_tokens)
    first, last = pp_rank == 0, pp_rank == stages.pp - 1
    held = spread(config.depth, stages.pp * stages.chunks)[pp_rank :: stages.pp]
    layers, muon = sum(map(len, held)), config.optimizer == "muon"
    yield Kind(int(first) + int(last and not (first and config.tied)), vocabulary, dim, 0)
    yield Kind(layers, q, dim, 0, muon)
    yield Kind(2 * layers, kv, dim, 0, muon)  # k, v
    yield Kind(layers, dim, q, 1, muon)  # o
    yield Kind(2 * layers, ffn, dim, 0, muon)  # gate, up
    yield Kind(layers, dim, ffn, 1, muon)  # down
    yield Kind(2 * layers, config.head_dim)  # of queries and of keys
    yield Kind(2 * layers + int(last), dim)


def spread(depth: int, stages: int) -> list[range]:
    """The layers of each stage: as many in all, or one more in some.

    The last stage has the head besides, so it comes last for one more, and those before it come first: the later a
    stage, the fewer micro-batches it holds at once.
    """
    sizes = [depth // stages + (stages - 1 - depth % stages <= stage < stages - 1) for stage in range(stages)]
    ends = [sum(sizes[: stage + 1]) for stage in range(stages)]
    return [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def state(config: Config, ranks: int = 1, rank: int | None = None) -> State:
    """Exact bytes of state of one rank of `ranks`, or of the fullest: masters, their gradients, optimizer.

    `tp` cuts a matrix evenly and leaves vectors whole; FSDP cuts what is left into pieces of ceil(rows / ranks) rows,
    and every rank has room for a whole piece of parameters and gradients, whatever there is left for it. Moments have
    the rows that are there. Masters are fp32, in fp64 runs fp64; with `state_dtype` bf16 all is bf16, but vectors have
    masters and moments in fp32. Four bytes a tensor, AdamW's count of steps, are not counted.
    """
    stages = layout(config, ranks)
    if rank is None:
        return max((held(config, stages, pp_rank, 0) for pp_rank in range(stages.pp)), key=lambda one: one.total)
    pp_rank, within = divmod(rank, stages.ranks // stages.pp)
    return held(config, stages, pp_rank, within // stages.tp % stages.fsdp)


def held(config: Config, stages: Layout, pp_rank: int, fsdp_rank: int) -> State:
    """As `state`, for a place in the mesh; ranks of `tp` hold as much as each other."""
    each, apart = element_bytes(config), config.state_dtype == "bf16"
    room = moments = 0
    for kind in kinds(config, stages, pp_rank):
        piece, there, columns = share(kind, stages, fsdp_rank)
        room += kind.count * piece * columns * each
        beside = VECTOR_BYTES if apart and kind.columns == 1 else each * (1 if kind.momentum else 2)
        moments += kind.count * there * columns * beside
    return State(room, room, moments)


def element_bytes(config: Config) -> int:
    """Bytes of a parameter's element, which its gradient has too."""
    return 8 if config.precision == "fp64" else 2 if config.state_dtype == "bf16" else 4


def needed(config: Config, ranks: int) -> int:
    """Bytes that the fullest rank takes at the least: its state, and what blocks keep for backward (`kept`)."""
    stages = layout(config, ranks)
    begun = max(sum(kept(config, stages, pp_rank)) for pp_rank in range(stages.pp))
    return max(begun, state(config, ranks).total)


def kept(config: Config, stages: Layout, pp_rank: int) -> tuple[int, int]:
    """As a rank's first backward begins: bytes of its state, and those that its blocks keep, both at the least.

    Gradients are there from the second micro-batch on. Without recompute blocks that may be compiled keep no less than
    with `selective`.
    """
    state, part = held(config, stages, pp_rank, 0), config.sequences // stages.data_ranks
    count = max(stages.pp, math.ceil(part / config.micro_batch))
    mode = "selective" if config.recompute == "none" and config.compile != "off" else config.recompute
    each = activation_bytes(config.shape, mode, LEAST_BYTES.get(config.precision, 2), stages.tp, stages.cp)
    layers = sum(map(len, spread(config.depth, stages.pp * stages.chunks)[pp_rank :: stages.pp]))
    tokens = part // count * config.context // stages.cp
    there = state.total if count > 1 else state.parameters + state.optimizer
    return there, int(each * tokens * layers * alive(stages, count, pp_rank))


def alive(stages: Layout, count: int, pp_rank: int) -> float:
    """Micro-batches, of `count` in a step, that a rank of the pipeline holds at once, as parts of all its layers.

    1F1B: one for each stage from this one on. Interleaved: as many chunks as run before the first backward returns.
    """
    p, v = stages.pp, stages.chunks
    if v == 1:
        return min(count, p - pp_rank)
    return min(count * v, 2 * (p - pp_rank - 1) + (v - 1) * p + 1) / v


def share(kind: Kind, stages: Layout, fsdp_rank: int) -> tuple[int, int, int]:
    """Of a parameter, the rows that a rank has room for, those that it holds, and its columns."""
    rows = kind.rows // (stages.tp if kind.cut == 0 else 1)
    piece = -(-rows // stages.fsdp)
    there = min(piece, max(0, rows - fsdp_rank * piece))
    return piece, there, kind.columns // (stages.tp if kind.cut == 1 else 1)


# --- what cannot be -------------------------------------------------------------------------------------------------


def misfits(config: Config, ranks: int, memory: int | None = None) -> Iterator[Problem]:
    """Why the settings cannot be laid out on `ranks`, each with `memory` bytes if that is known."""
    given = {name: getattr(config, name) for name in GIVEN}
    problem = indivisible(ranks, given)
    if problem:
        yield problem
        return
    parts = layout(config, ranks).data_ranks
    for setting, sequences in (("global_batch_tokens", config.sequences), ("eval_sequences", config.eval_sequences)):
        if sequences < parts:
            allowed = f"at least a sequence of {config.context} tokens for each of {parts} parts of the batch"
            yield Problem(setting, getattr(config, setting), allowed)
    if memory is not None and config.model == OURS and (least := needed(config, ranks)) > memory:
        alone, what = state(config, ranks).total, "state and what blocks keep for backward, at the least"
        if alone > memory:
            least, what = alone, "parameters, gradients and optimizer alone"
        takes = f"{layout(config, ranks)} takes {gib(least)} for {what}"
        allowed = f"what fits the {gib(memory)} that a rank has; {takes}; {advice(config, ranks, memory)}"
        yield Problem("size", config.size, allowed)


def indivisible(ranks: int, given: Mapping[str, int]) -> Problem | None:
    """The first dimension that makes the mesh larger than the world, or no divisor of it."""
    taken = 1
    for name, size in given.items():
        if ranks % (taken * size):
            rest = f"the world size {ranks}" if taken == 1 else f"{ranks // taken}, what is left of {ranks} ranks"
            return Problem(name, size, f"a divisor of {rest}")
        taken *= size
    return None


def advice(config: Config, ranks: int, memory: int) -> str:
    """The layout next to the one that is asked for that fits, on as many ranks; else the fewest ranks that do."""
    if lighter := less_at_once(config, ranks, memory):
        return f"nearest that fits: {lighter}"
    near = nearest(config, ranks, memory)
    if near:
        changed = {name: getattr(near, name) for name in GIVEN if getattr(near, name) != getattr(config, name)}
        named = ", ".join(f"{name} {size}" for name, size in changed.items())
        return f"nearest that fits: {named}, which takes {gib(needed(near, ranks))}"
    wider, apart = replace(config, dp_replicate=1), config.pp * config.tp * config.cp
    for more in (apart << power for power in range(24) if apart << power > ranks):
        if any(misfits(wider, more)):
            break  # fewer sequences than parts of a batch
        fits = needed(wider, more) <= memory
        if fits or (lighter := less_at_once(wider, more, memory)):
            return f"nearest that fits: {layout(wider, more)} on {more:,} ranks" + ("" if fits else f", {lighter}")
    return "no number of ranks is enough on this mesh, with this batch"


def nearest(config: Config, ranks: int, memory: int) -> Config | None:
    """The settings with as few dimensions changed as can be, each as little as can be, that fit on `ranks`."""
    powers = [1 << power for power in range(ranks.bit_length())]
    sizes = [sorted({1, getattr(config, name), *powers}) for name in GIVEN]
    found = [replace(config, **dict(zip(GIVEN, one, strict=True))) for one in itertools.product(*sizes)]
    for other in sorted(found, key=lambda one: distance(config, one)):
        if any(mesh_misfits(other, lambda *names: (names[0], ""))) or any(misfits(other, ranks)):
            continue
        if needed(other, ranks) <= memory:
            return other
    return None


def less_at_once(config: Config, ranks: int, memory: int) -> str:
    """A smaller micro-batch that fits, or one whose blocks are computed again; empty where neither does."""
    for recompute in dict.fromkeys((config.recompute, "full")):
        for power in range(config.micro_batch.bit_length()):
            other = replace(config, recompute=recompute, micro_batch=max(1, config.micro_batch >> power))
            if needed(other, ranks) <= memory:
                again = "" if recompute == config.recompute else ", recompute full"
                return f"micro_batch {other.micro_batch}{again}"
    return ""


def distance(one: Config, other: Config) -> tuple[int, float]:
    """How many dimensions of the mesh differ, and by how many doublings in all."""
    ratios = [math.log2(getattr(one, name) / getattr(other, name)) for name in GIVEN]
    return sum(ratio != 0 for ratio in ratios), sum(map(abs, ratios))


def gib(count: int) -> str:
    """Bytes for people."""
    return f"{count / (1 << 30):,.3g} GiB"


# --- the command ----------------------------------------------------------------------------------------------------


def table(config: Config, ranks: int) -> str:
    """The mesh, and bytes by kind on the first rank and on the fullest."""
    held = {"": SHOWN, "first rank": state(config, ranks, 0), "fullest rank": state(config, ranks)}
    rows = [one if isinstance(one, tuple) else [f"{getattr(one, kind):,}" for kind in SHOWN] for one in held.values()]
    lines = [f"{name:14}{''.join(f'{cell:>18}' for cell in row)}" for name, row in zip(held, rows, strict=True)]
    return "\n".join([f"{config.size} on {ranks:,} ranks: {layout(config, ranks)}", *lines])


def asked(arguments: Iterable[str]) -> tuple[Config, int]:
    """The settings, at the reference vocabulary, and the number of ranks. ConfigError where they cannot be laid out."""
    given = parse(arguments)
    ranks = given.pop("ranks", 1)
    if not isinstance(ranks, int) or ranks < 1:
        raise ConfigError([Problem("ranks", ranks, "a whole number from 1")])
    config = resolve({"num_tokens": REFERENCE_VOCABULARY, **given})
    if problems := list(misfits(config, ranks)):
        raise ConfigError(problems)
    return config, ranks


def main(arguments: Iterable[str]) -> int:
    """Print the layout of the settings on `--ranks`; 2 where they cannot be laid out."""
    try:
        print(table(*asked(arguments)))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
