"""Seconds of one step by kind: what computes, what travels and over which link, what hides, who waits.

The formulas of what moves are docs/scaling.md's; how fast it moves is `calibration`'s. It knows no search.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from typing import NamedTuple

from teragpt.config import Config
from teragpt.layout import AT_ONCE, Layout, element_bytes
from teragpt.plan.calibration import HOP_SECONDS, NETWORK_PART, NVLINK_PART, Speed
from teragpt.plan.hardware import Cluster
from teragpt.plan.memory import BF16, FP32, Cut, block_parameters, layers_of, stays_gathered
from teragpt.sizes import padded

# Bytes of bf16 that pass through memory forward and backward, a token and layer: each count times a width.
GATE_BYTES = 16  # of SwiGLU, times ffn: 3 passes forward, 5 backward
ROTARY_BYTES = 8  # of norms and rotation of queries and keys, times their width: read and written, both ways
NORM_BYTES = 32  # of both norms and residuals, times dim (gpu measurement's floor: docs/notebook.md)
CAST_BYTES = 12  # a parameter: fp32 to bf16 and its gradient back
UPDATE_BYTES = 32  # AdamW in fp32 reads 4 numbers and writes 3, and clipping reads one
MUON_BYTES = 78  # Muon: gradients summed up in fp32, momentum, casts, norm, the update, and the copy in bf16
MUON_TURNS = 5  # of its iteration, with three products each
PACKED = 2 * BF16, BF16 + FP32  # a parameter: out of what was gathered in bf16, and into what is scattered in fp32
EXTRA_FORWARD = {"none": (0.0, 0.0), "selective": (0.0, 1 / 3), "full": (1 / 3, 1 / 3)}  # products, passes over memory
GATHERS = {"none": 8, "selective": 10, "full": 12}  # of tensor parallel, a layer and micro-batch (docs/scaling.md)


class Layer(NamedTuple):
    """Seconds of one layer and micro-batch on a rank: products, attention, passes over memory; forward part of all."""

    products: float
    attention: float
    passes: float
    tensor: float
    context: float
    forward: float

    @property
    def computes(self) -> float:
        """Without what travels."""
        return self.products + self.attention + self.passes

    @property
    def total(self) -> float:
        """With the collectives that a layer waits for."""
        return self.computes + self.tensor + self.context


class Stage(NamedTuple):
    """The stage that takes longest: `layers` of it, each as `layer`, and seconds of the `head` where it has that."""

    layer: Layer
    layers: int
    head: float

    @property
    def seconds(self) -> float:
        """Of a micro-batch."""
        return self.layers * self.layer.total + self.head


@dataclass(frozen=True)
class Step:
    """Seconds of a step by kind, which add up to `seconds`.

    `travels`: how long weights and gradients take their way beside compute; `dp` of the parts is what sticks out.
    """

    parts: dict[str, float]
    travels: dict[str, float]

    @property
    def seconds(self) -> float:
        """The whole step."""
        return sum(self.parts.values())


class Way(NamedTuple):
    """Seconds that a block's weights are gathered in, its gradients scattered and summed over copies.

    `ends`: all three of embedding and head, before the first block and after it, which nothing hides. `unpacks` and
    `packs`: copies within a GPU between the weights, or gradients, and the buffers that travel.
    """

    gather: float
    scatter: float
    copies: float
    ends: float
    unpacks: float
    packs: float

    @property
    def around(self) -> float:
        """Once there and back."""
        return self.gather + self.scatter + self.copies


@dataclass(frozen=True)
class Clock:
    """Times steps of one model on one cluster; it remembers what it has timed."""

    config: Config
    cluster: Cluster
    speed: Speed
    timed: dict[tuple[int, int, int, str, bool], Layer] = field(default_factory=dict, compare=False, repr=False)
    spread: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict, compare=False, repr=False)
    heads: dict[tuple[int, int], float] = field(default_factory=dict, compare=False, repr=False)
    ways: dict[tuple[int, int, int, int], Way] = field(default_factory=dict, compare=False, repr=False)
    updates: dict[tuple[int, ...], float] = field(default_factory=dict, compare=False, repr=False)
    slowest: dict[tuple[object, ...], Stage] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def shape(self) -> tuple[int, int, int, int]:
        """Width, width of queries, of keys, and of the feed-forward layer."""
        config = self.config
        return config.dim, config.q_dim, config.kv_dim, config.ffn

    # --- a layer ------------------------------------------------------------------------------------------------

    def layer(self, cut: Cut) -> Layer:
        """One layer of a micro-batch on a rank; where not all recompute, the mean of them."""
        recomputes, layers = self.one_layer(cut, cut.recompute), self.layers(cut)[0]
        share = cut.whole(layers) / layers if cut.again else 0.0
        if not share:
            return recomputes
        pairs = zip(self.one_layer(cut, "none"), recomputes, strict=True)
        return Layer(*(share * whole + (1 - share) * again for whole, again in pairs))

    def one_layer(self, cut: Cut, recompute: str) -> Layer:
        """As `layer`, with one mode, timed once."""
        stages = cut.stages
        key = cut.tokens(self.config.context), stages.tp, stages.cp, recompute, stages.ranks == 1
        if key not in self.timed:
            self.timed[key] = self.timed_layer(*key)
        return self.timed[key]

    def timed_layer(self, tokens: int, tp: int, cp: int, recompute: str, alone: bool) -> Layer:  # noqa: FBT001 - a key
        """As `layer`. A rank alone casts its weights and their gradients itself, which FSDP does for others."""
        dim, _, kv, _ = self.shape
        again, passed_again = EXTRA_FORWARD[recompute]
        products = 3 * (1 + again) * self.products(tokens, tp) / 3
        attention = self.attention(tokens, tp) * (1 + again * 6 / 7)  # forward is 2 of 7 parts
        passes = (1 + passed_again) * tokens * self.passes(tp) / self.speed.pointwise_rate
        passes += CAST_BYTES * block_parameters(self.config, tp) / self.speed.copy_rate if alone else 0.0
        tensor = GATHERS[recompute] * self.travels(BF16 * tokens * dim, tp, 1)
        heads = 2 * BF16 * tokens * kv // tp * cp  # keys and values of the whole sequence
        context = (2 + (recompute == "full")) * self.travels(heads, cp, tp)
        computes = products + attention + passes
        return Layer(products, attention, passes, tensor, context, computes / (3 * (1 + again)))

    def products(self, tokens: int, tp: int) -> float:
        """Forward and backward of a layer's four products."""
        dim, q, kv, ffn = self.shape
        seconds = 0.0
        for inner, out in ((dim, (q + 2 * kv) / tp), (q / tp, dim), (dim, 2 * ffn / tp), (ffn / tp, dim)):
            for rows, between, columns in ((tokens, inner, out), (tokens, out, inner), (inner, tokens, out)):
                seconds += self.speed.product_seconds(rows, between, columns, self.config.precision)
        return seconds

    def attention(self, tokens: int, tp: int) -> float:
        """Forward and backward: 7 products of which a causal mask leaves half."""
        context = self.config.context
        flops = 7 * tokens * context * self.config.q_dim / tp
        return self.speed.attention_seconds(flops, self.config.head_dim, context)

    def passes(self, tp: int) -> float:
        """Bytes a token of norms, rotations and gates, and of casting to eight bits, forward and backward."""
        dim, q, kv, ffn = self.shape
        moved = (GATE_BYTES * ffn + ROTARY_BYTES * (q + kv) + NORM_BYTES * dim) / tp
        cast = self.speed.calibration.quantise_bytes * (4 * dim + 2 * (q + kv) + 3 * ffn) / tp
        return moved + (cast if self.config.precision == "fp8" else 0)

    def head(self, tokens: int, tp: int) -> float:
        """The last product and the loss, forward and backward, timed once."""
        if (tokens, tp) not in self.heads:
            dim, vocabulary = self.config.dim, padded(self.config.num_tokens) / tp
            passes = tokens * vocabulary * BF16 * self.speed.calibration.loss_passes / self.speed.copy_rate
            self.heads[tokens, tp] = 3 * self.speed.product_seconds(tokens, dim, vocabulary, "bf16") + passes
        return self.heads[tokens, tp]

    # --- what travels -------------------------------------------------------------------------------------------

    def rate(self, ranks: int, apart: int) -> float:
        """Bytes a second of a ring over `ranks` that stand `apart` in the order of ranks.

        Within a node, the node's link; beyond, each node's part of the group drives its own adapters, at once.
        """
        within = self.speed.device.link * NVLINK_PART
        per_node = self.cluster.per_node
        if ranks * apart <= per_node:
            return within
        side_by_side = max(1, per_node // apart) if apart < per_node else 1
        return min(within, side_by_side * self.cluster.network.rate * NETWORK_PART)

    def travels(self, whole: float, ranks: int, apart: int) -> float:
        """Seconds that a ring gathers `whole` bytes in, or scatters their sums."""
        if ranks == 1:
            return 0.0
        return whole * (ranks - 1) / ranks / self.rate(ranks, apart) + HOP_SECONDS * ranks

    def latency(self, ranks: int) -> float:
        """Of a collective, whatever its bytes; nothing hides it."""
        return HOP_SECONDS * ranks if ranks > 1 else 0.0

    # --- a step -------------------------------------------------------------------------------------------------

    def computing(self, cut: Cut) -> float:
        """Seconds of a step in which only layers' own collectives and what stages hand on travel: no cut is faster."""
        turns = cut.count + (cut.stages.pp - 1) / cut.stages.chunks
        return self.busiest(cut).seconds * turns + self.handing_on(cut)

    def handing_on(self, cut: Cut) -> float:
        """Seconds a step that stages wait for activations and gradients on their way to them."""
        stages = cut.stages
        if stages.pp == 1:
            return 0.0
        rate = self.speed.device.link * NVLINK_PART
        if stages.ranks > self.cluster.per_node:
            rate = min(rate, self.cluster.network.rate * NETWORK_PART)
        once = BF16 * cut.tokens(self.config.context) * self.config.dim / stages.tp / rate + HOP_SECONDS
        return waits(stages.pp, stages.chunks, cut.count) * once

    def busiest(self, cut: Cut) -> Stage:
        """The stage that takes longest for a micro-batch, timed once."""
        stages = cut.stages
        mesh = stages.tp, stages.cp, stages.pp, stages.chunks, stages.ranks == 1
        key = cut.micro_batch, cut.recompute, cut.again, *mesh
        if key not in self.slowest:
            layer, head = self.layer(cut), self.head(cut.tokens(self.config.context), stages.tp)
            layers, last = self.layers(cut)
            with_head = last * layer.total + head >= layers * layer.total
            self.slowest[key] = Stage(layer, last, head) if with_head else Stage(layer, layers, 0.0)
        return self.slowest[key]

    def layers(self, cut: Cut) -> tuple[int, int]:
        """Layers of the fullest stage without the head, and of the one with it."""
        key, depth, stages = (cut.stages.pp, cut.stages.chunks), self.config.depth, cut.stages
        if key not in self.spread:
            fullest = max(layers_of(depth, stages, 0), layers_of(depth, stages, max(0, stages.pp - 2)))
            self.spread[key] = fullest, layers_of(depth, stages, stages.pp - 1)
        return self.spread[key]

    def step(self, cut: Cut) -> Step:
        """A whole step, by kind."""
        stages, count = cut.stages, cut.count
        busiest = self.busiest(cut)
        layer, on_stage, with_head = busiest
        parts = {
            "products": count * on_stage * layer.products,
            "attention": count * on_stage * layer.attention,
            "passes over memory": count * on_stage * layer.passes,
            "head and loss": count * with_head,
            "tp": count * on_stage * layer.tensor,
            "cp": count * on_stage * layer.context,
            "dp": self.shown(cut),
            "pipeline's wait": busiest.seconds * (stages.pp - 1) / stages.chunks,
            "pipeline's sends": self.handing_on(cut),
            "optimizer": self.update(cut),
        }
        return Step({kind: seconds for kind, seconds in parts.items() if seconds}, self.moving(cut))

    def at_least(self, cut: Cut, computing: float) -> float:
        """Seconds of `step`, or a little less: their sum in another order, of which `computing` is known."""
        return (computing + self.shown(cut) + self.update(cut)) * (1 - 1e-9)

    def gathers(self, cut: Cut) -> tuple[int, float]:
        """How often a step goes through the weights, and seconds of a block's second gather in each."""
        whole = stays_gathered(self.config, cut, self.busiest(cut).layers)
        return (1, 0.0) if whole else (cut.count, self.way(cut.stages).gather)

    def shown(self, cut: Cut) -> float:
        """Seconds a step that gathers of weights and scatters of gradients add, as nothing hides them."""
        stages = cut.stages
        if stages.ranks == stages.pp * stages.tp:
            return 0.0
        way, (turns, again), (layer, layers, _) = self.way(stages), self.gathers(cut), self.busiest(cut)
        behind = layer.computes - layer.forward
        late = max(0.0, way.gather - layer.forward) + max(0.0, again + way.scatter + way.copies - behind)
        waits = self.latency(stages.fsdp) * (3 if again else 2) + 2 * self.latency(stages.dp_replicate)
        packing = way.packs + way.unpacks * (2 if again else 1)
        return turns * (layers * (max(late, waits) + packing) + way.around + way.ends)

    def moving(self, cut: Cut) -> dict[str, float]:
        """Seconds a step that weights and gradients of blocks take their way, hidden or not, by kind."""
        if cut.stages.ranks == cut.stages.pp * cut.stages.tp:
            return {}
        way, (turns, again), layers = self.way(cut.stages), self.gathers(cut), self.busiest(cut).layers
        travels = {
            "weights gathered": turns * layers * (way.gather + again),
            "gradients scattered": turns * layers * way.scatter,
            "gradients summed over copies": turns * layers * way.copies,
        }
        return {kind: seconds for kind, seconds in travels.items() if seconds}

    def shown_at_least(self, cut: Cut, around: float, twice: float, ends: float) -> float:
        """As `shown`, or less: a block's weights and gradients go `around`, `twice` with a second gather."""
        layer, layers, _ = self.busiest(cut)
        turns, moved = (1, around) if stays_gathered(self.config, cut, layers) else (cut.count, twice)
        return turns * (layers * max(0.0, moved - layer.computes) + around + ends)

    def way(self, stages: Layout) -> Way:
        """Of a block, and of the ends: two matrices but where these are one or stages apart."""
        both = 1 if self.config.tied or stages.pp > 1 else 2
        key = stages.tp, stages.fsdp, stages.dp_replicate, both
        if key not in self.ways:
            rows = both * padded(self.config.num_tokens) * self.config.dim / stages.tp
            block = block_parameters(self.config, stages.tp)
            alone = stages.fsdp == stages.dp_replicate == 1
            unpacks, packs = (0.0 if alone else moved / self.speed.copy_rate for moved in PACKED)  # of a parameter
            ends = sum(self.there_and_back(stages, rows)) + (unpacks + packs) * rows
            self.ways[key] = Way(*self.there_and_back(stages, block), ends, unpacks * block, packs * block)
        return self.ways[key]

    def there_and_back(self, stages: Layout, numbers: float) -> tuple[float, float, float]:
        """Seconds to gather so many weights in bf16, to scatter their gradients in fp32, to sum these over copies."""
        shards, copies, apart = stages.fsdp, stages.dp_replicate, stages.tp
        gather, scatter = (self.travels(each * numbers, shards, apart) for each in (BF16, FP32))
        return gather, scatter, 2 * self.travels(FP32 * numbers / shards, copies, apart * shards)

    def update(self, cut: Cut) -> float:
        """Of a rank's slice, at the memory's bandwidth, and Muon's products; the norm of all is one number's sum."""
        stages, layers = cut.stages, self.layers(cut)[0]
        key = layers, stages.tp, stages.fsdp, stages.ranks
        if key not in self.updates:
            muon, blocks = self.config.optimizer == "muon", layers * block_parameters(self.config, stages.tp)
            adamw = padded(self.config.num_tokens) * self.config.dim // stages.tp + (0 if muon else blocks)
            moved = UPDATE_BYTES * element_bytes(self.config) / FP32 * adamw + (MUON_BYTES * blocks if muon else 0)
            seconds = moved / stages.fsdp / self.speed.copy_rate + self.latency(stages.ranks)
            self.updates[key] = seconds + (self.orthogonal(stages, layers) if muon else 0.0)
        return self.updates[key]

    def orthogonal(self, stages: Layout, layers: int) -> float:
        """Muon's products over the whole matrices that a rank owns, and their two ways between owners and holders."""
        (dim, *others), sharers, seconds = self.shape, stages.fsdp * stages.tp, 0.0
        for width, number in zip(others, (2, 2, 3), strict=True):
            small, large = sorted((dim, width))
            owned = ceil(number * layers / sharers)
            batch = min(owned, max(1, AT_ONCE // (small * large)))
            gram, third = ((batch * small, inner, small) for inner in (large, small))
            products = (gram, third, (batch * small, small, large))
            turn = sum(self.speed.product_seconds(*one, "bf16") for one in products)
            seconds += MUON_TURNS * turn * owned / batch
        shard = BF16 * layers * block_parameters(self.config, stages.tp) / stages.fsdp
        return seconds + 2 * self.travels(shard, sharers, 1)


def waits(pp: int, chunks: int, count: int) -> float:
    """Sends that a step of so many micro-batches waits for.

    1F1B has no micro-batch to spare, so that each of them waits for the way there and back; interleaved, only the
    first and the last do. What the trainer's own order of tasks takes when it is played through (tests/teragpt/plan).
    """
    if chunks > 1:
        return 2 * (pp * chunks - 1)
    return 2 * (pp - 2 + count * (pp - 1) / pp)
