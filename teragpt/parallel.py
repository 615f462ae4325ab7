"""Everything a mesh does to the model, from outside it and in one order: tensor and context parallel, compile, FSDP2.

The model and the loop know nothing of what stands here. A mesh never changes what is computed: initial weights depend
on (seed, name, row) alone, and gradients are the global batch's whatever the number of ranks.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from teragpt.config import Config, ConfigError, Problem
from teragpt.context_parallel import context_parallel
from teragpt.environment import World
from teragpt.mesh import Mesh
from teragpt.ops import local
from teragpt.placement import region
from teragpt.recompute import recompute
from teragpt.tensor_parallel import tensor_parallel

ROW_BLOCK = 1024  # rows of a matrix that one generator draws
GATHERED_BYTES = (
    4 << 30
)  # up to this size a model stays gathered between forward and backward, and between micro-batches
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


def connect(world: World) -> torch.device:
    """Join the process group (NCCL and gloo on GPU, gloo on CPU), and return this rank's device.

    A world of one needs no rendezvous and opens no port. Raises ConnectionError where rank 0 cannot be met.
    """
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", world.local_rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    timeout = timedelta(minutes=10)
    if world.world_size == 1:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=timeout)
        return device
    os.environ.setdefault("MASTER_ADDR", world.master_addr)
    os.environ.setdefault("MASTER_PORT", str(world.master_port))
    try:
        dist.init_process_group(backend, rank=world.rank, world_size=world.world_size, timeout=timeout)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        where = f"MASTER_ADDR, MASTER_PORT: got {world.master_addr}:{world.master_port}"
        raise ConnectionError(f"{where}; allowed: a port that is free on rank 0 and reached by all ({error})") from None
    return device


def keep_freed_memory() -> None:
    """Have the C library keep what is freed: a step's activations, which the next step takes again.

    glibc would return them to the system and fault them in page by page each step, a twentieth of a step on CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never


def compute_dtype(config: Config, device: torch.device) -> torch.dtype:
    """The dtype that activations are computed in: bf16 on GPU and fp32 on CPU, unless the precision says otherwise."""
    automatic = "bf16" if device.type == "cuda" else "fp32"
    return PRECISIONS[automatic if config.precision == "auto" else config.precision]


def build_model(constructor: Callable[..., nn.Module], config: Config, dtype: torch.dtype | None = None) -> nn.Module:
    """The model of the settings' shape, on the meta device: no memory yet."""
    with torch.device("meta"):
        return constructor(
            config.dim,
            config.depth,
            config.heads,
            config.num_tokens,
            kv_heads=config.kv_heads,
            ffn=config.ffn,
            tied=config.tied,
            rope_theta=config.rope_theta,
            norm_eps=config.norm_eps,
            dtype=dtype,
        )


def parallelize(model: nn.Module, mesh: Mesh, config: Config, dtype: torch.dtype) -> None:
    """Cut a model on the meta device over the mesh, compile it where that pays, and shard what is left.

    On GPU each block is compiled and sharded by itself, so that its parameters travel while others compute. On CPU,
    where nothing overlaps, a model that stays gathered is one graph and one group: one collective each way a step.
    Masters stay fp32 (fp64 in fp64 runs); FSDP gathers them in `dtype` and averages gradients in fp32.
    """
    tensor_parallel(model, mesh)
    context_parallel(model, mesh)
    blocks = list(cast("nn.ModuleList", getattr(model, "layers", nn.ModuleList())))
    recompute(blocks, config)
    gathered = stays_gathered(model)
    on_cpu = mesh.devices.device_type == "cpu"
    parts = [] if gathered and on_cpu else blocks
    if config.compile == "on" or (config.compile == "auto" and not on_cpu):
        for part in parts:
            part.compile(dynamic=False)
        if not parts:
            model.forward = torch.compile(model.forward, dynamic=False)  # within FSDP's hooks, which break a graph
    if mesh.devices.size() == 1:
        return
    wide = torch.promote_types(dtype, torch.float32)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=wide, cast_forward_inputs=False)
    for part in parts:
        fully_shard(part, mesh=mesh.data_parallel, mp_policy=policy, reshard_after_forward=not gathered)
    fully_shard(model, mesh=mesh.data_parallel, mp_policy=policy, reshard_after_forward=False)


def stays_gathered(model: nn.Module) -> bool:
    """Whether the whole model's fp32 gradients fit beside it on every rank, which saves communication."""
    return sum(parameter.numel() for parameter in model.parameters()) * 4 <= GATHERED_BYTES


def materialize(model: nn.Module, config: Config, device: torch.device) -> None:
    """Give a meta model memory on `device` and its initial weights: each rank draws only the rows that it owns.

    Values are drawn in fp32 and cast, so that every precision starts from the same weights.
    """
    wide = torch.float64 if config.precision == "fp64" else torch.float32
    model.to(wide).to_empty(device=device)
    std: Callable[[str, int], float] = getattr(model, "initial_std", lambda _, columns: 0.5 * columns**-0.5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mine, (rows, *columns) = local(parameter), region(parameter)
            if parameter.ndim < 2:
                mine.fill_(0.0 if name.endswith("bias") else 1.0)
            elif mine.numel():
                draw(mine, rows, columns, parameter.shape, std(name, parameter.size(-1)), f"{config.seed}:{name}")


def draw(mine: Tensor, rows: slice, columns: Sequence[slice], shape: Sequence[int], std: float, key: str) -> None:
    """Fill `mine`, a region of a matrix of `shape`, from generators keyed by (key, block of rows)."""
    for block in range(rows.start // ROW_BLOCK, math.ceil(rows.stop / ROW_BLOCK)):
        start, stop = block * ROW_BLOCK, min((block + 1) * ROW_BLOCK, shape[0])
        seed = int.from_bytes(hashlib.blake2b(f"{key}:{block}".encode(), digest_size=7).digest())
        values = torch.empty(stop - start, *shape[1:], dtype=torch.float32)
        values.normal_(0.0, std, generator=torch.Generator().manual_seed(seed))
        first, last = max(start, rows.start), min(stop, rows.stop)
        mine[first - rows.start : last - rows.start] = values[first - start : last - start][:, *columns]


def micro_batches(
    batch: Sequence[Tensor], sequences: int, mesh: Mesh, config: Config, setting: str
) -> list[tuple[Tensor, Tensor, float]]:
    """This rank's ids and targets (n, T) of a batch of `sequences` in all, cut, each piece with its part of that batch.

    Every rank makes as many pieces, none of them empty where ranks hold uneven parts. Raises ConfigError, naming the
    `setting` that the batch comes from, when there are fewer sequences than ranks.
    """
    ranks = mesh.data_ranks
    least, most = sequences // ranks, math.ceil(sequences / ranks)
    if least == 0:
        allowed = f"at least a sequence of {config.context} tokens for each of {ranks} parts of the batch"
        raise ConfigError([Problem(setting, getattr(config, setting), allowed)])
    count = min(math.ceil(most / config.micro_batch), least)
    pieces = zip(*(whole.tensor_split(count) for whole in batch), strict=True)
    return [(ids, targets, ids.size(0) / sequences) for ids, targets in pieces]


def forward_backward(model: nn.Module, ids: Tensor, targets: Tensor, mesh: Mesh, config: Config) -> Tensor:
    """Accumulate the gradients of the mean loss over the global batch, of which this rank holds ids and targets (n, T).

    Returns this rank's share of that loss; the shares of all ranks add up to it. Gradients of a model that stays
    gathered are reduced once, after the last micro-batch.
    """
    total = torch.zeros((), device=ids.device, dtype=torch.float64 if config.precision == "fp64" else torch.float32)
    once = isinstance(model, FSDPModule) and stays_gathered(model)
    pieces = micro_batches((ids, targets), config.sequences, mesh, config, "global_batch_tokens")
    for left, (some_ids, some_targets, part) in zip(reversed(range(len(pieces))), pieces, strict=True):
        if once:
            cast("FSDPModule", model).set_requires_gradient_sync(left == 0)
            cast("FSDPModule", model).set_reshard_after_backward(left == 0)
        loss = model(some_ids, targets=some_targets) * (part / mesh.cp)
        (loss * mesh.data_ranks * mesh.cp).backward()  # FSDP divides by them again
        total += loss.detach()
    return total / mesh.size("tp")


def evaluate(model: nn.Module, ids: Tensor, targets: Tensor, mesh: Mesh, config: Config) -> Tensor:
    """This rank's share of the mean loss over the held-out sequences; the shares of all ranks add up to it."""
    total = torch.zeros((), device=ids.device, dtype=torch.float64)
    with torch.no_grad():
        pieces = micro_batches((ids, targets), config.eval_sequences, mesh, config, "eval_sequences")
        for some_ids, some_targets, part in pieces:
            total += model(some_ids, targets=some_targets) * part
    return total / (mesh.cp * mesh.size("tp"))


def load_attribute(name: str, setting: str) -> Any:
    """What `module:attribute` names. Raises ConfigError that names the setting."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(__import__(module, fromlist=[attribute]), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError([Problem(setting, name, f"an importable module:attribute ({error})")]) from None
