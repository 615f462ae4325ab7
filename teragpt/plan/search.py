"""The best layout of a run on a cluster: every cut of a step that settings and memory allow, the quickest first.

A cut's own compute bounds its step from below, and its state and activations its bytes, so that most are never timed
or counted whole. A simpler mesh wins over one that is little quicker (`choice.NEAR`). GPUs may stay idle where fewer
are quicker: the numbers that are tried do not depend on how many there are, so that more GPUs never make a plan slower.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from heapq import heappop, heappush
from itertools import count
from math import ceil, inf
from typing import NamedTuple

from teragpt.config import Config, mesh_misfits, precision_misfits
from teragpt.layout import Layout, alive
from teragpt.plan.choice import Option, chosen_first, preferred, signature, together, worth
from teragpt.plan.memory import Cut, Ledger, Memory, layers_of
from teragpt.plan.step import Clock

MOST_GPUS = 1 << 17
WIDEST_CONTEXT_PARALLEL, DEEPEST_PIPELINE, LARGEST_MICRO_BATCH = 16, 64, 32
SHORTEST_PIECE = 1024  # tokens of a sequence that a rank of cp is worth giving
SIGNIFICANT_BITS = 4  # of the numbers of GPUs, beyond a node of the numbers of nodes, that are tried
RECOMPUTES = ("none", "selective", "full")
DIMENSIONS = ("tp", "cp", "pp", "dp_replicate")


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
        """As `floor`, over these ranks, whose stages are never all as long; inf where the batch is too small."""
        batches = self.batches(stages)
        if not batches:
            return inf
        largest, smallest = batches[0][0], batches[-1][0]
        each = self.clock.busiest(Cut(stages, largest, 1, self.recomputes[0])).seconds / largest
        waits = smallest * (stages.pp - 1) / stages.chunks
        return each * (self.config.sequences / stages.data_ranks + waits) * 0.999

    def over(self, gpus: int, limit: float) -> list[Option]:
        """Cuts over so many GPUs that take less than `limit`, the best first: those near the quickest, and some more.

        One of each signature, with copies of the weights and without.
        """
        found: dict[tuple[object, ...], Option] = {}
        most = limit
        for entry in self.entries(gpus, limit):
            if entry.bound >= most:
                break
            if self.bound(entry) >= most:
                continue
            for option in self.divided(entry, most):
                mine = *signature(option.cut), option.cut.stages.dp_replicate > 1
                if mine not in found or preferred(option) < preferred(found[mine]):
                    found[mine] = option
                    most = min(limit, worth(found.values()))
        return chosen_first(list(found.values()))

    # --- cuts ---------------------------------------------------------------------------------------------------

    def entries(self, gpus: int, limit: float = inf) -> Iterator[Entry]:
        """Cuts over so many GPUs that may fit and whose bound is below the limit, the lowest first.

        A mesh is cut, and its bytes are counted, only once no entry is below what all of its cuts take.
        """
        floors = ((self.floor_of(stages), at, stages) for at, stages in enumerate(self.meshes(gpus)))
        waiting: list[Entry] = []
        order = count()
        for floor, _, stages in sorted(one for one in floors if one[0] < limit):
            while waiting and waiting[0].bound <= floor:
                yield heappop(waiting)
            room = self.ledger.room(stages, self.gathers)
            for bound, cut in self.cuts(stages, room, limit) if room >= 0 else ():
                heappush(waiting, Entry(bound, next(order), cut))
        yield from sorted(waiting)

    def cuts(self, stages: Layout, room: int, limit: float) -> Iterator[tuple[float, Cut]]:
        """Those of a mesh that may fit where blocks have so much room, each with its bound below the limit."""
        kept = [(again, self.ledger.kept_of(again, stages)) for again in self.recomputes]
        for batch in self.batches(stages):
            passing, left = batch[0] * alive(stages, batch[1], 0), room
            left -= self.ledger.slice_bytes(stages) if batch[1] > 1 else 0  # gradients that add up
            for again, each in kept:
                if int(each * passing) > left:
                    continue
                cut = self.fewest_again(Cut(stages, *batch, again), left - each * passing)
                bound = self.clock.computing(cut)
                if bound >= limit:
                    break  # what computes more again is slower
                yield bound, cut

    def bound(self, entry: Entry) -> float:
        """As the entry's own, with what no division of its data-parallel ranks hides of weights and gradients."""
        cut, stages = entry.cut, entry.cut.stages
        if stages not in self.ways:
            ways = [self.clock.way(one) for one in self.divisions(stages)]
            sums = ((way.around, way.around + way.gather, way.ends) for way in ways)
            self.ways[stages] = tuple(map(min, zip(*sums, strict=True)))
        may = [gathered for gathered in self.gathers if not gathered or self.ledger.may_gather(cut)]
        one = Cut(stages, cut.micro_batch, cut.count, cut.recompute, may[0] if may else False, cut.again)
        return entry.bound + self.clock.shown_at_least(one, *self.ways[stages])

    def meshes(self, gpus: int) -> Iterator[Layout]:
        """Layouts in which all data-parallel ranks are shards; `divided` makes copies of them."""
        for tp, cp, pp, chunks in self.shapes:
            rest, left = divmod(gpus, tp * cp * pp)
            if not left and rest % self.copies_at_least() == 0:
                yield Layout(pp, 1, rest, cp, tp, chunks)

    @cached_property
    def shapes(self) -> list[tuple[int, int, int, int]]:
        """Sizes of `tp`, `cp`, `pp` and stages on each rank of it that the model can be cut into."""
        widest = min(WIDEST_CONTEXT_PARALLEL, max(1, self.config.context // SHORTEST_PIECE))
        deepest = min(DEEPEST_PIPELINE, self.config.depth)
        sequences = itertools.product(self.sizes("tp", self.clock.cluster.per_node), self.sizes("cp", widest))
        layers = [(pp, chunks) for pp in self.sizes("pp", deepest) for chunks in self.chunks(pp)]
        ways = [way for way in sequences if self.allowed(tp=way[0], cp=way[1], pp=1, chunks=1)]
        stages = [one for one in layers if self.allowed(tp=1, cp=1, pp=one[0], chunks=one[1])]
        return [(*way, *one) for way in ways for one in stages]

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

    def allowed(self, *, tp: int, cp: int, pp: int, chunks: int) -> bool:
        """Whether the shape can be cut so; what cuts sequences and matrices has nothing to do with what cuts layers."""
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

    def divided(self, entry: Entry, limit: float) -> list[Option]:
        """Divisions of the data-parallel ranks into shards and copies that fit, each quicker than those before it.

        The first has the fewest copies: without any, it is the simplest.
        """
        found: list[Option] = []
        cut = entry.cut
        batch = cut.micro_batch, cut.count, cut.recompute
        for stages in self.divisions(cut.stages):
            unfit = 0
            for gathered in self.gathers:
                most = found[-1].seconds if found else limit
                quickest = Cut(stages, *batch, gathered, cut.again)
                if self.clock.at_least(quickest, entry.bound) >= most:
                    break  # nor is what is gathered again quicker
                step = self.clock.step(quickest)
                if step.seconds >= most:
                    break
                one = self.filled(quickest)
                if not self.ledger.fits(one):
                    unfit += 1
                    continue
                step = step if one is quickest else self.clock.step(one)
                if step.seconds < most:
                    found.append(Option(one, step, self.ledger.memory(one)))
                if one is quickest:
                    break  # what is gathered again leaves no more layers whole
            if unfit == len(self.gathers):
                break  # nor do more copies fit
        return found

    def fewest_again(self, cut: Cut, spare: float) -> Cut:
        """The cut with as few layers that recompute as so many bytes may leave room for, if that is not given."""
        stages, again = cut.stages, 0
        if "recompute" in self.pinned:
            again = self.config.recompute_layers
        elif cut.recompute != "none" and stages.chunks == 1:
            first = layers_of(self.config.depth, stages, 0)
            again = max(1, first - self.ledger.at_most_whole(cut, spare))
            again = again if again < self.clock.layers(cut)[0] else 0
        return Cut(stages, cut.micro_batch, cut.count, cut.recompute, again=again) if again else cut

    def filled(self, cut: Cut) -> Cut:
        """The cut with the fewest layers, from its own number on, that have to recompute for all to fit."""
        free = cut.again and "recompute" not in self.pinned
        if not free or self.ledger.fits(cut) or not self.ledger.fits(replace(cut, again=0)):
            return cut
        layers = self.clock.layers(cut)[0]
        numbers = range(cut.again + 1, layers)
        first = bisect_left(numbers, True, key=lambda again: self.ledger.fits(replace(cut, again=again)))  # noqa: FBT003 - what is sought
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
        return any(self.ledger.fits(cut) for cut in self.thrifty(gpus))

    def least(self, counts: Sequence[int]) -> Memory | None:
        """Bytes of the cut over one of so many GPUs that needs the fewest; None where none is possible."""
        cuts = (cut for gpus in sorted(counts, reverse=True) for cut in self.thrifty(gpus))
        best: tuple[int, int, Cut] | None = None
        for floor, at, cut in sorted((self.ledger.floor(cut), at, cut) for at, cut in enumerate(cuts)):
            if best and floor > best[0]:
                break
            mine = self.ledger.peak(cut), at, cut
            best = mine if best is None or mine < best else best
        return self.ledger.memory(best[2]) if best else None

    def thrifty(self, gpus: int) -> Iterator[Cut]:
        """Of each mesh of so many GPUs, the cut that needs the fewest bytes."""
        again = self.config.recompute_layers if "recompute" in self.pinned else 0
        for stages in self.meshes(gpus):
            if batches := self.batches(stages):
                yield Cut(next(self.divisions(stages)), *batches[-1], self.recomputes[-1], self.gathers[-1], again)


def blamed(*names: str) -> tuple[str, object]:
    """Nobody reads who is to blame where cuts are only tried."""
    return names[0], None


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
