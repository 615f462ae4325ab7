"""Bytes of one rank by kind, and where in a step they peak.

State is exact (`layout.held`), and so is what blocks keep for backward where the mode says so
(`activations.activation_bytes`). Buffers follow from what FSDP2 and the loss hold at once; the allocator's slack and
the context are a part of the card that a plan leaves free.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import NamedTuple

from teragpt.activations import activation_bytes
from teragpt.config import Config
from teragpt.layout import AT_ONCE, Layout, State, alive, element_bytes, held, spread
from teragpt.sizes import padded

# Of the data sheet's bytes: half for CUDA, NCCL and the allocator's slack (beside what a card shows beyond its data
# sheet), half for what these formulas may be wrong by. A policy: neither half has been measured on a card yet.
LEFT_FREE = 0.10
# Of a small card more, but a quarter at most: CUDA's context, and room as large as one chunk of logits, which is what
# fragments: with a tenth, 3 of 200 random specs did not fit (docs/notebook.md).
LEAST_FREE, MOST_FREE = 3.2e9, 0.25
STAYS_GATHERED = 8 << 30  # bytes of fp32 gradients up to which a model stays whole (pipeline.py)
LOGITS = 1 << 30  # of one chunk of the loss, whose gradients take their place (ops.GPU_LOGITS_CHUNK)
BF16, FP32 = 2, 4
START, END, LOSS, UPDATE = "the first block's backward", "the last block's backward", "the loss", "the update"
MUON_HELD = 10  # bytes an element of what Muon works on at once: the gradient in fp32, four of the iteration's in bf16
HELD_BLOCKS = 2  # gathered at once: the one that computes and the next one


@dataclass(frozen=True)
class Cut:
    """A step cut over ranks: the mesh, sequences of a micro-batch, micro-batches of a step, what is computed again.

    `gathered`: whether weights stay whole for all of it; None where the trainer goes by their size. `again`: how many
    of a stage's layers recompute; 0: all.
    """

    stages: Layout
    micro_batch: int
    count: int
    recompute: str
    gathered: bool | None = None
    again: int = 0

    def whole(self, layers: int) -> int:
        """Of a rank's layers, those that keep everything."""
        return layers if self.recompute == "none" else max(0, layers - (self.again * self.stages.chunks or layers))

    @property
    def recomputed(self) -> str:
        """What is computed again, in words."""
        return f"{self.recompute} in {self.again} layers" if self.again else self.recompute

    def tokens(self, context: int) -> int:
        """Tokens of a micro-batch on a rank, before `tp` cuts them between a layer's halves."""
        return self.micro_batch * context // self.stages.cp


@dataclass(frozen=True)
class Memory:
    """Bytes of the fullest rank by kind, the most of each, and `at_peak`, which add up; `where` in a step that is."""

    kinds: dict[str, int]
    at_peak: dict[str, int]
    where: str
    limit: int

    @property
    def peak(self) -> int:
        """The most at once."""
        return sum(self.at_peak.values())

    @property
    def fits(self) -> bool:
        """Whether the peak leaves free what is to be left free."""
        return self.peak <= self.limit


class Bytes(NamedTuple):
    """What a rank holds: always, in some of a step's moments or, of what is `last`, when backward is done."""

    parameters: int
    optimizer: int
    weights: int
    before: int  # gradients of earlier micro-batches
    gradients: int
    kept: int
    last_kept: int
    copies: int
    last_copies: int
    working: int
    last_working: int
    scattered: int
    loss: int
    update: int

    @property
    def peak(self) -> int:
        """The most at once, as the moments of `memory` say."""
        whole = self.before + self.kept + self.copies
        end = self.gradients + self.last_kept + self.last_copies + self.last_working + self.scattered
        most = max(whole + self.working + self.scattered, end, whole + self.loss, self.gradients + self.update)
        return self.parameters + self.optimizer + self.weights + most

    def memory(self, device_memory: int) -> Memory:
        """By kind, on a card of so many bytes."""
        always = {"parameters": self.parameters, "optimizer": self.optimizer, "weights in bf16": self.weights}
        summed = {"gradients": self.gradients}
        before = {"gradients": self.before} if self.before else {}
        whole = {"activations": self.kept, "copies of weights": self.copies}
        last = {"activations": self.last_kept, "copies of weights": self.last_copies}
        first, backward = (
            {"one block's backward": working, "gradients to be scattered": self.scattered}
            for working in (self.working, self.last_working)
        )
        loss = {"logits and loss": self.loss}
        update = {"whole matrices": self.update} if self.update else {}
        moments = {
            START: always | before | whole | first,
            END: always | summed | last | backward,
            LOSS: always | before | whole | loss,
            UPDATE: always | summed | update,
        }
        where = max(moments, key=lambda one: sum(moments[one].values()))
        left = {"left free": left_free(device_memory)}
        every = always | summed | whole | backward | loss | update | left
        return Memory(every, moments[where], where, limit(device_memory))


def limit(memory: int) -> int:
    """Bytes of a card that a plan may use."""
    return memory - left_free(memory)


def left_free(memory: int) -> int:
    """Bytes of a card that a plan leaves alone."""
    return int(max(LEFT_FREE * memory, min(LEAST_FREE, MOST_FREE * memory)))


@dataclass(frozen=True)
class Ledger:
    """Counts bytes of cuts of one model on cards of `device_memory` bytes; it remembers what it has counted."""

    config: Config
    device_memory: int
    states: dict[tuple[int, ...], State] = field(default_factory=dict, compare=False, repr=False)
    matrices: dict[tuple[int, int, int], int] = field(default_factory=dict, compare=False, repr=False)
    tokens: dict[tuple[str, int, int], float] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def limit(self) -> int:
        """Bytes that a plan may use."""
        return limit(self.device_memory)

    def memory(self, cut: Cut) -> Memory:
        """Of the rank that holds most: on the first stage of a pipeline, or on the last, which has the loss."""
        return max(self.ends(cut), key=lambda one: one.peak).memory(self.device_memory)

    def fits(self, cut: Cut) -> bool:
        """Whether that leaves free what is to be left free."""
        return all(one.peak <= self.limit for one in self.ends(cut))

    def peak(self, cut: Cut) -> int:
        """The most bytes at once of either."""
        return max(one.peak for one in self.ends(cut))

    def ends(self, cut: Cut) -> Iterator[Bytes]:
        """The first stage of a pipeline, and the last if it is another."""
        yield self.of_stage(cut, 0)
        if cut.stages.pp > 1:
            yield self.of_stage(cut, cut.stages.pp - 1)

    def slice_bytes(self, stages: Layout) -> int:
        """Of a rank's part of the first stage's matrices, or a little less."""
        config, key = self.config, (stages.pp, stages.chunks, stages.tp)
        if key not in self.matrices:
            blocks = layers_of(config.depth, stages, 0) * block_parameters(config, stages.tp)
            self.matrices[key] = blocks + padded(config.num_tokens) * config.dim // stages.tp
        return element_bytes(config) * self.matrices[key] // stages.fsdp

    def least(self, stages: Layout) -> int:
        """Bytes of matrices and their moments on the first stage: no cut over these ranks takes fewer."""
        return (2 if self.config.optimizer == "muon" else 3) * self.slice_bytes(stages)

    def room(self, stages: Layout, gathers: Iterable[bool | None]) -> int:
        """Bytes that are left on the first stage beside that and what is gathered, in any of these ways."""
        layers, ends = layers_of(self.config.depth, stages, 0), 1 + (stages.pp == 1)
        cuts = (Cut(stages, 1, 1, "none", gathered) for gathered in gathers)
        return self.limit - self.least(stages) - min(sum(buffers(self.config, cut, layers, ends)) for cut in cuts)

    def floor(self, cut: Cut) -> int:
        """Bytes below the peak: what is quick to count of state, and what blocks keep on the first stage."""
        blocks = layers_of(self.config.depth, cut.stages, 0) * alive(cut.stages, cut.count, 0)
        return self.least(cut.stages) + int(self.kept(cut) * blocks)

    def kept_of(self, recompute: str, stages: Layout) -> float:
        """Bytes that a sequence keeps on the first stage until its backward, where all layers recompute so."""
        layers = layers_of(self.config.depth, stages, 0)
        return self.each(recompute, stages) * (self.config.context // stages.cp) * layers

    def may_gather(self, cut: Cut) -> bool:
        """Whether the first stage's weights could stay gathered beside that, and its gradients whole."""
        each = BF16 + (FP32 if cut.count > 1 else 0)
        blocks = layers_of(self.config.depth, cut.stages, 0) * block_parameters(self.config, cut.stages.tp)
        return self.floor(cut) + each * blocks <= self.limit

    def kept(self, cut: Cut) -> float:
        """Bytes that a micro-batch keeps in a layer until its backward, where that recomputes."""
        return self.each(cut.recompute, cut.stages) * cut.tokens(self.config.context)

    def at_most_whole(self, cut: Cut, spare: float) -> int:
        """Layers of the first stage that may keep everything where so many bytes are spare; no more of them fit."""
        passing, tokens = alive(cut.stages, cut.count, 0), cut.tokens(self.config.context)
        more = (self.each("none", cut.stages) - self.each(cut.recompute, cut.stages)) * tokens * passing
        return int((spare - self.working(cut, "none")) / more)

    def kept_in(self, cut: Cut, layers: int) -> float:
        """As `kept`, in so many layers of a rank."""
        whole = cut.whole(layers)
        everything = self.each("none", cut.stages) * cut.tokens(self.config.context)
        return everything * whole + self.kept(cut) * (layers - whole)

    def each(self, recompute: str, stages: Layout) -> float:
        """As `kept`, of a token; counted once."""
        key = recompute, stages.tp, stages.cp
        if key not in self.tokens:
            shape, (_, tp, cp) = self.config.shape, key
            self.tokens[key] = activation_bytes(shape, recompute, BF16, tp, cp, fused=True, eight=eight(self.config))
        return self.tokens[key]

    def working(self, cut: Cut, recompute: str) -> int:
        """Of one block's backward: what is computed again, the gradients of its widest product, and of its weights."""
        config, tp = self.config, cut.stages.tp
        again = self.each("none", cut.stages) - self.each(recompute, cut.stages)
        slopes = (3 * config.ffn + 3 * config.dim) * BF16 / tp
        summed = 2 * BF16 * config.dim * config.ffn // tp if cut.count > 1 else 0  # of gate and up, to be added
        return int(cut.tokens(config.context) * (again + slopes) + summed)

    def state(self, stages: Layout, pp_rank: int) -> State:
        """Of the fullest rank on a rank of the pipeline, counted once."""
        key = pp_rank, stages.pp, stages.chunks, stages.fsdp, stages.tp
        if key not in self.states:
            self.states[key] = held(self.config, stages, pp_rank, 0)
        return self.states[key]

    def of_stage(self, cut: Cut, pp_rank: int) -> Bytes:
        """On one rank of the pipeline."""
        config, stages = self.config, cut.stages
        state = self.state(stages, pp_rank)
        layers, head = layers_of(config.depth, stages, pp_rank), pp_rank == stages.pp - 1
        passing, whole = alive(stages, cut.count, pp_rank), cut.whole(layers)
        gathered, scattered = buffers(config, cut, layers, ends=int(pp_rank == 0) + int(head))
        alone = stages.ranks == 1  # its masters have a copy in bf16, and so have gradients that are not added up
        copies = 0 if alone else joined_copies(config, cut, layers)  # the copy lies joined
        copies += block_parameters(config, stages.tp) * max(1, cut.whole(layers)) if eight(config) else 0
        element = element_bytes(config)
        copied = state.parameters * BF16 // FP32 if element > BF16 else 0
        wide = min(element, BF16 if cut.count == 1 else FP32) if alone else element
        gradients = state.gradients * wide // element
        working = self.working(cut, cut.recompute)
        return Bytes(
            parameters=state.parameters,
            optimizer=state.optimizer,
            weights=copied if alone else gathered,
            before=gradients if cut.count > 1 else 0,
            gradients=gradients,
            kept=int(self.kept_in(cut, layers) * passing),
            last_kept=int(self.kept(cut) * passing),
            copies=copies,
            last_copies=copies // layers,
            working=self.working(cut, "none") if whole else working,
            last_working=working,
            scattered=scattered,
            loss=loss_bytes(config, cut) if head else 0,
            update=update_bytes(config, layers),
        )


def update_bytes(config: Config, layers: int) -> int:
    """Of the matrices that Muon makes orthogonal at once; AdamW changes each number where it lies."""
    if config.optimizer != "muon":
        return 0
    alike = ((config.dim * config.q_dim, 2 * layers), (config.dim * config.ffn, 3 * layers))
    return MUON_HELD * max(size * min(number, max(1, AT_ONCE // size)) for size, number in alike)


@cache
def layers_on(depth: int, pp: int, chunks: int, pp_rank: int) -> int:
    """Layers on a rank of the pipeline."""
    return sum(map(len, spread(depth, pp * chunks)[pp_rank::pp]))


def layers_of(depth: int, stages: Layout, pp_rank: int) -> int:
    """As `layers_on`, of a layout."""
    return layers_on(depth, stages.pp, stages.chunks, pp_rank)


def block_parameters(config: Config, tp: int) -> int:
    """Of the matrices of one block, on one of `tp` ranks."""
    return config.dim * (2 * (config.q_dim + config.kv_dim) + 3 * config.ffn) // tp


def stays_gathered(config: Config, cut: Cut, layers: int) -> bool:
    """Whether a stage's parameters stay whole for all of a step."""
    if cut.gathered is not None:
        return cut.gathered
    whole = layers * block_parameters(config, cut.stages.tp) + ends_parameters(config, cut.stages.tp)
    return whole * FP32 <= STAYS_GATHERED


def ends_parameters(config: Config, tp: int) -> int:
    """Of the embedding, and of the head where it has a matrix of its own."""
    return (1 if config.tied else 2) * padded(config.num_tokens) * config.dim // tp


def buffers(config: Config, cut: Cut, layers: int, ends: int) -> tuple[int, int]:
    """Of what FSDP gathers, in bf16, and of gradients that wait to be scattered, in fp32."""
    if cut.stages.ranks == 1:
        return 0, 0
    block = block_parameters(config, cut.stages.tp)
    vocabulary = padded(config.num_tokens) * config.dim // cut.stages.tp
    held_ends = min(ends, 1 if config.tied else 2) * vocabulary
    if stays_gathered(config, cut, layers):
        whole = layers * block + held_ends
        return BF16 * whole, FP32 * ((whole if cut.count > 1 else 0) + HELD_BLOCKS * block)
    return BF16 * (HELD_BLOCKS * block + held_ends), HELD_BLOCKS * (BF16 + FP32) * block


def joined_copies(config: Config, cut: Cut, layers: int) -> int:
    """Of q, k, v and of gate, up side by side, which stay until backward where nothing is computed again."""
    others = config.dim * (config.q_dim + config.ffn) // cut.stages.tp
    copied = block_parameters(config, cut.stages.tp) - others
    return BF16 * copied * max(1, cut.whole(layers))


def eight(config: Config) -> bool:
    """Whether products keep for backward what they multiplied, weights too, in eight bits."""
    return config.precision == "fp8" and config.fp8_recipe == "tensorwise"


def loss_bytes(config: Config, cut: Cut) -> int:
    """Of the chunked loss: logits of a chunk, the gradient of the tokens, and the head's, in bf16 too at the end."""
    tp = cut.stages.tp
    head = padded(config.num_tokens) * config.dim // tp
    tokens = cut.tokens(config.context)
    logits = min(LOGITS, tokens * padded(config.num_tokens) // tp)
    return BF16 * logits + tokens * 4 * config.dim * BF16 + (FP32 + 2 * BF16) * head
