"""Seconds of one step by kind: what computes, what travels and over which link, what hides, who waits.

The formulas of what moves are docs/scaling.md's; how fast it moves is `calibration`'s. It knows no search.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from teragpt.config import Config
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
EXTRA_FORWARD = {"none": (0.0, 0.0), "selective": (0.0, 1 / 3), "full": (1 / 3, 1 / 3)}  # products, passes over memory
GATHERS = {"none": 8, "selective": 10, "full": 12}  # of tensor parallel, a layer and micro-batch (docs/scaling.md)


@dataclass(frozen=True)
class Layer:
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


@dataclass(frozen=True)
class Clock:
    """Times steps of one model on one cluster; it remembers layers that it has timed."""

    config: Config
    cluster: Cluster
    speed: Speed
    timed: dict[tuple[int, int, int, str, bool], Layer] = field(default_factory=dict, compare=False, repr=False)
    spread: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict, compare=False, repr=False)
    heads: dict[tuple[int, int], float] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Width, width of keys, width of the feed-forward layer."""
        config = self.config
        return config.dim, config.kv_heads * config.dim // config.heads, config.ffn

    # --- a layer ------------------------------------------------------------------------------------------------

    def layer(self, cut: Cut) -> Layer:
        """One layer of a micro-batch on a rank, timed once."""
        stages = cut.stages
        key = cut.tokens(self.config.context), stages.tp, stages.cp, cut.recompute, stages.ranks == 1
        if key not in self.timed:
            self.timed[key] = self.timed_layer(*key)
        return self.timed[key]

    def timed_layer(self, tokens: int, tp: int, cp: int, recompute: str, alone: bool) -> Layer:  # noqa: FBT001 - a key
        """As `layer`. A rank alone casts its weights and their gradients itself, which FSDP does for others."""
        dim, kv, _ = self.shape
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
        dim, kv, ffn = self.shape
        seconds = 0.0
        for inner, out in ((dim, (dim + 2 * kv) / tp), (dim / tp, dim), (dim, 2 * ffn / tp), (ffn / tp, dim)):
            for rows, between, columns in ((tokens, inner, out), (tokens, out, inner), (inner, tokens, out)):
                seconds += self.speed.product_seconds(rows, between, columns, self.config.precision)
        return seconds

    def attention(self, tokens: int, tp: int) -> float:
        """Forward and backward: 7 products of which a causal mask leaves half."""
        context, width = self.config.context, self.config.dim // self.config.heads
        flops = 7 * tokens * context * self.config.dim / tp
        return self.speed.attention_seconds(flops, width, context)

    def passes(self, tp: int) -> float:
        """Bytes a token of norms, rotations and gates, and of casting to eight bits, forward and backward."""
        dim, kv, ffn = self.shape
        moved = (GATE_BYTES * ffn + ROTARY_BYTES * (dim + kv) + NORM_BYTES * dim) / tp
        cast = self.speed.calibration.quantise_bytes * (6 * dim + 2 * kv + 3 * ffn) / tp
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
        """Seconds of a step in which nothing but the layers' own collectives travels: no cut is faster."""
        stages = cut.stages
        layer, head = self.layer(cut).total, self.head(cut.tokens(self.config.context), stages.tp)
        fullest, last = self.layers(cut)
        slowest = max(fullest * layer, last * layer + head)
        return slowest * (cut.count + (stages.pp - 1) / stages.chunks)

    def layers(self, cut: Cut) -> tuple[int, int]:
        """Layers of the fullest stage without the head, and of the one with it."""
        key, depth, stages = (cut.stages.pp, cut.stages.chunks), self.config.depth, cut.stages
        if key not in self.spread:
            fullest = max(layers_of(depth, stages, 0), layers_of(depth, stages, max(0, stages.pp - 2)))
            self.spread[key] = fullest, layers_of(depth, stages, stages.pp - 1)
        return self.spread[key]

    def step(self, cut: Cut) -> Step:
        """A whole step, by kind."""
        stages, tokens, count = cut.stages, cut.tokens(self.config.context), cut.count
        layer = self.layer(cut)
        head = self.head(tokens, stages.tp)
        layers, last = self.layers(cut)
        heavy = last * layer.total + head >= layers * layer.total
        on_stage, with_head = (last, head) if heavy else (layers, 0.0)
        micro = on_stage * layer.total + with_head
        shown, travels = self.sharding(cut, layer, on_stage)
        parts = {
            "products": count * on_stage * layer.products,
            "attention": count * on_stage * layer.attention,
            "passes over memory": count * on_stage * layer.passes,
            "head and loss": count * with_head,
            "tp": count * on_stage * layer.tensor,
            "cp": count * on_stage * layer.context,
            "dp": shown,
            "pipeline's wait": micro * (stages.pp - 1) / stages.chunks,
            "optimizer": self.update(cut),
        }
        return Step({kind: seconds for kind, seconds in parts.items() if seconds}, travels)

    def sharding(self, cut: Cut, layer: Layer, layers: int) -> tuple[float, dict[str, float]]:
        """Seconds a step that gathers of weights and scatters of gradients add, and those that hide, by kind."""
        stages, apart = cut.stages, cut.stages.tp
        if stages.ranks == stages.pp * stages.tp:
            return 0.0, {}
        block = block_parameters(self.config, stages.tp)
        gather = self.travels(BF16 * block, stages.fsdp, apart)
        scatter = self.travels(FP32 * block, stages.fsdp, apart)
        copies = 2 * self.travels(FP32 * block / stages.fsdp, stages.dp_replicate, apart * stages.fsdp)
        turns = 1 if stays_gathered(self.config, cut, layers) else cut.count
        again = 0 if turns < cut.count or stays_gathered(self.config, cut, layers) else gather
        late = max(0.0, gather - layer.forward) + max(0.0, again + scatter + copies - (layer.computes - layer.forward))
        ends = gather + scatter + copies + self.edges(cut)
        waits = self.latency(stages.fsdp) * (3 if again else 2) + 2 * self.latency(stages.dp_replicate)
        shown = turns * (layers * max(late, waits) + ends)
        travels = {
            "weights gathered": turns * layers * (gather + again),
            "gradients scattered": turns * layers * scatter,
            "gradients summed over copies": turns * layers * copies,
        }
        return shown, {kind: seconds for kind, seconds in travels.items() if seconds}

    def edges(self, cut: Cut) -> float:
        """Embedding's and head's gather before the first block and their scatter after it: nothing hides them."""
        stages = cut.stages
        both = 1 if self.config.tied or stages.pp > 1 else 2
        rows = both * padded(self.config.num_tokens) * self.config.dim / stages.tp
        once = self.travels(BF16 * rows, stages.fsdp, stages.tp) + self.travels(FP32 * rows, stages.fsdp, stages.tp)
        return once + 2 * self.travels(FP32 * rows / stages.fsdp, stages.dp_replicate, stages.tp * stages.fsdp)

    def update(self, cut: Cut) -> float:
        """AdamW over a rank's slice, at the memory's bandwidth; the norm of all gradients is one number's sum."""
        stages = cut.stages
        whole = self.layers(cut)[0] * block_parameters(self.config, stages.tp)
        whole += padded(self.config.num_tokens) * self.config.dim // stages.tp
        return UPDATE_BYTES * whole / stages.fsdp / self.speed.copy_rate + self.latency(stages.ranks)
