"""Everything a mesh does to the model, from outside it and in one order: tensor and context parallel, compile, FSDP2.

The model and the loop know nothing of what stands here. A mesh never changes what is computed: initial weights depend
on (seed, name, row) alone, and gradients are the global batch's whatever the number of ranks.
"""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import math
import os
import sysconfig
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.overrides import TorchFunctionMode

from teragpt.compute.ops import local
from teragpt.config import Config, ConfigError, Problem
from teragpt.data import Dataset
from teragpt.fp8 import fp8, measure
from teragpt.health import evidence
from teragpt.launcher.environment import World
from teragpt.parallelism.context_parallel import context_parallel, take_pieces
from teragpt.parallelism.mesh import Mesh
from teragpt.parallelism.pipeline import MicroBatch, Pipeline, build_pipeline, filling
from teragpt.parallelism.placement import region
from teragpt.parallelism.tensor_parallel import tensor_parallel
from teragpt.recompute import recompute

ROW_BLOCK = 1024  # rows of a matrix that one generator draws
DRAW = {nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_}
GROWING = "expandable_segments:True"  # freed pieces join: a plan that leaves a tenth free ran out of memory without
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)
INSTALLED = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")})
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


def connect(world: World, seconds: float = 600) -> torch.device:
    """Join the process group (NCCL and gloo on GPU, gloo on CPU), and return this rank's device.

    No collective may take longer than so many `seconds`. A world of one needs no rendezvous and opens no port.
    Raises ConnectionError where rank 0 cannot be met.
    """
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", world.local_rank) if gpu else torch.device("cpu")
    if gpu:
        if "PYTORCH_ALLOC_CONF" not in os.environ:
            os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", GROWING)
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    timeout = timedelta(seconds=seconds)
    evidence.prepare()
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
    automatic = torch.bfloat16 if device.type == "cuda" else torch.float32
    return PRECISIONS.get(config.precision, automatic)


def build_model(constructor: Callable[..., nn.Module], config: Config, dtype: torch.dtype | None = None) -> nn.Module:
    """The model of the settings' shape, on the meta device: no memory yet. Raises ConfigError of one that cannot be."""
    named: dict[str, Any] = {"kv_heads": config.kv_heads, "ffn": config.ffn, "tied": config.tied, "dtype": dtype}
    named |= {"rope_theta": config.rope_theta, "norm_eps": config.norm_eps}
    named |= {} if config.q_dim == config.dim else {"head_dim": config.head_dim}
    named |= {"rope_scaling": config.rope_scaling} if config.rope_scaling else {}  # a model may know of none
    with theirs(config.model, "model", "a constructor like TeraGPT's"), torch.device("meta"), Unwritten():
        model: Any = constructor(config.dim, config.depth, config.heads, config.num_tokens, **named)
        if not isinstance(model, nn.Module):
            raise TypeError(f"it returns {type(model).__name__}, no torch.nn.Module")
    return model


class Unwritten(TorchFunctionMode):
    """Parameters keep no values on the meta device; to draw some all the same, torch would import its compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, unless it draws."""
        given = kwargs or {}
        return given["tensor"] if func in DRAW else func(*args, **given)


def parallelize(model: nn.Module, mesh: Mesh, config: Config, dtype: torch.dtype) -> None:
    """Cut a model on the meta device over the mesh, compile it where that pays, and shard what is left.

    Raises ConfigError for a model that the mesh cannot cut, and for a batch that does not fill the pipeline.
    """
    micro_batch_count(config.sequences, mesh, config, "global_batch_tokens", filling(mesh, config))
    tensor_parallel(model, mesh)
    context_parallel(model, mesh)
    penalize(model, config)
    pipeline = build_pipeline(model, mesh, config, dtype)
    for stage in pipeline.stages:
        shard(stage, mesh, config, dtype, gathered=pipeline.gathered)
    model.pipeline = cast("Any", pipeline)


def penalize(model: nn.Module, config: Config) -> None:
    """Add the z-loss to what a model's loss has gradients of. Raises ConfigError for a model whose loss takes no z."""
    loss: Any = getattr(model, "loss", None)
    if config.z_loss == 0:
        return
    if loss is None or "z" not in inspect.signature(loss).parameters:
        raise ConfigError([Problem("z_loss", config.z_loss, f"0 for {config.model}, whose loss takes no z")])
    cast("Any", model).loss = partial(loss, z=config.z_loss)


def compiles(config: Config, device: str) -> bool:
    """Whether a model is compiled on a kind of device."""
    return config.compile == "on" or (config.compile == "auto" and device != "cpu")


def shard(model: nn.Module, mesh: Mesh, config: Config, dtype: torch.dtype, *, gathered: bool) -> None:
    """Compile a model, or a stage of one, where that pays, and shard it.

    On GPU each block is compiled and sharded by itself, so that its parameters travel while others compute. On CPU,
    where nothing overlaps, a model that stays gathered is one graph and one group: one collective each way a step.
    Masters have the `state_dtype` (fp64 in fp64 runs); FSDP gathers them in `dtype` and averages gradients in fp32.
    """
    blocks = list(cast("nn.ModuleList", getattr(model, "layers", nn.ModuleList())))
    fp8(blocks, config, mesh.devices.device_type)
    recompute(blocks, config)
    kind = mesh.devices.device_type
    parts = [] if gathered and kind == "cpu" else blocks
    if compiles(config, kind):
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


def materialize(model: nn.Module, config: Config, device: torch.device) -> None:
    """Give a meta model memory on `device` and its initial weights: each rank draws only the rows that it owns.

    Values are drawn in fp32 and cast, so that every precision starts from the same weights.
    """
    wide = torch.float64 if config.precision == "fp64" else PRECISIONS[config.state_dtype]
    pipeline: Pipeline | None = getattr(model, "pipeline", None)
    for stage in pipeline.stages if pipeline else [model]:
        stage.to(wide).to_empty(device=device)
    std: Callable[[str, int], float] = getattr(model, "initial_std", lambda _, columns: 0.5 * columns**-0.5)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for name, parameter in model.named_parameters():
            mine, (rows, *columns) = local(parameter.detach()), region(parameter)
            if parameter.ndim < 2:
                mine.fill_(0.0 if name.endswith("bias") else 1.0)
            elif mine.numel():
                key = f"{config.seed}:{name}"
                draw(pool, mine, rows, columns, parameter.shape, std(name, parameter.size(-1)), key)


def draw(
    pool: ThreadPoolExecutor, mine: Tensor, rows: slice, columns: Sequence[slice], shape: Sequence[int], std: float,
    key: str,
) -> None:  # fmt: skip
    """Fill `mine`, a region of a matrix of `shape`, from generators keyed by (key, block of rows), several at once."""

    def fill(block: int) -> None:
        start, stop = block * ROW_BLOCK, min((block + 1) * ROW_BLOCK, shape[0])
        seed = int.from_bytes(hashlib.blake2b(f"{key}:{block}".encode(), digest_size=7).digest())
        values = torch.empty(stop - start, *shape[1:], dtype=torch.float32)
        values.normal_(0.0, std, generator=torch.Generator().manual_seed(seed))
        first, last = max(start, rows.start), min(stop, rows.stop)
        mine[first - rows.start : last - rows.start] = values[first - start : last - start][:, *columns]

    for _ in pool.map(fill, range(rows.start // ROW_BLOCK, math.ceil(rows.stop / ROW_BLOCK))):
        pass


def micro_batch_count(
    sequences: int, mesh: Mesh, config: Config, setting: str, filling: tuple[int, int] = (1, 1)
) -> int:
    """Micro-batches that every rank makes of its part of `sequences`: none of them empty where parts are uneven.

    `filling` are the fewest, and what their number is a multiple of. Raises ConfigError that names the `setting` when
    there are fewer sequences than that.
    """
    ranks, (fewest, multiple) = mesh.data_ranks, filling
    least, most = sequences // ranks, math.ceil(sequences / ranks)
    count = max(min(math.ceil(most / config.micro_batch), least), fewest)
    count = math.ceil(count / multiple) * multiple
    if count > least:
        wanted = f"at least {'a sequence' if count == 1 else f'{count} sequences'} of {config.context} tokens"
        filled = f", of which pp {mesh.size('pp')} makes as many micro-batches" if fewest > 1 else ""
        allowed = f"{wanted} for each of {ranks} parts of the batch{filled}"
        raise ConfigError([Problem(setting, getattr(config, setting), allowed)])
    return count


def micro_batches(batch: Sequence[Tensor], count: int, sequences: int, mesh: Mesh) -> list[MicroBatch]:
    """This rank's ids and targets (n, T) of a batch of `sequences` in all, cut into `count` pieces."""
    pieces = zip(*(whole.tensor_split(count) for whole in batch), strict=True)
    return [
        MicroBatch(*take_pieces(mesh.context, ids, targets), ids.size(0) / sequences / mesh.cp, ids)
        for ids, targets in pieces
    ]


def forward_backward(model: nn.Module, ids: Tensor, targets: Tensor, mesh: Mesh, config: Config) -> Tensor:
    """Accumulate the gradients of the mean loss over the global batch, of which this rank holds ids and targets (n, T).

    Returns this rank's share of that loss; the shares of all ranks add up to it. Raises ConfigError when the batch
    has too few sequences for the mesh.
    """
    count = micro_batch_count(config.sequences, mesh, config, "global_batch_tokens", filling(mesh, config))
    pieces = micro_batches((ids, targets), count, config.sequences, mesh)
    measure(model, mesh)
    return cast("Pipeline", model.pipeline).run(pieces, training=True) / mesh.size("tp")


def evaluate(model: nn.Module, ids: Tensor, targets: Tensor, mesh: Mesh, config: Config) -> Tensor:
    """This rank's share of the mean loss over the held-out sequences; the shares of all ranks add up to it.

    Raises ConfigError when there are fewer of these than the mesh has parts of a batch.
    """
    count = micro_batch_count(config.eval_sequences, mesh, config, "eval_sequences")
    pieces = micro_batches((ids, targets), count, config.eval_sequences, mesh)
    measure(model, mesh)
    return cast("Pipeline", model.pipeline).run(pieces, training=False) / mesh.size("tp")


def load_attribute(name: str, setting: str) -> Callable[..., Any]:
    """What `module:attribute` names, to be called. Raises ConfigError that names the setting."""
    module, _, attribute = name.partition(":")
    with theirs(name, setting, "an importable module:attribute that can be called"):
        found: Callable[..., Any] = getattr(__import__(module, fromlist=[attribute]), attribute)
        if not callable(found):
            raise TypeError(f"{attribute} is of type {type(found).__name__}")
    return found


def load_dataset(loader: str, data: str, tokenizer: str = "") -> Any:
    """What the loader `module:attribute` makes of `data`. Raises ConfigError, and OSError of what cannot be reached."""
    opened = load_attribute(loader, "loader")
    with theirs(loader, "loader", "a function(path, tokenizer=name) that returns a teragpt.data.Dataset"):
        dataset = opened(data, tokenizer=tokenizer)
        missing = [name for name in dir(Dataset) if not name.startswith("_") and not hasattr(dataset, name)]
        if missing:
            raise TypeError(f"what it returns has no {', '.join(missing)}")
    return dataset


@contextmanager
def theirs(name: str, setting: str, allowed: str) -> Generator[None]:
    """Make what somebody's own code raises a ConfigError that names the setting, and the line that raised it."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ConfigError | OSError) or name in {Config.model, Config.loader}:
            raise
        lines = [one for one in traceback.extract_tb(error.__traceback__) if one.filename != __file__]
        own = [one for one in lines if not one.filename.startswith(INSTALLED)] or lines
        where = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
        allowed = f"{allowed} ({type(error).__name__}{where}: {error})"
        raise ConfigError([Problem(setting, name, allowed)]) from error
