"""Pipeline parallel: the ranks of `pp` hold the layers between them, and micro-batches pass from one to the next.

The model is cut into stages, `pipeline_chunks` a rank: rank r of p holds stages r, r + p, r + 2p, ... The first stage
has the embedding, the last one the final norm, the head and the loss. One stage a rank runs 1F1B (Narayanan et al.
2019), several run it interleaved (Narayanan et al. 2021, section 2.2). What each rank computes, sends and receives, and
in which order, is one table that all ranks derive alike (`timetable`); a run follows it line by line. One rank alone is
the pipeline of one stage, so accumulation is the same code on every mesh.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.distributed.fsdp import FSDPModule

from teragpt.compute.ops import local
from teragpt.config import Config, ConfigError, Problem
from teragpt.layout import spread
from teragpt.parallelism.mesh import Mesh

PARTS = {"embed_tokens", "layers", "norm", "lm_head"}  # what a model that is cut has, and nothing else
GATHERED_BYTES = 8 << 30  # up to this size a model stays gathered between forward and backward, and micro-batches


FORWARD, BACKWARD = "forward", "backward"


class Task(NamedTuple):
    """The forward or backward of one micro-batch in one stage."""

    kind: str
    stage: int
    micro: int

    @property
    def after(self) -> Task:
        """The task that takes what this one makes."""
        return self._replace(stage=self.stage + (1 if self.kind == FORWARD else -1))


Action = tuple[str, Task]  # to "run" a task, or to "send" or "receive" what it makes


class Absent(nn.Module):
    """Stands in a stage for a part that another stage has."""

    weight = None

    def forward(self, x: Tensor) -> Tensor:
        """x as it is."""
        return x


def hand_on(x: Tensor, *_: object) -> Tensor:
    """Stands in a stage for the loss, which the last one has: the activations themselves."""
    return x


# --- cutting a model ------------------------------------------------------------------------------------------------


def build_pipeline(model: nn.Module, mesh: Mesh, config: Config, dtype: torch.dtype) -> Pipeline:
    """Cut a model on the meta device into stages. It keeps the modules of this rank's, under their names in the whole.

    Raises ConfigError for a model that is not made of `PARTS`.
    """
    stages = cut(model, mesh, config) if mesh.size("pp") > 1 else [model]
    tied = config.tied and mesh.size("pp") > 1 and mesh.rank("pp") in {0, mesh.size("pp") - 1}
    twin = cast("nn.Embedding", model.embed_tokens) if tied else None

    def room(piece: MicroBatch) -> Tensor:
        sequences, tokens = piece.ids.shape
        return piece.ids.new_empty(sequences, tokens // mesh.size("tp"), config.dim, dtype=dtype)

    if tied and mesh.rank("pp"):
        model.repeated = frozenset({"embed_tokens.weight"})  # type: ignore[assignment]  # optim.py counts it once
    return Pipeline(
        stages,
        twin,
        stays_gathered(model, config),
        mesh.process_group("pp"),
        mesh.rank("pp"),
        mesh.size("pp"),
        mesh.data_parallel.size(),
        room,
    )


def stays_gathered(model: nn.Module, config: Config) -> bool:
    """Whether fp32 gradients of all that this rank's stages have lie whole beside them, which saves communication."""
    if config.gathered != "auto":
        return config.gathered == "on"
    return sum(parameter.numel() for parameter in model.parameters()) * 4 <= GATHERED_BYTES


def cut(model: Any, mesh: Mesh, config: Config) -> list[nn.Module]:
    """This rank's stages of a model, which keeps no other modules."""
    ranks, rank = mesh.size("pp"), mesh.rank("pp")
    held = {name.partition(".")[0] for name, _ in model.named_parameters()}
    if not (held <= PARTS and all(hasattr(model, name) for name in (*PARTS, "loss"))):
        raise ConfigError([Problem("pp", ranks, f"1 for {config.model}, which is not cut into {sorted(PARTS)}")])
    count, layers, tied = ranks * config.pipeline_chunks, list(model.layers), config.tied
    mine = {stage: spread(config.depth, count)[stage] for stage in range(rank, count, ranks)}
    stages = [cut_out(model, layers[of.start : of.stop], stage, count) for stage, of in mine.items()]
    model.layers = nn.ModuleDict({str(index): layers[index] for of in mine.values() for index in of})
    if not (rank == 0 or (tied and rank == ranks - 1)):
        model.embed_tokens = None
    if rank < ranks - 1:
        model.norm = model.lm_head = None
    return stages


def cut_out(model: Any, layers: Iterable[nn.Module], stage: int, stages: int) -> nn.Module:
    """A model of the same modules as one stage of several: its forward takes and gives what lies between stages."""
    part: Any = model.__class__.__new__(model.__class__)
    nn.Module.__init__(part)
    part.__dict__.update((name, value) for name, value in vars(model).items() if name not in vars(part))
    first, last = stage == 0, stage == stages - 1
    part.embed_tokens = model.embed_tokens if first else Absent()
    part.layers = nn.ModuleList(layers)
    part.norm = model.norm if last else Absent()
    part.lm_head = (model.lm_head or model.embed_tokens) if last else Absent()
    part.loss = model.loss if last else hand_on
    return cast("nn.Module", part)


def filling(mesh: Mesh, config: Config) -> tuple[int, int]:
    """The fewest micro-batches of a step, and what their number is a multiple of: interleaved, `pp` go together."""
    ranks = mesh.size("pp")
    return ranks, ranks if config.pipeline_chunks > 1 else 1


# --- the table ------------------------------------------------------------------------------------------------------


def order(ranks: int, chunks: int, micros: int, rank: int, *, training: bool) -> list[Task]:
    """What a rank runs: all forwards, or, in training, some ahead and then one forward, one backward.

    With several chunks, `ranks` micro-batches go through one after another, and `micros` is a multiple of that.
    """
    groups = [range(start, min(start + ranks, micros)) for start in range(0, micros, ranks)]
    stages = range(rank, ranks * chunks, ranks)
    forwards = [Task(FORWARD, stage, micro) for group in groups for stage in stages for micro in group]
    if not training:
        return forwards
    backwards = [Task(BACKWARD, stage, micro) for group in groups for stage in reversed(stages) for micro in group]
    ahead = (ranks - 1 - rank) * min(chunks, 2) + (chunks - 1) * ranks
    pairs = zip(backwards, forwards[ahead:], strict=False)
    steady = [task for backward, forward in pairs for task in (forward, backward)]
    return [*forwards[:ahead], *steady, *backwards[len(steady) // 2 :]]


@cache
def timetable(ranks: int, chunks: int, micros: int, *, training: bool) -> list[list[Action]]:
    """What each rank does, in order, as if all took turns of equal length.

    Both ends of a transfer note it at the same moment, so every rank's list follows one order of all events: none ever
    waits for what comes after, even where a pair's transfers share one channel, as NCCL's do.
    """
    waiting = [deque(order(ranks, chunks, micros, rank, training=training)) for rank in range(ranks)]
    table: list[list[Action]] = [[] for _ in range(ranks)]
    last = ranks * chunks - 1
    ready = {Task(FORWARD, 0, micro) for micro in range(micros)}
    while any(waiting):
        turn = [(rank, tasks.popleft()) for rank, tasks in enumerate(waiting) if tasks and tasks[0] in ready]
        assert turn, "an order of tasks that waits for itself"
        for rank, task in turn:
            table[rank].append(("run", task))
            if task == Task(FORWARD, last, task.micro):
                ready.add(task._replace(kind=BACKWARD))
            elif task.after.stage >= 0:
                ready.add(task.after)
                table[rank].append(("send", task))
                table[task.after.stage % ranks].append(("receive", task))
    return table


# --- running it -----------------------------------------------------------------------------------------------------


class MicroBatch(NamedTuple):
    """A micro-batch: this rank's `ids` (B, T / cp), what else the model takes by name, its `part` of the batch.

    `whole` are the ids (B, T) of its sequences, of which every rank of `cp`, `tp` and `pp` knows all.
    """

    ids: Tensor
    named: dict[str, Tensor]
    part: float
    whole: Tensor


@dataclass(frozen=True)
class Pipeline:
    """This rank's `stages`, and the `group` of those that hold the others.

    A tied matrix is in the first stage and in the last: `twin` is the module that holds it in one of those two. What
    is `gathered` stays so between micro-batches, and its gradients are reduced once, after the last one. FSDP takes
    the average of gradients over `averaged` ranks, where their sum is meant. `room` is what a micro-batch's
    activations, which pass between stages, are received in. `told` are those that want to know a micro-batch's whole
    ids before a stage takes it forward, and before backward, which may compute it again.
    """

    stages: Sequence[nn.Module]
    twin: nn.Embedding | None
    gathered: bool
    group: dist.ProcessGroup
    rank: int
    ranks: int
    averaged: int
    room: Callable[[MicroBatch], Tensor]
    told: list[Callable[[Tensor], None]] = field(default_factory=list)

    def run(self, pieces: Sequence[MicroBatch], *, training: bool) -> Tensor:
        """The sum of the pieces' losses times their parts where the last stage is, elsewhere 0.

        In training, accumulate gradients.
        """
        step = Step(self, pieces, training=training)
        with torch.set_grad_enabled(training):
            for verb, task in timetable(self.ranks, len(self.stages), len(pieces), training=training)[self.rank]:
                getattr(step, verb)(task)
        step.drain()
        if training and self.twin is not None:
            self.add_twin(local(cast("Tensor", self.twin.weight.grad)))
        return step.total

    def add_twin(self, grad: Tensor) -> None:
        """Add the other twin's gradient to this one's, which makes both the same: a + b is b + a, to the last bit."""
        other, peer = torch.empty_like(grad), 0 if self.rank else self.ranks - 1
        ends = ((dist.isend, grad), (dist.irecv, other))
        both = [dist.P2POp(end, tensor, group=self.group, group_peer=peer) for end, tensor in ends]
        for transfer in dist.batch_isend_irecv(both):
            transfer.wait()
        grad += other


class Step:
    """A run of the pipeline: its methods are the timetable's verbs."""

    def __init__(self, pipeline: Pipeline, pieces: Sequence[MicroBatch], *, training: bool) -> None:
        self.pipeline, self.pieces, self.training = pipeline, pieces, training
        self.last = pipeline.ranks * len(pipeline.stages) - 1
        self.total = torch.zeros((), device=pieces[0].ids.device, dtype=torch.float64)
        self.made: dict[Task, Tensor] = {}
        self.arriving: dict[Task, tuple[Tensor, Any]] = {}  # what a task takes, and the transfer that brings it
        self.kept: dict[Task, tuple[Tensor, Tensor | GradientEdge]] = {}  # a forward's input and output
        self.sent: dict[str, tuple[Tensor, Any]] = {}

    def run(self, task: Task) -> None:
        """Run a stage's forward or backward of a micro-batch."""
        for tell in self.pipeline.told:
            tell(self.pieces[task.micro].whole)
        stage = self.pipeline.stages[task.stage // self.pipeline.ranks]
        getattr(self, task.kind)(stage, task)

    def forward(self, stage: nn.Module, task: Task) -> None:
        """Take activations (the first stage: ids) to activations (the last: the loss)."""
        piece = self.pieces[task.micro]
        x, named = piece.ids, piece.named
        if task.stage:
            positions = torch.arange(x.size(1), device=x.device)  # activations may be a part of the tokens
            x, named = self.take(task).requires_grad_(self.training), {"positions": positions, **named}
        y: Tensor = stage(x, **named)
        if task.stage == self.last:
            y = y * piece.part
            self.total += y.detach()
            y = y * self.pipeline.averaged
        else:
            self.made[task] = y.detach()
        if self.training:
            self.kept[task] = x, y if task.stage == self.last else get_gradient_edge(y)

    def backward(self, stage: nn.Module, task: Task) -> None:
        """Take the gradient of a stage's output to that of its input."""
        if self.pipeline.gathered and isinstance(stage, FSDPModule):
            last = task.micro == len(self.pieces) - 1
            stage.set_requires_gradient_sync(last)
            stage.set_reshard_after_backward(last)
        x, y = self.kept.pop(task._replace(kind=FORWARD))
        torch.autograd.backward(y, None if task.stage == self.last else self.take(task))
        if task.stage:
            self.made[task] = cast("Tensor", x.grad)

    def take(self, task: Task) -> Tensor:
        """What a task takes, once it is here."""
        tensor, transfer = self.arriving.pop(task)
        transfer.wait()
        return tensor

    def send(self, task: Task) -> None:
        """Send what a task made; one tensor is on its way at a time in each direction."""
        self.drain(task.kind)
        tensor, pipeline = self.made.pop(task).contiguous(), self.pipeline
        transfer = dist.isend(tensor, group=pipeline.group, group_dst=task.after.stage % pipeline.ranks)
        self.sent[task.kind] = tensor, transfer

    def receive(self, task: Task) -> None:
        """Make room for what a task of another rank makes, which comes while others run."""
        room, pipeline = self.pipeline.room(self.pieces[task.micro]), self.pipeline
        transfer = dist.irecv(room, group=pipeline.group, group_src=task.stage % pipeline.ranks)
        self.arriving[task.after] = room, transfer

    def drain(self, *kinds: str) -> None:
        """Wait for what forwards, backwards or, unless told, both have on its way."""
        for kind in kinds or (FORWARD, BACKWARD):
            _, transfer = self.sent.pop(kind, (None, None))
            if transfer is not None:
                transfer.wait()
