"""The best layout of a run on a cluster: every cut of a step that settings and memory allow, the quickest first.

A cut's own compute bounds its step from below, and its state and activations its bytes, so that most are never timed
or counted whole. A simpler mesh wins over one that is quicker by less than a hundredth. GPUs may stay idle where fewer
are quicker: the numbers that are tried do not depend on how many there are, so that more GPUs never make a plan slower.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from math import ceil, inf
from typing import NamedTuple

from teragpt.config import Config, mesh_misfits, precision_misfits
from teragpt.layout import Layout
from teragpt.plan.memory import Cut, Ledger, Memory
from teragpt.plan.step import Clock, Step

SHOWN = 6  # the best and the next best five
MOST_GPUS = 1 << 17
WIDEST_CONTEXT_PARALLEL, DEEPEST_PIPELINE, LARGEST_MICRO_BATCH = 16, 64, 32
SHORTEST_PIECE = 1024  # tokens of a sequence that a rank of cp is worth giving
NEAR = 0.01  # of a step, which nobody predicts so well: a simpler mesh is worth it
SIGNIFICANT_BITS = 4  # of the numbers of GPUs, beyond a node of the numbers of nodes, that are tried
RECOMPUTES = ("none", "selective", "full")
DIMENSIONS = ("tp", "cp", "pp", "dp_replicate")


@dataclass(frozen=True)
class Option:
    """A cut that fits, how long its step takes, and what it keeps."""

    cut: Cut
    step: Step
    memory: Memory

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.step.seconds

    @property
    def settings(self) -> dict[str, int | str]:
        """As the trainer takes it, but for `dp_shard`, which is what the others leave."""
        stages = self.cut.stages
        schedule = "interleaved" if stages.chunks > 1 else "1f1b"
        sizes: dict[str, int | str] = {
            "dp_replicate": stages.dp_replicate,
            "tp": stages.tp,
            "cp": stages.cp,
            "pp": stages.pp,
        }
        pipeline: dict[str, int | str] = {"pipeline_schedule": schedule, "pipeline_chunks": stages.chunks}
        gathered = "auto" if self.cut.gathered is None else "on" if self.cut.gathered else "off"
        cut: dict[str, int | str] = {"micro_batch": self.cut.micro_batch, "recompute": self.cut.recompute}
        return {**sizes, **pipeline, **cut, "recompute_layers": self.cut.again, "gathered": gathered}


class Entry(NamedTuple):
    """A cut before its data-parallel ranks are divided into shards and copies; `bound`: no such step is shorter."""

    bound: float
    order: int  # no two have the same
    cut: Cut


@dataclass(frozen=True)
class Search:
    """Looks for layouts of the clock's model on its cluster; settings in `pinned` stay as they are."""

    clock: Clock
    ledger: Ledger
    pinned: frozenset[str]
    tried: dict[tuple[int, int, int], list[tuple[int, int]]] = field(default_factory=dict, compare=False, repr=False)
    ways: dict[Layout, tuple[float, ...]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def config(self) -> Config:
        """What is to be trained."""
        return self.clock.config

    def best(self, counts: Sequence[int]) -> list[Option]:
        """The best cut over one of so many GPUs, and others by speed; none where none fits.

        Of each number of GPUs, in falling order, the simplest mesh of those within `NEAR` of its quickest and quicker
        than what larger numbers gave: so that a larger number, which only lowers that limit, never makes it slower.
        """
        found: list[Option] = []
        floor = self.floor()
        for gpus in sorted(counts, reverse=True):
            limit = found[0].seconds if found else inf
            if floor / gpus >= limit:
                break
            found = together(self.over(gpus, limit), found)
        return found

    def floor(self) -> float:
        """Seconds that one GPU would compute a step in, with the quickest cut there is and nothing to wait for."""
        tokens = LARGEST_MICRO_BATCH * self.config.context
        alone = Cut(Layout(1, 1, 2, 1, 1), LARGEST_MICRO_BATCH, 1, "none")
        layer = self.clock.layer(alone).computes * self.config.depth
        return (layer + self.clock.head(tokens, 1)) / tokens * self.config.global_batch_tokens * 0.999

    def floor_of(self, stages: Layout) -> float:
        """As `floor`, over these ranks, whose stages are never all as long."""
        largest = Cut(stages, LARGEST_MICRO_BATCH, 1, self.recomputes[0])
        return (
            self.clock.slowest_stage(largest) / LARGEST_MICRO_BATCH * self.config.sequences / stages.data_ranks * 0.999
        )

    def over(self, gpus: int, limit: float) -> list[Option]:
        """Cuts over so many GPUs that take less than `limit`, the best first: those near the quickest, and some more.

        One of each signature, with copies of the weights and without.
        """
        found: dict[tuple[object, ...], Option] = {}
        most = limit
        for entry in sorted(self.entries(gpus, limit)):
            if entry.bound >= most:
                break
            if self.bound(entry) >= most:
                continue
            for option in self.divided(entry.cut, most):
                mine = *signature(option.cut), option.cut.stages.dp_replicate > 1
                if mine not in found or preferred(option) < preferred(found[mine]):
                    found[mine] = option
                    most = min(limit, worth(found.values()))
        return chosen_first(list(found.values()))

    # --- cuts ---------------------------------------------------------------------------------------------------

    def entries(self, gpus: int, limit: float = inf) -> Iterator[Entry]:
        """Cuts over so many GPUs that may fit and whose bound is below the limit; no other one does both."""
        order = count()
        for stages in self.meshes(gpus):
            if self.ledger.least(stages) > self.ledger.limit or self.floor_of(stages) >= limit:
                continue
            for batch in self.batches(stages):
                for again in self.recomputes:
                    cut = Cut(stages, *batch, again)
                    if self.ledger.hopeless(cut):
                        continue
                    cut = self.fewest_again(cut)
                    bound = self.clock.computing(cut)
                    if bound >= limit:
                        break  # what computes more again is slower
                    yield Entry(bound, next(order), cut)

    def bound(self, entry: Entry) -> float:
        """As the entry's own, with what no division of its data-parallel ranks hides of weights and gradients."""
        stages = entry.cut.stages
        if stages not in self.ways:
            ways = [self.clock.way(one) for one in self.divisions(stages)]
            sums = ((way.around, way.around + way.gather, way.ends) for way in ways)
            self.ways[stages] = tuple(map(min, zip(*sums, strict=True)))
        may = [gathered for gathered in self.gathers if not gathered or self.ledger.may_gather(entry.cut)]
        cut = replace(entry.cut, gathered=may[0] if may else False)
        return entry.bound + self.clock.shown_at_least(cut, *self.ways[stages])

    def meshes(self, gpus: int) -> Iterator[Layout]:
        """Layouts in which all data-parallel ranks are shards; `divided` makes copies of them."""
        for tp, cp, pp, chunks in self.shapes:
            rest, left = divmod(gpus, tp * cp * pp)
            if not left and rest % self.copies_at_least() == 0:
                yield Layout(pp, 1, rest, cp, tp, chunks)

    @cached_property
    def shapes(self) -> list[tuple[int, int, int, int]]:
        """Sizes of `tp`, `cp`, `pp` and stages on each rank of it that the model can be cut into."""
        return [
            (tp, cp, pp, chunks)
            for tp in self.sizes("tp", self.clock.cluster.per_node)
            for cp in self.sizes("cp", min(WIDEST_CONTEXT_PARALLEL, max(1, self.config.context // SHORTEST_PIECE)))
            for pp in self.sizes("pp", min(DEEPEST_PIPELINE, self.config.depth))
            for chunks in self.chunks(pp)
            if self.allowed(tp, cp, pp, chunks)
        ]

    def sizes(self, name: str, most: int) -> list[int]:
        """What a dimension may be: what is given, or powers of two."""
        if name in self.pinned:
            return [getattr(self.config, name)]
        return [1 << power for power in range(most.bit_length()) if 1 << power <= most]

    def chunks(self, pp: int) -> list[int]:
        """Stages on each rank of the pipeline."""
        if self.pinned & {"pipeline_chunks", "pipeline_schedule"} or pp == 1:
            return [self.config.pipeline_chunks if self.pinned & {"pipeline_chunks", "pipeline_schedule"} else 1]
        return [1, 2]

    def allowed(self, tp: int, cp: int, pp: int, chunks: int) -> bool:
        """Whether the shape can be cut so."""
        schedule = "interleaved" if chunks > 1 else "1f1b"
        other = replace(self.config, tp=tp, cp=cp, pp=pp, pipeline_chunks=chunks, pipeline_schedule=schedule)
        return not any(mesh_misfits(other, blamed)) and not any(precision_misfits(other, blamed))

    def copies_at_least(self) -> int:
        """Whole copies that are asked for."""
        return self.config.dp_replicate if "dp_replicate" in self.pinned else 1

    @cached_property
    def recomputes(self) -> tuple[str, ...]:
        """What may be computed again, the least first."""
        return (self.config.recompute,) if "recompute" in self.pinned else RECOMPUTES

    @cached_property
    def gathers(self) -> tuple[bool | None, ...]:
        """Whether weights stay gathered for all of a step, the quicker first."""
        return (
            ({"auto": None, "on": True, "off": False}[self.config.gathered],)
            if "gathered" in self.pinned
            else (True, False)
        )

    def batches(self, stages: Layout) -> list[tuple[int, int]]:
        """Sequences of a micro-batch and how many a step has, the fewest first; none where the batch is too small."""
        key = stages.data_ranks, stages.pp, stages.chunks
        if key not in self.tried:
            pieces = (self.pieces(stages, sequences) for sequences in self.micro_batches())
            self.tried[key] = list(dict.fromkeys(one for one in pieces if one[1]))
        return self.tried[key]

    def micro_batches(self) -> list[int]:
        """Sequences of a micro-batch to try, the largest first."""
        if "micro_batch" in self.pinned:
            return [self.config.micro_batch]
        return [1 << power for power in reversed(range(LARGEST_MICRO_BATCH.bit_length()))]

    def pieces(self, stages: Layout, sequences: int) -> tuple[int, int]:
        """Sequences of the largest micro-batch and how many a step has, as the trainer cuts it; 0 where it cannot."""
        ranks = stages.data_ranks
        least, most = self.config.sequences // ranks, ceil(self.config.sequences / ranks)
        if not least or self.config.eval_sequences < ranks:
            return 0, 0
        multiple = stages.pp if stages.chunks > 1 else 1
        count = max(min(ceil(most / sequences), least), stages.pp)
        count = ceil(count / multiple) * multiple
        return (ceil(most / count), count) if count <= least else (0, 0)

    # --- what they take -----------------------------------------------------------------------------------------

    def divided(self, cut: Cut, limit: float) -> list[Option]:
        """Divisions of the data-parallel ranks into shards and copies that fit, each quicker than those before it.

        The first has the fewest copies: without any, it is the simplest.
        """
        found: list[Option] = []
        for stages in self.divisions(cut.stages):
            for gathered in self.gathers:
                quickest, most = replace(cut, stages=stages, gathered=gathered), found[-1].seconds if found else limit
                step = self.clock.step(quickest)
                if step.seconds >= most:
                    break  # nor is what is gathered again quicker
                one = self.filled(quickest)
                taken = self.ledger.memory(one)
                if taken.fits:
                    step = step if one is quickest else self.clock.step(one)
                    if step.seconds < most:
                        found.append(Option(one, step, taken))
                    break
            else:
                break  # nor do more copies fit
        return found

    def fewest_again(self, cut: Cut) -> Cut:
        """The cut with as few layers that recompute as its activations may leave room for, if that is not given."""
        if "recompute" in self.pinned or cut.recompute == "none" or cut.stages.chunks > 1:
            return replace(cut, again=self.config.recompute_layers if "recompute" in self.pinned else 0)
        layers = self.clock.layers(cut)[0]
        whole = min(layers - 1, self.ledger.at_most_whole(cut))
        return replace(cut, again=layers - whole if whole > 0 else 0)

    def filled(self, cut: Cut) -> Cut:
        """The cut with the fewest layers, from its own number on, that have to recompute for all to fit."""
        if not cut.again or "recompute" in self.pinned:
            return cut
        layers = self.clock.layers(cut)[0]
        numbers = range(cut.again, layers)
        first = bisect_left(numbers, True, key=lambda again: self.ledger.memory(replace(cut, again=again)).fits)  # noqa: FBT003 - what is sought
        return replace(cut, again=numbers[first] if first < len(numbers) else 0)

    def divisions(self, stages: Layout) -> Iterator[Layout]:
        """Numbers of copies, the fewest first."""
        copies = self.copies_at_least()
        while stages.dp_shard % copies == 0:
            yield Layout(stages.pp, copies, stages.dp_shard // copies, stages.cp, stages.tp, stages.chunks)
            if "dp_replicate" in self.pinned:
                break
            copies *= 2

    def smallest(self, counts: Sequence[int]) -> int | None:
        """The fewest GPUs, of those numbers in their order, on which anything fits; None where nothing ever does."""
        first = bisect_left(counts, True, key=lambda gpus: self.fits(gpus) if self.possible(gpus) else gpus > 1)  # noqa: FBT003 - what is sought
        return next((gpus for gpus in counts[first:] if self.fits(gpus)), None)

    def possible(self, gpus: int) -> bool:
        """Whether any cut over so many GPUs is possible at all, memory aside."""
        return any(self.batches(stages) for stages in self.meshes(gpus))

    def fits(self, gpus: int) -> bool:
        """Whether any cut over so many GPUs is possible and fits."""
        return any(not self.ledger.hopeless(cut) and self.ledger.memory(cut).fits for cut in self.thrifty(gpus))

    def least(self, counts: Sequence[int]) -> Memory | None:
        """Bytes of the cut over one of so many GPUs that needs the fewest; None where none is possible."""
        best: Memory | None = None
        for cut in (cut for gpus in sorted(counts, reverse=True) for cut in self.thrifty(gpus)):
            if best is None or self.ledger.floor(cut) < best.peak:
                taken = self.ledger.memory(cut)
                best = taken if best is None or taken.peak < best.peak else best
        return best

    def thrifty(self, gpus: int) -> Iterator[Cut]:
        """Of each mesh of so many GPUs, the cut that needs the fewest bytes."""
        for stages in self.meshes(gpus):
            if batches := self.batches(stages):
                yield Cut(next(self.divisions(stages)), *batches[-1], self.recomputes[-1], self.gathers[-1])


def blamed(*names: str) -> tuple[str, object]:
    """Nobody reads who is to blame where cuts are only tried."""
    return names[0], None


def signature(cut: Cut) -> tuple[object, ...]:
    """What makes a layout another one for its reader."""
    stages = cut.stages
    return stages.tp, stages.cp, stages.pp, cut.recompute, stages.ranks


def dimensions(option: Option) -> int:
    """Of the mesh, beside shards: how many are in use."""
    stages = option.cut.stages
    return sum(size > 1 for size in (stages.tp, stages.cp, stages.pp, stages.dp_replicate))


def preferred(option: Option) -> tuple[float, int, int]:
    """Quicker first; of equals, the mesh with fewer dimensions, then fewer micro-batches."""
    return float(f"{option.seconds:.6g}"), dimensions(option), option.cut.count


def simpler(option: Option) -> tuple[float, ...]:
    """The mesh with fewer dimensions first, then the smaller `pp`, `cp`, `tp`; of equals, the quicker."""
    stages = option.cut.stages
    return dimensions(option), stages.pp, stages.cp, stages.tp, *preferred(option)


def worth(found: Iterable[Option]) -> float:
    """Seconds from which a further option is neither near the quickest nor among those that are shown."""
    seconds: dict[tuple[object, ...], float] = {}
    for one in found:
        mine = signature(one.cut)
        seconds[mine] = min(one.seconds, seconds.get(mine, inf))
    ordered = sorted(seconds.values())
    return inf if len(ordered) < SHOWN else max(ordered[SHOWN - 1], ordered[0] * (1 + NEAR))


def chosen_first(found: list[Option]) -> list[Option]:
    """The simplest of those within `NEAR` of the quickest, then the others by speed."""
    if not found:
        return []
    least = min(one.seconds for one in found)
    best = min((one for one in found if one.seconds <= least * (1 + NEAR)), key=simpler)
    return [best, *sorted((one for one in found if one is not best), key=preferred)]


def together(better: list[Option], found: list[Option]) -> list[Option]:
    """The best of the first list, if there is one, before all others by speed, each layout once; as many as are shown.

    Of options that look the same, the quickest is shown, but beside the best only what is quicker than it.
    """
    if not better:
        return found
    best, shown = better[0], {signature(better[0].cut)}
    others = []
    for one in sorted([*better[1:], *found], key=preferred):
        mine = signature(one.cut)
        if mine not in shown or (one.seconds < best.seconds and one.cut.stages.dp_replicate > 1):
            others.append(one)
            shown.add(mine)
    return [best, *others][:SHOWN]


def counts(most: int, per_node: int) -> list[int]:
    """Numbers of GPUs to try, up to `most`: any few on a node, then whole nodes, of few significant bits."""
    few = [gpus for gpus in range(1, min(most, per_node) + 1) if rounded(gpus) == gpus]
    nodes = [count for count in sparse(most // per_node) if count > 1]
    return [*few, *(count * per_node for count in nodes)]


def sparse(most: int) -> list[int]:
    """Whole numbers of few significant bits."""
    low = range(1, 1 << SIGNIFICANT_BITS)
    return sorted({one << power for one in low for power in range(most.bit_length() + 1) if one << power <= most})


def rounded(number: int) -> int:
    """A number's first significant bits."""
    spare = max(0, number.bit_length() - SIGNIFICANT_BITS)
    return number >> spare << spare
