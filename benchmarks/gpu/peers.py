"""Whole training steps on one GPU, ours beside those of others, whose code is an argument and none of ours.

`python -m benchmarks.gpu.peers ROW... --nanogpt FOLDER --titan FOLDER [--rounds 3] [--out FILE]`: FOLDERs are nanoGPT's
checkout and one on whose path `torchtitan` (0.2.2) and `torchao` lie. Of each row every arm is swept over micro-batches
in processes of their own; then the best of each alternate, and the medians' ratios are printed beside their limits.
Peers run as their trainers set them up on one card: nanoGPT and transformers' Llama compiled whole under autocast,
torchtitan's Llama compiled block by block without recompute; at 8b it holds its state in bf16 and recomputes blocks,
as ours does. Tokens are random, and lie on the device.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teragpt.config import resolve
from teragpt.reporting.metrics import mfu_per_rate
from teragpt.sizes import SIZES, Shape

WARM, TIMED = 6, 16
Job = tuple[str, str, int]  # a row, an arm of it, a micro-batch


@dataclass(frozen=True)
class Row:
    """A size and its vocabulary; arms of ours with their settings; least ratios of them to peers; micro-batches."""

    size: str
    vocabulary: int
    ours: dict[str, dict[str, object]]
    limits: dict[tuple[str, str], float]
    batches: tuple[int, ...]

    @property
    def arms(self) -> list[str]:
        """Ours, then the peers."""
        return [*self.ours, *dict.fromkeys(peer for _, peer in self.limits)]


SMALL: dict[str, object] = {"state_dtype": "bf16", "recompute": "full"}
ROOM: dict[str, object] = {"recompute_layers": 25}  # the last 7 keep everything, in the memory that the peer takes
ROWS = {
    "124m": Row(
        "124m", 50_304,
        {"ours": {}, "ours-6-heads": {"heads": 6, "kv_heads": 6}, "ours-fp8": {"precision": "fp8"}},
        {("ours", "nanogpt"): 1.06, ("ours-6-heads", "nanogpt"): 1.1, ("ours-fp8", "nanogpt"): 1.1},
        (32, 64),
    ),
    "1.3b": Row(
        "1.3b", 32_000, {"ours": {}, "ours-fp8": {"precision": "fp8"}},
        {
            ("ours", "titan"): 1.13, ("ours", "nanogpt"): 1.04, ("ours", "transformers"): 1.25,
            ("ours-fp8", "titan-fp8"): 1.2,
        },
        (8, 12, 16),
    ),
    "8b": Row(
        "8b", 128_256, {"ours": {**SMALL, **ROOM}, "ours-fp8": {**SMALL, **ROOM, "precision": "fp8"}},
        {("ours", "titan"): 1.05, ("ours-fp8", "titan-fp8"): 1.05},
        (1,),
    ),
}  # fmt: skip


def main() -> None:
    """Run the rows, or one arm of one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"any of {', '.join(ROWS)}")
    parser.add_argument("--nanogpt", type=Path, default=Path("nanoGPT"))
    parser.add_argument("--titan", type=Path, default=Path("torchtitan"))
    parser.add_argument("--arms", nargs="*", help="these alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="*", help="micro-batches in place of the row's own")
    parser.add_argument("--out", type=Path, default=Path("peers.jsonl"))
    parser.add_argument("--arm", help="measure this arm alone, in this process, once a line is read")
    asked = parser.parse_args()
    unknown = sorted(set(asked.rows) - set(ROWS))
    if unknown:
        parser.error(f"ROW: got {', '.join(unknown)}; allowed: {', '.join(ROWS)}")
    for name in asked.rows or ROWS:
        if asked.arm:
            print(json.dumps(measure(asked.arm, ROWS[name], asked.batches[0], asked)))
        else:
            told = compare(name, asked)
            with asked.out.open("a") as record:
                record.write(json.dumps(told) + "\n")
            print(json.dumps(told), flush=True)


def compare(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """A row's medians and ratios."""
    row = ROWS[name]
    arms = [arm for arm in row.arms if arm in (asked.arms or row.arms)]
    sweep = dict(run([(name, a, b) for b in asked.batches or row.batches for a in arms], asked))
    best = {arm: max((job for job in sweep if job[1] == arm), key=lambda job: sweep[job]) for arm in arms}
    rates = {arm: [sweep[job]] for arm, job in best.items()}
    for (_, arm, _), rate in run([*best.values()] * (asked.rounds - 1), asked):
        rates[arm].append(rate)
    medians = {arm: statistics.median(found) for arm, found in rates.items()}
    config = resolve({"size": row.size, "num_tokens": row.vocabulary})
    each = mfu_per_rate(config, 1) or 0.0
    return {
        "row": name, "device": torch.cuda.get_device_name(), "torch": torch.__version__,
        "micro_batch": {arm: job[2] for arm, job in best.items()},
        "tokens_per_s": {arm: [round(rate) for rate in found] for arm, found in rates.items()},
        "mfu": {arm: round(medians[arm] * each, 3) for arm in row.ours if arm in arms},
        "ratios": [
            {"of": ours, "to": peer, "ratio": round(medians[ours] / medians[peer], 3), "limit": limit}
            for (ours, peer), limit in row.limits.items()
            if {ours, peer} <= set(arms)
        ],
    }  # fmt: skip


def run(jobs: list[Job], asked: argparse.Namespace) -> Iterable[tuple[Job, float]]:
    """Tokens a second of each job, in a process of its own; 0 where it runs out of memory.

    All are started at once, to import what they need, and have the GPU one after another.
    """
    started = []
    for row, arm, batch in jobs:
        words = [row, "--arm", arm, "--batches", str(batch), "--nanogpt", asked.nanogpt, "--titan", asked.titan]
        command = [sys.executable, "-m", "benchmarks.gpu.peers", *map(str, words)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe))
    for job, process in zip(jobs, started, strict=True):
        out, err = process.communicate("now\n")
        if process.returncode and "OutOfMemoryError" not in err:
            raise RuntimeError(err[-3000:])
        found = {"tokens_per_s": 0.0} if process.returncode else json.loads(out.splitlines()[-1])
        print(*job, found, file=sys.stderr, flush=True)
        yield job, float(found["tokens_per_s"])


def measure(arm: str, row: Row, batch: int, asked: argparse.Namespace) -> dict[str, float]:
    """The median of an arm's steps, and its peak of memory, once a line is read."""
    for slow in ("torch._inductor.compile_fx", "teragpt.profiling"):
        importlib.import_module(slow)
    sys.stdin.readline()
    shape = SIZES[row.size]
    if arm in row.ours:
        step = ours(row, row.ours[arm], batch)
    elif arm == "nanogpt":
        step = nanogpt(asked.nanogpt, shape, row.vocabulary)
    elif arm == "transformers":
        step = transformers(shape, row.vocabulary)
    else:
        small = row.size == "8b"
        step = titan(asked.titan, shape, row.vocabulary, fp8=arm == "titan-fp8", small=small, again=small)
    ids = torch.randint(0, row.vocabulary, (batch, shape.context + 1), device="cuda")
    inputs = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    seconds = []
    for _ in range(WARM + TIMED):
        start = time.perf_counter()
        step(*inputs)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    rate = batch * shape.context / statistics.median(seconds[WARM:])
    return {"tokens_per_s": rate, "gb": torch.cuda.max_memory_allocated() / 1e9}


def ours(row: Row, more: dict[str, object], batch: int) -> Callable[[Tensor, Tensor], object]:
    """A step of ours, its loss and gradient norm read on the host at each as the trainer does."""
    from teragpt.launcher.environment import World
    from teragpt.profiling import Steps

    tokens = batch * SIZES[row.size].context
    settings = {
        "size": row.size,
        "optimizer": "adamw",
        "num_tokens": row.vocabulary,
        "micro_batch": batch,
        "global_batch_tokens": tokens,
    }
    return Steps({**settings, **more}, World()).take


def nanogpt(checkout: Path, shape: Shape, vocabulary: int) -> Callable[[Tensor, Tensor], object]:
    """A step of nanoGPT's train.py: its model, its optimizer, autocast, compiled whole."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = code
    spec.loader.exec_module(code)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    settings = code.GPTConfig(
        block_size=shape.context, vocab_size=vocabulary, n_layer=shape.depth, n_head=shape.heads, n_embd=shape.dim,
        dropout=0.0, bias=False,
    )  # fmt: skip
    with torch.device("cuda"):
        model = code.GPT(settings)
    optimizer: Any = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cuda")
    compiled: Any = torch.compile(model)

    def step(ids: Tensor, targets: Tensor) -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = compiled(ids, targets)[1]
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def transformers(shape: Shape, vocabulary: int) -> Callable[[Tensor, Tensor], object]:
    """A step of transformers' Llama as a plain loop takes it: fp32 weights under autocast, compiled, fused AdamW."""
    from transformers.models.llama import LlamaConfig, LlamaForCausalLM

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    settings = LlamaConfig(
        vocab_size=vocabulary, hidden_size=shape.dim, intermediate_size=shape.ffn, num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied, use_cache=False,
    )  # fmt: skip
    with torch.device("cuda"):
        model: Any = LlamaForCausalLM(settings)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4, (0.9, 0.95), weight_decay=0.1, fused=True)
    compiled: Any = torch.compile(model)

    def step(ids: Tensor, targets: Tensor) -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = compiled(input_ids=ids, labels=ids, shift_labels=targets).loss
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def titan(
    folder: Path, shape: Shape, vocabulary: int, *, fp8: bool, small: bool, again: bool, ranks: int = 1
) -> Callable[[Tensor, Tensor], object]:
    """A step of torchtitan's trainer (0.2.2), its loss and its clip: on one card without FSDP, as it is faster so.

    `small`: state in bf16; `again`: blocks computed again. Several `ranks`, of one process group, shard it by FSDP2.
    """
    sys.path.insert(0, str(folder))
    from torchtitan.components.loss import build_cross_entropy_loss
    from torchtitan.components.optimizer import build_optimizers
    from torchtitan.config import TORCH_DTYPE_MAP, JobConfig
    from torchtitan.distributed import ParallelDims
    from torchtitan.distributed.utils import clip_grad_norm_, maybe_enable_amp
    from torchtitan.models.llama3 import Transformer, TransformerModelArgs, parallelize_llama
    from torchtitan.tools.utils import set_default_dtype

    job = JobConfig()
    job.training.seq_len = shape.context
    job.activation_checkpoint.mode = "full" if again else "none"
    job.training.dtype = "bfloat16" if small else "float32"
    job.compile.enable = True
    dims = ParallelDims(dp_replicate=1, dp_shard=ranks, cp=1, tp=1, pp=1, ep=1, etp=1, world_size=ranks)
    sizes = TransformerModelArgs(
        dim=shape.dim, n_layers=shape.depth, n_heads=shape.heads, n_kv_heads=shape.kv_heads, vocab_size=vocabulary,
        multiple_of=shape.ffn, ffn_dim_multiplier=0.5 * shape.ffn / int(8 * shape.dim / 3), rope_theta=500_000,
    )  # fmt: skip
    sizes.update_from_config(job)
    with torch.device("meta"), set_default_dtype(TORCH_DTYPE_MAP[job.training.dtype]):
        model = Transformer(sizes)
    if model.layers["0"].feed_forward.w1.weight.size(0) != shape.ffn:
        raise ValueError("torchtitan made another width of the feed-forward layer")
    if fp8:
        from torchtitan.components.quantization.float8 import Float8LinearConverter

        job.quantize.linear.float8.recipe_name = "tensorwise"
        job.quantize.linear.float8.filter_fqns = ["output"]
        Float8LinearConverter(job, dims).convert(model)
    model = parallelize_llama(model, dims, job)
    model.to_empty(device="cuda")
    with torch.no_grad():
        model.init_weights(buffer_device=None)
    loss_of, optimizer = (
        build_cross_entropy_loss(job, parallel_dims=dims),
        build_optimizers([model], job.optimizer, dims),
    )
    amp = maybe_enable_amp(dims, job.training.mixed_precision_param, "cuda")

    def step(ids: Tensor, targets: Tensor) -> None:
        with amp:
            loss = loss_of(model(ids), targets) / (targets.numel() * ranks)
        torch.autograd.backward(loss)
        clip_grad_norm_(list(model.parameters()), job.training.max_norm, foreach=True, pp_mesh=None, ep_enabled=False)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
